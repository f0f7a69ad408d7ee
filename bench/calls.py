"""What redirection adds to a kernel's own system calls, beside others' ways: counted in instructions, and timed.

A guest whose clocks count instructions (QEMU's -icount) gives the same figures again; another one, not counted, gives
ratios of times. In each of them everything is measured in one boot: noop_llseek (a seek in an eventfd) as it is,
redirected in all ways, probed and patched; and the functions of the paper's table 3, each as it is and redirected.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from typing import Any

from bench import lab
from bench.report import Figure, Noise, Report

NAME = "calls"
CLAIM = "In a kernel, redirection adds a dozen instructions to a call: an eighth of what fentry adds, or less."
#: The most that may be added to a call, by architecture, and in parts of what others add.
MOST = {"x86_64": 16, "i686": 24}
MOST_OF = {"fentry": 1 / 8, "livepatch": 1 / 5}
#: Percentages: what the paper's table 3 has, the most for any function, and for one that runs so many instructions.
PAPER = {
    "clone": 1.71, "brk": 43.48, "execve": 0.83, "openat": 8.04, "read": 1.67, "write": 2.00, "fault": 5.82,
    "kill": 43.92,
}  # fmt: skip
MOST_ANY, MOST_LONG, LONG = 5.0, 1.0, 2000
#: How far the original's counts before and after may be apart: more, and something else was counted.
MOST_APART = 2.0
WORDS = {
    "one": "redirected, one edition", "first": "redirected, two editions, the first runs",
    "second": "redirected, two editions, the second runs", "bpf": "redirected, a BPF program chooses the edition",
    "kprobe": "a kprobe that does nothing", "kretprobe": "a kretprobe that does nothing",
    "fentry": "a BPF program at its entry that does nothing", "fexit": "a BPF program at its exit that does nothing",
    "livepatch": "a livepatch that does the same",
}  # fmt: skip
OURS = ("one", "first", "second")


add_arguments = lab.add_arguments


def run(options: argparse.Namespace) -> list[Report]:
    """Measure in each kernel."""
    return lab.each(options, measure)


def measure(kernel: str, quick: bool) -> Report:
    """Measure in one kernel, counted and timed."""
    began = time.monotonic()
    counted = lab.take(NAME, kernel, 100 if quick else 300, *([] if quick else ["--table"]), counted=True)
    timed = lab.take(NAME, kernel, 500 if quick else 5000)
    found = [*ways(counted["ways"], counted["machine"]), *_times(timed["ways"]), *table(counted["table"])]
    return Report(f"{NAME}-{kernel}", CLAIM, tuple(found), noise(counted["ways"]), time.monotonic() - began,
                  details={"release": counted["release"], "counted": counted, "timed": timed})  # fmt: skip


def noise(taken: dict[str, Any]) -> Noise:
    """Judge counted ways by what is the same in all of them: the call as it is, and nothing put there."""
    befores = [way["before"]["median"] for way in taken.values()]
    apart = max(befores) - min(befores)
    reason = f"the original itself took {apart:g} instructions more at one time than at another"
    return Noise((reason,) if apart > MOST_APART else (), {"original_apart": apart})


def ways(taken: dict[str, Any], architecture: str) -> Iterator[Figure]:
    """Return what each way adds to a call: counted instructions of a kernel of an ARCHITECTURE, as uname says it."""
    original = taken["nothing"]["before"]["median"]
    yield Figure("lseek", original, "instructions", "a seek in an eventfd as it is, with what every system call takes")
    added = {
        name: taken[name]["during"]["median"] - taken[name]["before"]["median"] for name in WORDS if name in taken
    }
    for name, value in added.items():
        most = MOST[architecture] if name in OURS else None
        yield Figure(f"added/{name}", value, "instructions", f"{WORDS[name]}: added to a call", most)
    for other, share in MOST_OF.items():
        for name in OURS if other in added else ():
            yield Figure(f"share/{name}-of-{other}", added[name] / added[other], "times",
                         f"{WORDS[name]}, in parts of what {WORDS[other]} adds", share)  # fmt: skip


def _times(taken: dict[str, Any]) -> Iterator[Figure]:
    for name in ("nothing", *WORDS):
        if name in taken:
            yield Figure(f"time/{name}", taken[name]["during"]["low"] / taken[name]["before"]["low"], "times",
                         f"{WORDS.get(name, 'nothing put there')}: the emulated call's time in the original's, "
                         "lower quartiles")  # fmt: skip


def table(rows: dict[str, Any]) -> Iterator[Figure]:
    """Return what redirection adds to the functions of the paper's table 3."""
    for name, row in rows.items():
        before, added = row["before"], row["added"]
        most = min(PAPER[name], MOST_LONG if before > LONG else MOST_ANY)
        yield Figure(f"table3/{name}", 100 * added / before, "%",
                     f"{row['function']}: {before:.0f} instructions, {added:+.0f} redirected "
                     f"(the paper: {PAPER[name]} %)", most)  # fmt: skip
