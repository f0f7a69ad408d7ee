"""What the host's processes are doing, as /proc tells it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from dynamos_ng import host

#: Its first thread exits, and another one goes on.
HEADLESS = (
    "import ctypes, threading, time; threading.Thread(target=time.sleep, args=(60,)).start(); "
    "ctypes.CDLL(None).syscall(60, 0)"
)


def zombie(pid: int) -> bool:
    return ") Z " in Path(f"/proc/{pid}/stat").read_text()


def test_a_process_has_ended_when_its_last_thread_has() -> None:
    assert not host.is_ending(os.getpid())
    with subprocess.Popen([sys.executable, "-c", HEADLESS]) as headless:
        deadline = time.monotonic() + 60
        while not zombie(headless.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not host.is_ending(headless.pid)
        headless.send_signal(signal.SIGKILL)
        while not host.is_ending(headless.pid):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert zombie(headless.pid)
    assert host.is_ending(headless.pid), "it is gone"
