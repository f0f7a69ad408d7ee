"""unload --nudge: sleepers leave where that is harmless, and are named where it is not."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import named

from dynamos_ng import control
from dynamos_ng.demo import load as work

pytestmark = pytest.mark.everywhere

WATCHDOG = Path("/proc/sys/kernel/hung_task_timeout_secs")


def wchan(pid: int) -> str:
    return Path(f"/proc/{pid}/wchan").read_text()


def test_a_sleeper_begins_anew_in_the_original(cloned: Callable[..., None], cli: Callable[..., Any]) -> None:
    """And notices nothing: it gets the byte that it waited for."""
    function = named("pipe_read", "anon_pipe_read")
    cloned("nudged", function)
    with work.sleeping_reader() as sleeper:
        assert wchan(sleeper.pid) == f"{function}_v1"
        refused = cli("unload", "nudged", "--timeout", "1")
        assert (refused.returncode, f"TID {sleeper.pid}" in refused.stderr) == (1, True)
        done = cli("unload", "nudged", "--nudge", "--timeout", "60")
        assert done.returncode == 0, done.stderr
        assert control.call("status")["updates"] == []
        assert wchan(sleeper.pid) == function
        sleeper.wake()
        assert os.waitstatus_to_exitcode(os.waitpid(sleeper.pid, 0)[1]) == 0


def test_a_kernel_thread_is_left_alone_and_named(cloned: Callable[..., None], cli: Callable[..., Any]) -> None:
    cloned("left", "schedule_timeout")
    (pid,) = (int(path.parent.name) for path in Path("/proc").glob("[0-9]*/comm") if path.read_text() == "khungtaskd\n")
    WATCHDOG.write_text(WATCHDOG.read_text())  # it goes round once
    deadline = time.monotonic() + 60
    while True:
        held = cli("unload", "left", "--nudge", "--timeout", "1")
        if f"TID {pid} (khungtaskd" in held.stderr or time.monotonic() > deadline:
            break
    assert held.returncode == 1
    (line,) = (line for line in held.stderr.splitlines() if f"TID {pid} " in line)
    assert line.endswith("(not nudged: a kernel thread)")
    control.call("deactivate", name="left")  # else its next sleep is in the clone as well, for two minutes
    WATCHDOG.write_text(WATCHDOG.read_text())
    control.call("unload", name="left", wait=150.0, nudge=True)
