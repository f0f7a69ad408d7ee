"""Table 1, type 11: a pipe that much was written to gets a larger buffer, each pipe on its own."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dynamos_ng import bpf, control
from dynamos_ng.adaptation import PINS
from dynamos_ng.demo import load as work

pytestmark = pytest.mark.everywhere

EXAMPLE = Path(__file__).parents[2] / "dynamos_ng" / "examples" / "type11-pipe"
SMALL, LARGE = 64 * 1024, 256 * 1024
BLOCK = 4096


@contextmanager
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    try:
        yield ends
    finally:
        for end in ends:
            os.close(end)


def size(end: int) -> int:
    return fcntl.fcntl(end, fcntl.F_GETPIPE_SZ)


def carry(ends: tuple[int, int], blocks: int) -> None:
    """Write and read so many blocks, and look at what comes out."""
    for number in range(blocks):
        block = number.to_bytes(4, "little") * (BLOCK // 4)
        os.write(ends[1], block)
        assert os.read(ends[0], BLOCK) == block


def editions() -> dict[int, int]:
    """Return how often each edition of the writing function was entered."""
    (update,) = control.call("status")["updates"]
    return {use["number"]: use["entered"] for use in update["functions"][0]["uses"]}


def test_a_busy_pipe_grows_and_the_others_do_not(loaded: Callable[[Path], Any], cli: Callable[..., Any]) -> None:
    (function,) = loaded(EXAMPLE)["functions"]
    assert function["adaptation"]["program"], "it is attached by the load"
    (pinned,) = (PINS / "dynamos_type11_pipe" / "pipe").iterdir()
    assert pinned.name == "written"
    with pipe() as early:
        carry(early, 40)
        assert size(early[0]) == SMALL, "not activated yet"
        control.call("activate", name="type11-pipe")
        before = editions()[2]
        with pipe() as busy, pipe() as quiet, work.Pipes(3) as others:
            carry(busy, SMALL // BLOCK)
            carry(quiet, 3)
            assert (size(busy[0]), size(quiet[0])) == (SMALL, SMALL), "64 KB are not more than 64 KB"
            os.write(busy[1], b"kept")
            assert size(busy[0]) == LARGE
            assert os.read(busy[0], 10) == b"kept"
            carry(busy, 40)
            carry(quiet, 3)
            assert (size(busy[0]), size(quiet[0])) == (LARGE, SMALL)
            deadline = time.monotonic() + 120
            while editions()[2] - before < 1 + 3:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            moved, intact = others.finish()
            assert intact
            assert moved > 3 * SMALL
            assert editions()[2] - before == 1 + 3, "once for each busy pipe"
        assert size(early[0]) == SMALL, "what was written before the activation does not count"
        with pipe() as shrunk:
            fcntl.fcntl(shrunk[0], fcntl.F_SETPIPE_SZ, 4 * BLOCK)
            os.write(shrunk[1], b"a" * 100)
            for _ in range(30):
                os.write(shrunk[1], b"b" * 2000)
                os.read(shrunk[0], 2000)
            for _ in range(3):
                os.write(shrunk[1], b"c" * 2000)
            assert size(shrunk[0]) == LARGE
            left = os.read(shrunk[0], LARGE)
            assert left == b"b" * 100 + b"c" * 6000, "what was in it is kept, in order"
        control.call("deactivate", name="type11-pipe")
        with pipe() as plain:
            carry(plain, 40)
            assert size(plain[0]) == SMALL
            fd = bpf.open_pin(pinned)
            try:
                assert bpf.next_key(fd, None, 16) is not None, "bytes by pipe are for everybody to see"
            finally:
                os.close(fd)
    assert "pipe_grows) chooses its editions" in cli("status").stdout
    control.call("unload", name="type11-pipe", wait=60.0)
    assert not (PINS / "dynamos_type11_pipe").exists()
