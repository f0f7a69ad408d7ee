"""Type 6, quiescent single function: TIOCSTI is for administrators only."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import EXAMPLES, of_class

from dynamos_ng import control
from dynamos_ng.demo import load as work

NOBODY = 65534
#: Later kernels have a switch of their own.
SWITCH = Path("/proc/sys/dev/tty/legacy_tiocsti")


@contextmanager
def typist(uid: int) -> Iterator[tuple[int, Callable[[], int]]]:
    """Start a user's process on a terminal of its own; give its PID, and what has it fake a character (0 or errno)."""
    master, slave = pty.openpty()
    go_read, go_write = os.pipe()
    answer_read, answer_write = os.pipe()

    def run() -> None:
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)
        os.setuid(uid)
        while os.read(go_read, 1):
            try:
                fcntl.ioctl(slave, termios.TIOCSTI, b"x")
                os.write(answer_write, b"\0")
            except OSError as error:
                os.write(answer_write, bytes([error.errno or 255]))

    def fake() -> int:
        os.write(go_write, b".")
        return os.read(answer_read, 1)[0]

    with work.forked(run) as (pid,):
        yield pid, fake
    for fd in (master, slave, go_read, go_write, answer_read, answer_write):
        os.close(fd)


def test_who_may_type_for_others(loaded: Callable[[Path], Any]) -> None:
    if SWITCH.exists():
        SWITCH.write_text("1")
    loaded(EXAMPLES / "type06-tiocsti")
    with typist(NOBODY) as (pid, user), typist(NOBODY) as (_, other), typist(0) as (_, root):
        assert [user(), other(), root()] == [0, 0, 0]

        def terminals() -> None:
            ends = pty.openpty()
            assert termios.tcgetattr(ends[1])
            for end in ends:
                os.close(end)

        with work.repeated(terminals, terminals):
            control.call("activate", name="type06-tiocsti", classes=[4])
            assert [user(), other(), root()] == [0, 0, 0]
            with of_class(pid, 4):
                assert [user(), other(), root()] == [errno.EIO, 0, 0]
                control.call("policy_edition", function="tty_ioctl", policy_class=None, edition=2)
                assert [user(), other(), root()] == [errno.EIO, errno.EIO, 0]
            control.call("deactivate", name="type06-tiocsti")
            assert [user(), other(), root()] == [0, 0, 0]
    control.call("unload", name="type06-tiocsti", wait=60.0)
