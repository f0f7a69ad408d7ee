"""Type 10, function signature: what fsync(2) and fdatasync(2) call takes a further argument, and they pass it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import EXAMPLES, of_class, parameter

from dynamos_ng import control
from dynamos_ng.demo import load as work

CLASS = 6


def counted() -> tuple[int, int]:
    """Return how many calls of fsync and of fdatasync new callers have passed on."""
    names = ("fsync", "fdatasync")
    return tuple(int(parameter("type10-signature", name).read_text()) for name in names)  # type: ignore[return-value]


def test_old_and_new_callers_at_work_together(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    file = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    ends = os.pipe()
    loaded(EXAMPLES / "type10-signature")

    def both() -> None:
        os.pwrite(file, b"some", 0)
        os.fsync(file)
        os.fdatasync(file)

    def refused(call: Callable[[int], object], fd: int) -> str:
        try:
            call(fd)
        except OSError as error:
            return errno.errorcode[error.errno or 0]
        return ""

    def odd() -> list[str]:
        """Return what becomes of calls for a pipe and for no file."""
        return [refused(call, fd) for call in (os.fsync, os.fdatasync) for fd in (ends[0], 999)]

    assert odd() == ["EINVAL", "EBADF"] * 2
    with work.repeated(both, both, odd):
        control.call("activate", name="type10-signature", classes=[CLASS])
        both()
        assert counted() == (0, 0), "all call the old function"
        with of_class(os.getpid(), CLASS):
            both()
            assert counted() == (1, 1), "we call the new one, and the others at work do not"
            os.fsync(file)
            assert counted() == (2, 1)
            assert odd() == ["EINVAL", "EBADF"] * 2
            assert counted() == (2, 1)
        both()
        assert counted() == (2, 1)
        control.call("deactivate", name="type10-signature")
        with of_class(os.getpid(), CLASS):
            both()
            assert counted() == (2, 1)
    control.call("unload", name="type10-signature", wait=60.0)
    for fd in (file, *ends):
        os.close(fd)
