"""From an update's source to its being active, step by step, and from the built update."""

from __future__ import annotations

import argparse
import time

from bench import lab
from bench.report import Figure, Report

NAME = "update"
CLAIM = "Seconds from C source to active; a built update is active in a moment."
#: Seconds, under emulation. The paper: 0.68 to 2.30, for what was built before.
MOST_SOURCE, MOST_BUILT = 5.0, 0.3
WORDS = {
    "read": "the running kernel's symbols and text are read", "examine": "the function is examined",
    "compile": "editions are compiled, beside these two", "generate": "the update's text is generated",
    "link": "the update's module is built", "load": "it is loaded, with no probes", "activate": "it is activated",
}  # fmt: skip


add_arguments = lab.add_arguments


def run(options: argparse.Namespace) -> list[Report]:
    """Measure in each kernel."""
    return lab.each(options, measure)


def measure(kernel: str, quick: bool) -> Report:
    """Measure in one kernel."""
    began = time.monotonic()
    found = lab.take(NAME, kernel, 2 if quick else 7)
    steps = found["steps"]
    built = steps["load"] + steps["activate"]
    in_turn = sum(steps.values()) - steps["compile"] - built
    figures = [
        Figure("source-to-active", found["built"] + built, "s", "from C source to active", MOST_SOURCE),
        Figure("built-to-active", built, "s", "from the built update to active", MOST_BUILT),
        *(Figure(f"step/{name}", seconds, "s", WORDS[name]) for name, seconds in steps.items()),
        Figure("step/other", found["built"] - in_turn, "s", "what else building takes, and waiting for the compiler"),
    ]
    return Report(f"{NAME}-{kernel}", CLAIM, tuple(figures), seconds=time.monotonic() - began, details=found)
