"""Type 9, a function group: no task mixes editions, those that are inside the originals when it begins least of all."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import shutil
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLES, entered, named

from dynamos_ng import control
from dynamos_ng.demo import load as work

UPDATE = "type09_busy_text"
CLASS = 7
libc = ctypes.CDLL(None, use_errno=True)

USERFAULTFD = 323 if platform.machine() == "x86_64" else 374
UFFDIO_API, UFFDIO_REGISTER, UFFDIO_COPY = 0xC018AA3F, 0xC020AA00, 0xC028AA03
MISSING = 1


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[float], Path]]:
    """Give a program that runs for so many seconds."""
    path = tmp_path / "program"
    shutil.copy("/bin/sleep", path)
    running: list[subprocess.Popen[bytes]] = []

    def run(seconds: float) -> Path:
        running.append(subprocess.Popen([path, str(seconds)]))
        return path

    yield run
    for one in running:
        one.kill()
        one.wait()


def open_for_writing(path: Path) -> int:
    """Return 0, or the errno."""
    try:
        os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        return error.errno or -1
    return 0


class PathNotThere:
    """A path in memory that is not there: who hands it to the kernel sleeps until it comes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._fd = libc.syscall(USERFAULTFD, os.O_CLOEXEC)
        assert self._fd >= 0, os.strerror(ctypes.get_errno())
        fcntl.ioctl(self._fd, UFFDIO_API, struct.pack("=QQQ", 0xAA, 0, 0))
        fcntl.ioctl(self._fd, UFFDIO_REGISTER, struct.pack("=QQQQ", self.address, mmap.PAGESIZE, MISSING, 0))

    def come(self) -> None:
        page = ctypes.create_string_buffer(os.fsencode(self._path), mmap.PAGESIZE)
        place = ctypes.addressof(page)
        fcntl.ioctl(self._fd, UFFDIO_COPY, struct.pack("=QQQQq", self.address, place, mmap.PAGESIZE, 0, 0))
        os.close(self._fd)


class Opener(threading.Thread):
    """A thread that opens for writing what is at an address; `result` is 0 or an errno, once it is over."""

    def __init__(self, address: int) -> None:
        super().__init__()
        self._address = address
        self.tid = 0
        self.result: int | None = None

    def run(self) -> None:
        self.tid = threading.get_native_id()
        fd = libc.open(ctypes.c_void_p(self._address), os.O_WRONLY)
        self.result = ctypes.get_errno() if fd < 0 else 0


@contextmanager
def asleep_in_open(path: Path) -> Iterator[tuple[Opener, PathNotThere]]:
    """Start a thread that sleeps in do_sys_openat2(), before that calls do_filp_open()."""
    missing = PathNotThere(path)
    opener = Opener(missing.address)
    opener.start()
    deadline = time.monotonic() + 30
    while not opener.tid or "userfault" not in Path(f"/proc/self/task/{opener.tid}/wchan").read_text():
        assert time.monotonic() < deadline, "it does not sleep"
        time.sleep(0.05)
    try:
        yield opener, missing
    finally:
        opener.join(60)


def keep_opening(path: Path, end: int) -> None:
    """Report each sort of error that opening gives, for ever."""
    seen: set[int] = set()
    while True:
        code = open_for_writing(path)
        if code not in seen:
            seen.add(code)
            os.write(end, struct.pack("=i", code))


def where() -> Any:
    return control.call("phase", name=UPDATE)


def until(wanted: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not wanted():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def test_a_group_never_mixes_within_one_task(
    loaded: Callable[[Path], Any], program: Callable[[float], Path], cli: Callable[..., Any]
) -> None:
    path = program(1000)
    assert open_for_writing(path) == errno.ETXTBSY
    end_read, end_write = os.pipe()
    loaded(EXAMPLES / "type09-busy-text")
    control.call("policy_process", pid=os.getpid(), policy_class=CLASS)
    openers = [lambda: keep_opening(path, end_write)] * 3
    try:
        with work.forked(*openers), asleep_in_open(path) as (opener, missing):
            for _ in range(3):  # there and back while others open
                control.call("activate", name=UPDATE, classes=[CLASS])
                assert where()["consistent"]
                assert where()["pinned"] >= 1, "who is asleep in the original"
                shown = " ".join(cli("status").stdout.split())
                assert "[enabling...]" in shown
                assert "tasks keep to v1 until they leave the originals" in shown
                control.call("deactivate", name=UPDATE, wait=60.0)
            control.call("activate", name=UPDATE, classes=[CLASS])

            # Everybody else in the class has the new edition at once.
            brief = Path(shutil.copy("/bin/sleep", path.with_name("brief")))
            busy = subprocess.Popen([brief, "0.5"])
            threading.Thread(target=busy.wait).start()
            assert open_for_writing(brief) == 0, "it waited until the program had ended"

            before = entered(named("do_filp_open", "do_file_open"))
            missing.come()
            opener.join(60)
            assert opener.result == errno.ETXTBSY, "its caller knows no other"
            assert entered(named("do_filp_open", "do_file_open")) > before
            until(lambda: where()["pinned"] == 0, "somebody is still kept to v1")

            # A task that waits within edition 2 is not left alone with an original.
            waiting = work.fork(lambda: os._exit(open_for_writing(path)))
            until(lambda: "nanosleep" in Path(f"/proc/{waiting}/wchan").read_text()
                  or "msleep" in Path(f"/proc/{waiting}/wchan").read_text(), "it does not wait")  # fmt: skip
            with pytest.raises(control.Remote, match=f"(?s)still in use.*stays active.*TID {waiting} "):
                control.call("deactivate", name=UPDATE, wait=0.1)
            assert control.call("status")["updates"][0]["state"] == "redirected"
            control.call("deactivate", name=UPDATE, wait=60.0)
            assert os.waitstatus_to_exitcode(os.waitpid(waiting, 0)[1]) == errno.ETXTBSY
        assert open_for_writing(path) == errno.ETXTBSY
    finally:
        control.call("policy_process", pid=os.getpid(), policy_class=0)
        os.close(end_write)
    with os.fdopen(end_read, "rb") as reports:
        assert {code for (code,) in struct.iter_unpack("=i", reports.read())} == {errno.ETXTBSY}
    control.call("unload", name=UPDATE, wait=60.0)
