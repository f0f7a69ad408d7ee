"""How long all stand still, and how long the call takes, when groups of functions are redirected and given back.

A guest whose clocks count instructions tells how the work in the stop grows with functions and with tasks; another one,
not counted, has the times, beside a livepatch's transition, and what the daemon takes that watches so many functions.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from statistics import correlation, linear_regression
from typing import Any

from bench import lab
from bench.report import LEAST, Figure, Report
from dynamos_ng.lab import root

NAME = "install"
CLAIM = "A thousand functions are switched in one stop, whose work grows linearly; sooner over than a livepatch."
FUNCTIONS, TASKS = (1, 10, 100, 1000), (100, 1000, 10000)
LEAST_LINEAR = 0.99


add_arguments = lab.add_arguments


def run(options: argparse.Namespace) -> list[Report]:
    """Measure in each kernel."""
    return lab.each(options, measure, [root.DEFAULT])


def measure(kernel: str, quick: bool) -> Report:
    """Measure in one kernel, counted and timed."""
    began = time.monotonic()
    functions, tasks = (FUNCTIONS[:3], TASKS[:2]) if quick else (FUNCTIONS, TASKS)
    arguments = ["--functions", *functions, "--tasks", *tasks]
    counted = lab.take(NAME, kernel, *arguments, counted=True)
    timed = lab.take(NAME, kernel, *arguments, "--daemon")
    return Report(f"{NAME}-{kernel}", CLAIM, tuple(figures(counted, timed)), seconds=time.monotonic() - began,
                  details={"release": counted["release"], "counted": counted, "timed": timed})  # fmt: skip


def figures(counted: dict[str, Any], timed: dict[str, Any]) -> Iterator[Figure]:
    """Return all figures of a counted and a timed guest."""
    sorts = (("functions", "so many functions, few tasks"), ("tasks", "one function, so many tasks more"))
    verbs = (("activate", "redirected"), ("deactivate", "given back"))
    for what, words in sorts:
        for verb, done in verbs:
            for count, row in counted[what].items():
                yield Figure(f"instructions/{what}/{verb}/{count}", row[f"{verb}-ns"], "instructions",
                             f"{words}: {done}, the work in the stop")  # fmt: skip
    for what, _ in sorts:
        counts, stops = _series(counted[what])
        yield Figure(f"growth/{what}", linear_regression(counts, stops).slope, "instructions",
                     f"what one of the {what} more adds to the work in the stop")  # fmt: skip
    for what, _ in sorts:
        yield Figure(f"linear/{what}", correlation(*_series(counted[what])), "",
                     f"how far that is linear in the {what}: Pearson's correlation", LEAST_LINEAR, LEAST)  # fmt: skip
    for sort, key, scale, words_of in (
        ("stop", "ns", 1e-6, "the stop"), ("call", "s", 1e3, "the whole request to the daemon"),
    ):  # fmt: skip
        for what, words in sorts:
            for verb, done in verbs:
                for count, row in timed[what].items():
                    yield Figure(f"{sort}/{what}/{verb}/{count}", scale * row[f"{verb}-{key}"], "ms",
                                 f"{words}: {done}, {words_of}")  # fmt: skip
    patched = {count: row for count, row in timed["tasks"].items() if "livepatch-s" in row}
    for count, row in patched.items():
        yield Figure(f"livepatch/{count}", row["livepatch-s"] * 1e3, "ms",
                     f"{count} tasks more: a livepatch of one function, until its transition is over")  # fmt: skip
    for count, row in patched.items():
        yield Figure(f"share/tasks/{count}", 1e-9 * row["activate-ns"] / row["livepatch-s"], "times",
                     f"{count} tasks more: the stop to redirect one function, in parts of that", 1.0)  # fmt: skip
    least = min((row["livepatch-s"] for row in patched.values()), default=0.0)
    for count, row in timed["functions"].items() if least else ():
        yield Figure(f"share/functions/{count}", 1e-9 * row["activate-ns"] / least, "times",
                     f"the stop to redirect {count} functions, in parts of the quickest of these", 1.0)  # fmt: skip
    for count, row in timed["functions"].items() if least else ():
        yield Figure(f"request/functions/{count}", row["activate-s"] / least, "times",
                     f"the whole request to redirect {count} functions, in the same parts")  # fmt: skip
    for count, row in timed["daemon"].items():
        yield Figure(f"memory/{count}", row["memory"], "bytes", f"what the daemon takes that watches {count} functions")
    for count, row in timed["daemon"].items():
        yield Figure(f"cpu/{count}", 100 * row["cpu"], "%", f"what it takes of a CPU, with {count} functions watched")


def _series(rows: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Return counts, and the instructions of activating in the stop."""
    return [float(count) for count in rows], [row["activate-ns"] for row in rows.values()]
