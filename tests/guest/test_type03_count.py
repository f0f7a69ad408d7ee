"""Type 3, new variable of a single function: files opened, counted for one process alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import EXAMPLES, of_class, parameter

from dynamos_ng import control
from dynamos_ng.demo import load as work


def opens(times: int) -> None:
    for _ in range(times):
        os.close(os.open("/proc/self/stat", os.O_RDONLY))


def test_only_the_chosen_process_is_counted(loaded: Callable[[Path], Any]) -> None:
    loaded(EXAMPLES / "type03-count")
    opened = parameter("type03-count", "opened")
    with work.repeated(lambda: opens(5), lambda: opens(7)), work.reader_of("/proc/self/stat") as chosen:
        assert int(opened.read_text()) == 0
        control.call("activate", name="type03-count", classes=[2])
        opens(10)
        assert int(opened.read_text()) == 0, "nobody is of this class yet"
        with of_class(chosen.pid, 2):
            for count in range(1, 6):
                work.read_together(chosen)
                assert int(opened.read_text()) == count
        work.read_together(chosen)
        opens(10)
        assert int(opened.read_text()) == 5, "it is of no class any more"
        control.call("policy_edition", function="do_sys_openat2", policy_class=0, edition=2)
        opens(10)
        assert int(opened.read_text()) >= 15, "now everybody is counted"
        control.call("deactivate", name="type03-count")
        before = opened.read_text()
        opens(10)
        assert opened.read_text() == before
    control.call("unload", name="type03-count", wait=60.0)
