"""Whatever fails, and whenever: nothing is half done, and the way back works."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLES, Daemon, named, write_update

from dynamos_ng import control
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work
from dynamos_ng.device import Device

FAIL = Path("/sys/module/dynamos/parameters/fail")
#: More steps than any request has.
MOST = 60
CPU = Path("/sys/devices/system/cpu/cpu1/online")


def state(name: str) -> tuple[str, ...]:
    """Return what an update's functions are, which is the same for all of them."""
    return tuple({s["function"]["state"] for u in control.call("status")["updates"] if u["name"] == name
                  for s in u["functions"]})  # fmt: skip


def failing(call: Callable[[], Any], legal: Callable[[], bool]) -> int:
    """Call with each of its steps failing in turn until it succeeds; return how many steps could fail."""
    for step in range(1, MOST):
        FAIL.write_text(str(step))
        try:
            call()
        except control.Remote as error:
            assert "internal error" not in str(error)
            assert str(error).count("\n") == 0
            assert FAIL.read_text() == "0\n", f"it failed for another reason: {error}"
            assert legal(), f"after the failure of step {step}: {error}"
        else:
            left = int(FAIL.read_text())
            FAIL.write_text("0")
            assert legal()
            return step - (left > 0)  # what fails once the change is made is told, and no failure
    raise AssertionError("it fails for ever")


@pytest.mark.parametrize("kind", ["", "consistent", "phased"])
def test_each_step_may_fail(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    functions: dict[str, list[int]] = {name: [] for name in ("cmdline_proc_show", "version_proc_show")}
    source = ""
    if kind == "phased":
        functions = {"version_proc_show": [2, 3]}
        source = """
#include <linux/seq_file.h>
int version_proc_show_v2(struct seq_file *m, void *v);
int version_proc_show_v3(struct seq_file *m, void *v);
int version_proc_show_v2(struct seq_file *m, void *v) { seq_puts(m, "2"); return 0; }
int version_proc_show_v3(struct seq_file *m, void *v) { seq_puts(m, "3"); return 0; }
"""
    folder = write_update(tmp_path / "faulty", functions, source)
    if kind:
        text = (folder / "update.toml").read_text()
        (folder / "update.toml").write_text(f"{kind} = true\n{text}")
    module = str(build(folder, tmp_path))
    untouched = Path("/proc/version").read_text()

    def loaded() -> bool:
        names = Path("/proc/modules").read_text()
        with Device() as device:
            return any(f.update == "dynamos_faulty" for f in device.functions()) == ("dynamos_faulty " in names)

    def settled() -> None:
        """Wait until the kernel makes no stops of its own, which would be the steps that fail."""
        deadline = time.monotonic() + 60
        while control.call("phase", name="faulty")["phase"] == 1:
            assert time.monotonic() < deadline, "it stays in phase 1"
            time.sleep(0.1)

    try:
        assert failing(lambda: control.call("load", path=module, watch=False), loaded) >= 3
        assert failing(lambda: control.call("activate", name="faulty"),
                       lambda: len(state("faulty")) == 1 and state("faulty") != ("draining",)) >= 4  # fmt: skip
        assert state("faulty") == ("redirected",)
        assert Path("/proc/version").read_text() == ("2" if kind == "phased" else untouched)
        settled()
        assert failing(lambda: control.call("deactivate", name="faulty"), lambda: len(state("faulty")) == 1) >= 2
        assert state("faulty") == ("draining",)
        control.call("activate", name="faulty")
        settled()
        assert failing(lambda: control.call("unload", name="faulty", wait=30.0),
                       lambda: state("faulty") in ((), ("redirected",))) >= 2  # fmt: skip
        assert not Path("/sys/module/dynamos_faulty").exists()
    finally:
        FAIL.write_text("0")
        if Path("/sys/module/dynamos_faulty").exists():
            control.call("unload", name="faulty", wait=30.0)
    assert Path("/proc/version").read_text() == untouched


def test_a_processor_comes_and_goes(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    """While groups are switched and stacks are walked."""
    hot = [named(name, f"anon_{name}") for name in ("pipe_read", "pipe_write", "vfs_read")]
    loaded(write_update(tmp_path / "hotplug", {name: [] for name in hot}))
    stop = threading.Event()
    turns = 0

    def plug() -> None:
        nonlocal turns
        while not stop.is_set():
            CPU.write_text("0")
            CPU.write_text("1")
            turns += 1

    plugger = threading.Thread(target=plug)
    with work.Pipes(2) as pipes:
        plugger.start()
        try:
            for _ in range(10):
                control.call("activate", name="hotplug")
                control.call("quiescence", function=hot[0])
                control.call("deactivate", name="hotplug")
        finally:
            stop.set()
            plugger.join()
        moved, intact = pipes.finish()
    assert intact
    assert moved > 0
    assert turns >= 2
    assert CPU.read_text() == "1\n"
    control.call("unload", name="hotplug", wait=60.0)


def test_the_daemon_may_be_killed_at_any_moment(daemon: Daemon) -> None:
    """In the midst of a change; the next one finds a state that is in the table, and goes on from there."""
    folder = EXAMPLES / "type09-busy-text"
    module = build(folder, Path("/tmp"))
    dice = random.Random(9)
    control.call("load", path=str(module), watch=False)

    def there_and_back() -> None:
        while True:
            try:
                control.call("activate", name="type09-busy-text", classes=[3])
                control.call("deactivate", name="type09-busy-text", wait=20.0)
            except Exception:
                return

    for _ in range(4):
        client = work.fork(there_and_back)
        time.sleep(dice.uniform(0.05, 1.0))
        daemon.kill()
        os.waitpid(client, 0)
        daemon.start()
        assert state("type09_busy_text") in (("loaded",), ("redirected",), ("draining",))
        if state("type09_busy_text") == ("redirected",):
            control.call("deactivate", name="type09-busy-text", wait=60.0)
    control.call("unload", name="type09-busy-text", wait=60.0)
    assert control.call("status")["updates"] == []
