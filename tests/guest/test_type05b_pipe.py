"""Type 5b, new field as shadow data: new pipes count what is written into them; older ones do without."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import EXAMPLES

from dynamos_ng import control
from dynamos_ng.demo import load as work

PIPE_WRITTEN = 2 << 30 | 8 << 16 | ord("P") << 8 | 0xD7


def written(pipe: int) -> int | str:
    """Return what a pipe tells of itself, or the name of the error."""
    try:
        return int(struct.unpack("Q", fcntl.ioctl(pipe, PIPE_WRITTEN, bytes(8)))[0])
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def pipes_come_and_go() -> None:
    for end in os.pipe():
        os.close(end)


def shadows() -> int:
    return int(control.call("status")["updates"][0]["shadows"])


def test_new_pipes_count_and_old_ones_do_without(loaded: Callable[[Path], Any]) -> None:
    loaded(EXAMPLES / "type05b-pipe")
    older = os.pipe()
    assert written(older[0]) == "ENOTTY"
    with work.repeated(pipes_come_and_go), work.Pipes(3) as pipes:
        control.call("activate", name="type05b-pipe")
        newer = os.pipe()
        for pair in (older, newer):
            for size in (1, 10, 1000):
                os.write(pair[1], bytes(size))
                os.read(pair[0], size)
        assert written(newer[0]) == 1011
        assert written(older[0]) == "ENODATA", "it was born before the update"
        many = [os.pipe() for _ in range(50)]
        assert shadows() >= 51
        for end in (end for pair in many for end in pair):
            os.close(end)
        os.close(newer[0])
        os.close(newer[1])
        fresh = os.pipe()
        assert written(fresh[0]) == 0, "even at an old address a pipe begins anew"
        control.call("deactivate", name="type05b-pipe")
        assert written(fresh[0]) == "ENOTTY"
        assert shadows() == 0
        control.call("activate", name="type05b-pipe")
        assert written(fresh[0]) == "ENODATA", "what was known before is forgotten"
        os.close(fresh[0])
        os.close(fresh[1])
        control.call("deactivate", name="type05b-pipe")
        moved, intact = pipes.finish()
    assert intact
    assert moved > 0
    os.close(older[0])
    os.close(older[1])
    control.call("unload", name="type05b-pipe", wait=60.0)
