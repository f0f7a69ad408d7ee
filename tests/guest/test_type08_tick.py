"""Type 8, interrupt handler: the timer interrupt accounts the time of one class otherwise."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import EXAMPLES, of_class, parameter

from dynamos_ng import control
from dynamos_ng.demo import load as work

#: Of Debian's kernels.
HZ = 250


def nice() -> int:
    """Return the ticks that the whole machine spent in niced processes."""
    return int(Path("/proc/stat").read_text().split()[2])


def user(pid: int) -> int:
    """Return the ticks that a process spent in user mode."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11])


def spin() -> None:
    while True:
        pass


def wait(until: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def after(pid: int, ticks: int) -> int:
    """Let a process compute for so many ticks; return by how much the machine's nice time grew meanwhile."""
    began, before = user(pid), nice()
    wait(lambda: user(pid) - began >= ticks)
    return nice() - before


def test_the_timer_interrupt_tells_a_class_apart(loaded: Callable[[Path], Any]) -> None:
    loaded(EXAMPLES / "type08-tick")
    ticks, elsewhere = (parameter("type08-tick", name) for name in ("ticks", "elsewhere"))
    # As many as there are CPUs, and one more: each is interrupted while it computes.
    with work.forked(*[spin] * (len(os.sched_getaffinity(0)) + 1)) as (pid, *_):
        assert after(pid, 20) == 0, "nobody is nice here"
        control.call("activate", name="type08-tick", classes=[5])
        assert after(pid, 10) == 0
        assert int(ticks.read_text()) == 0
        with of_class(pid, 5):
            began, before = int(ticks.read_text()), nice()
            wait(lambda: nice() - before >= 10)
            grown = nice() - before
            counted = int(ticks.read_text()) - began
            # The interrupt comes HZ times in a second, and /proc counts hundredths, of which one may not be full.
            assert counted * 100 > (grown - 1) * HZ, "all of it came through edition 2"
            assert int(elsewhere.read_text()) == 0, "edition 2 runs in hard interrupts alone"
        control.call("deactivate", name="type08-tick")
        counted = int(ticks.read_text())
        assert after(pid, 20) == 0
        assert int(ticks.read_text()) == counted
    control.call("unload", name="type08-tick", wait=60.0)
