"""Clones and editions compute what their originals compute, and every call that enters leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
FLAVOURS = ("user", "user-endbr", "user-size", "kernel", "kernel-sls")


def run(script: str, *arguments: object) -> None:
    """Run a comparison in a process of its own, for a wrong clone ends in a signal."""
    done = subprocess.run(
        [sys.executable, str(HERE / script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parents[1]}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("results equal\n")


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_redirected_functions_return_what_they_returned(flavour: str, tmp_path: Path) -> None:
    run("compare.py", tmp_path, flavour, 1)
