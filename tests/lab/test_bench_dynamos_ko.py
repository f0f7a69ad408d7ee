"""The footprint benchmark, on the usual kernel."""

from __future__ import annotations

import argparse

from bench import footprint
from dynamos_ng.lab import root


def test_dynamos_ko_and_functions_are_measured() -> None:
    options = argparse.Namespace(kernel=[root.DEFAULT], quick=True)
    (report,) = footprint.run(options)
    values = {figure.name: figure.value for figure in report.figures}
    module, function = f"dynamos.ko {root.DEFAULT}", f"function {root.DEFAULT}"
    assert values[f"{module}/code"] > values[f"{module}/data"] > 0
    assert values[f"{module}/kept"] + values[f"{module}/dropped"] == values[f"{module}/as-size-counts"]
    # A handler and two counts are in it at least.
    assert values[f"{function}/added"] > 30
    assert values[f"{function}/unwind"] > 6
    targets = [figure.name for figure in report.figures if figure.target is not None]
    assert targets == [f"{module}/kept"]
