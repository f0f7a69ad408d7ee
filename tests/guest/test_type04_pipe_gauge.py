"""Type 4, a variable that a group keeps together, by a synchronised update in three phases."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLES, RELAY, pipe

from dynamos_ng import control
from dynamos_ng.demo import load as work

UPDATE = "type04_pipe_gauge"
PARAMETERS = Path("/sys/module/dynamos_type04_pipe_gauge/parameters")
SLEEPERS = 4


def number(name: str) -> int:
    return int((PARAMETERS / name).read_text())


def where() -> Any:
    return control.call("phase", name=UPDATE)


def until(wanted: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not wanted():
        assert time.monotonic() < deadline, f"{what}: {where()}"
        RELAY.write_bytes(b".")  # who passes the output on uses pipes too
        time.sleep(0.1)


def delaying() -> Any:
    """Return who is named as the one that keeps the update in phase 1."""
    deadline = time.monotonic() + 60
    while (task := where()["delayed"]) is None:
        assert time.monotonic() < deadline, "nobody is named"
        time.sleep(0.1)
    return task


def sleepers(stack: ExitStack) -> list[work.Sleeper]:
    return [stack.enter_context(work.sleeping_reader()) for _ in range(SLEEPERS)]


def elsewhere() -> list[Callable[[], object]]:
    """Ways to fall asleep on a stack that still has what an earlier sleep in a pipe has left there.

    None for a kernel without an unwinder, where that may be taken for a sleep in the pipe.
    """
    if os.uname().machine != "x86_64":
        return []
    quiet = os.eventfd(0)
    polled = select.poll()
    polled.register(quiet, select.POLLIN)
    return [
        polled.poll,
        lambda: select.select([quiet], [], []),
        lambda: os.eventfd_read(quiet),
        lambda: time.sleep(3600),
        signal.pause,
    ]


def lying() -> None:
    """What lies in one pipe is on the gauge, whatever else does."""
    end_read, end_write = os.pipe()
    try:
        for size in (100, 5000, 3):
            before = number("bytes_in_pipes")
            os.write(end_write, bytes(size))
            assert number("bytes_in_pipes") - before == size
        assert len(os.read(end_read, 4000)) == 4000
        assert number("bytes_in_pipes") - before == 3 - 4000
    finally:
        os.close(end_write)
        os.close(end_read)


def test_a_synchronised_update_of_pipes(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], thorough: bool
) -> None:
    loaded(EXAMPLES / "type04-pipe-gauge")
    refused = cli("phase", UPDATE, "--raise")
    assert (refused.returncode, "activate it first" in refused.stderr) == (2, True)
    with ExitStack() as stack:
        stack.enter_context(work.sleeping_reader())
        control.call("activate", name=UPDATE)
        control.call("phase", name=UPDATE, move="raise")
        control.call("deactivate", name=UPDATE)
    control.call("unload", name=UPDATE, wait=60.0)
    loaded(EXAMPLES / "type04-pipe-gauge")
    with work.Pipes(3) as pipes, ExitStack() as stack:
        in_originals = sleepers(stack)
        with pytest.raises(control.Remote, match="its phase chooses the editions"):
            control.call("activate", name=UPDATE, classes=[1])

        # Phase 1: sleepers in the originals keep it there, whatever is wanted.
        control.call("activate", name=UPDATE)
        assert (where()["phase"], where()["must_update"]) == (1, False), "what was wanted of it before is forgotten"
        control.call("phase", name=UPDATE, move="raise")
        pipes.flow(1.0)
        assert (where()["phase"], where()["must_update"]) == (1, True)
        task = delaying()  # one of ours, or another that reads or writes a pipe in this moment
        assert task["comm"] == Path(f"/proc/{task['pid']}/comm").read_text().strip()
        assert "[enabling...]" in cli("status").stdout
        in_second = sleepers(stack)
        for one in in_originals:
            one.wake()

        # Phases 2 and 3 follow by themselves; who slept in edition 2 wakes in the new code.
        with ExitStack() as others:
            for wait in elsewhere():
                others.enter_context(work.sleeping_reader(wait)).wake()
            until(lambda: where()["phase"] == 3, "phase 3 does not begin")
        woken = number("woken_in_new_code")
        for one in in_second:
            one.wake()
        until(lambda: number("woken_in_new_code") >= woken + SLEEPERS, "they did not wake in the new code")
        until(lambda: uses_of(f"{pipe()}_read", 1) == uses_of(f"{pipe()}_write", 1) == (0, 0), "edition 1 is used")

        size = 1 << 30 if thorough else 10_000_000
        pipes.carry(size)
        moved, intact = pipes.finish()
        assert intact
        assert moved >= size
    until(lambda: number("bytes_in_pipes") == 0, "the gauge does not return to nothing")
    lying()
    assert number("bytes_in_pipes") == 0

    # The way back: not past sleepers in edition 3, but with everything as it was.
    with ExitStack() as stack:
        in_third = sleepers(stack)
        with pytest.raises(control.Remote, match=f"(?s)still in use.*TID {in_third[0].pid} .*{pipe()}_read v3"):
            control.call("deactivate", name=UPDATE, wait=0.5)
        until(lambda: where()["phase"] == 3, "it went back all the same")
        control.call("phase", name=UPDATE, move="back")
        assert (where()["phase"], where()["must_update"]) == (2, False)
        time.sleep(0.5)
        assert where()["phase"] == 2, "nobody wants phase 3 any more"
        for one in in_third:
            one.wake()
    control.call("unload", name=UPDATE, wait=120.0)


def uses_of(function: str, edition: int) -> tuple[int, int]:
    """Return how often an edition was entered and left."""
    for update in control.call("status")["updates"]:
        for status in update["functions"]:
            if status["function"]["name"] == function:
                return next((use["entered"], use["exited"]) for use in status["uses"] if use["number"] == edition)
    raise AssertionError(function)
