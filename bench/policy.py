"""How fast policies change, and what classification adds to the lives of processes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from bench import lab
from bench.report import Figure, Report

NAME = "policy"
CLAIM = "A process's edition changes by one written byte; classification is hardly seen in a process's life."
RATES = {
    "mmap": "a byte written into the mapped policy", "syscall": "bpf(2), an element read and written",
    "daemon": "a request to the daemon, which checks and logs it", "cli": "dynamos policy set",
}  # fmt: skip
LIVES = {
    "clone": "a new process, until the parent goes on", "life": "a process begun, ended and waited for",
    "execve": "a new program, until its main()",
}  # fmt: skip


add_arguments = lab.add_arguments


def run(options: argparse.Namespace) -> list[Report]:
    """Measure in each kernel."""
    return lab.each(options, measure)


def measure(kernel: str, quick: bool) -> Report:
    """Measure in one kernel: lives counted, rates timed."""
    began = time.monotonic()
    counted = lab.take(NAME, kernel, "lives", 100 if quick else 500, counted=True)
    timed = lab.take(NAME, kernel, "rates", 0.3 if quick else 2)
    return Report(f"{NAME}-{kernel}", CLAIM, tuple(figures(counted, timed)), seconds=time.monotonic() - began,
                  details={"release": counted["release"], "counted": counted, "timed": timed})  # fmt: skip


def figures(counted: dict[str, Any], timed: dict[str, Any]) -> Iterator[Figure]:
    """Return all figures of a counted and a timed guest."""
    for name, words in RATES.items():
        yield Figure(f"rate/{name}", timed["rates"][name], "changes/s", f"{words}: under emulation, from Python")
    lives = counted["lives"]
    added = {name: lives["on"][name]["median"] - lives["off"][name]["median"] for name in LIVES}
    for name, words in LIVES.items():
        yield Figure(f"off/{name}", lives["off"][name]["median"], "instructions", f"{words}: without classification")
    for name, words in LIVES.items():
        yield Figure(f"added/{name}", added[name], "instructions", f"{words}: added by classification")
    for name, words in LIVES.items():
        yield Figure(f"share/{name}", 100 * added[name] / lives["off"][name]["median"], "%",
                     f"{words}: what classification adds")  # fmt: skip
