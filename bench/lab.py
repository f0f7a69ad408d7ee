"""Runs a measurement in a guest of the lab, and returns what it wrote."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bench.report import Report
from dynamos_ng.errors import LabError
from dynamos_ng.lab import machine, root

SECONDS = 3000.0


def add_arguments(_parser: argparse.ArgumentParser) -> None:
    """Give a parser no options: benchmarks of kernels have only those that all have."""


def each(
    options: argparse.Namespace, measure: Callable[[str, bool], Report], kernels: Iterable[str] = root.KERNELS
) -> list[Report]:
    """MEASURE in each of the KERNELS, or in those that were asked for."""
    return [measure(kernel, options.quick) for kernel in options.kernel or kernels]


def take(script: str, kernel: str, *arguments: object, counted: bool = False, memory: str = "2G") -> dict[str, Any]:
    """Run bench/guest/SCRIPT.py in a guest; COUNTED: its clocks count instructions, and it has one CPU.

    The script writes /out/SCRIPT.json.
    """
    with tempfile.TemporaryDirectory(prefix="dynamos-bench-") as folder:
        done = machine.run(
            ["python3", "-m", f"bench.guest.{script}", *map(str, arguments)], timeout=SECONDS, out_dir=Path(folder),
            cpus=1 if counted else 2, kernel=kernel, counted=counted, memory=memory,
        )  # fmt: skip
        if done.status:
            raise LabError(f"bench {script}: in the guest with {kernel}:\n{done.output[-2000:]}")
        value: dict[str, Any] = json.loads((Path(folder) / f"{script}.json").read_text())
    return value
