"""dynamos.ko updates itself: its trampoline installer tells how long installing takes (the paper's own measurement)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import DEMO_UPDATES, EXAMPLES, unload

from dynamos_ng import control

PARAMETERS = Path("/sys/module/dynamos_self_timing/parameters")


def figure(name: str) -> int:
    return int((PARAMETERS / name).read_text())


def test_the_installer_times_itself(loaded: Callable[[Path], Any]) -> None:
    loaded(DEMO_UPDATES / "cmdline")
    loaded(EXAMPLES / "self-timing")
    control.call("activate", name="self-timing")
    assert (figure("installs"), figure("nanoseconds")) == (0, 0), "it was installed by the original"
    change = control.call("activate", name="cmdline")
    assert figure("installs") == 1
    assert figure("nanoseconds") > change["stop_ns"] > 0, "the whole call, and the work in its stop"
    print(f"installing took {figure('nanoseconds')} ns, {change['stop_ns']} of them in the stop")
    control.call("deactivate", name="cmdline")
    assert figure("installs") == 2
    control.call("deactivate", name="self-timing")
    assert figure("installs") == 3, "the edition takes its own trampoline away"
    control.call("activate", name="cmdline")
    assert figure("installs") == 3, "the original is back"
    unload("self-timing")
    assert not PARAMETERS.exists()
