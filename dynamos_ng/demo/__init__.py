"""The main job, shown on a throw-away guest of a stock Debian kernel."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dynamos_ng import lab
from dynamos_ng.errors import DynamosError, LabError
from dynamos_ng.lab import root

#: Under emulation the whole demo takes two to five minutes.
TIMEOUT = 1500.0


def main(argv: Sequence[str]) -> int:
    """Boot a guest, run the steps in it, and return 0 only if every step was seen to work."""
    parser = argparse.ArgumentParser("python3 -m dynamos_ng demo", description=__doc__)
    parser.add_argument("--kernel", choices=root.KERNELS, default=root.DEFAULT, help=f"({root.DEFAULT})")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write each step's name, ok and figures")
    parser.add_argument("--yes", action="store_true", help="install what is missing without asking")
    options = parser.parse_args(argv)
    try:
        return _run(options.kernel, options.json)
    except DynamosError as error:
        print(f"dynamos: {error}", file=sys.stderr)
        return error.exit_code


def _run(kernel: str, report: Path | None) -> int:
    if report:
        lab.check_file(report)
    print("building the lab (once), then booting a stock Debian kernel …", file=sys.stderr, flush=True)
    columns = shutil.get_terminal_size((100, 24)).columns
    env = {"COLUMNS": str(columns)}
    if sys.stdout.isatty() and "NO_COLOR" not in os.environ:
        env["FORCE_COLOR"] = "1"
    with lab.out_folder() as out:
        result = lab.run(
            ["python3", "-m", "dynamos_ng.demo.guest", "/out/demo.json"],
            timeout=TIMEOUT,
            out_dir=out,
            env=env,
            kernel=kernel,
            on_output=lambda text: print(text, end="", flush=True),
        )
        written = out / "demo.json"
        if report and written.exists():
            shutil.copyfile(written, report)
        if not written.exists() and not result.status:
            raise LabError("the demo wrote no report")
    return result.status
