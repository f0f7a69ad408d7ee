"""Updates that take effect at boot, and the guard: the daemon is killed, and as much is left as a boot leaves."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon, write_update

from dynamos_ng import boot, control, modules
from dynamos_ng.demo import load as work
from dynamos_ng.device import Device
from dynamos_ng.errors import Busy

NAME = "bootee"
VERSION = Path("/proc/version")
NOTES = boot.STATE / "young.json"
SOURCE = """
#include <linux/seq_file.h>
int version_proc_show_v2(struct seq_file *m, void *v);
int version_proc_show_v2(struct seq_file *m, void *v) { seq_puts(m, "2"); return 0; }
"""


def until(wanted: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 200
    while not wanted():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def told() -> Any:
    """Return what is told of the update that is enabled."""
    return next(update for update in control.call("status")["enabled"] if update["name"] == NAME)


def attempts() -> int:
    return int(json.loads(NOTES.read_text())[NAME])


def retired(device: Device, module: str) -> bool:
    """Retire an update, unless an earlier call has left something of it on our stack."""
    work.stir()
    try:
        device.retire(module)
    except Busy:
        return False
    return True


@pytest.fixture
def die(daemon: Daemon) -> Callable[[], None]:
    """Kill the daemon, and leave of the update what a reboot leaves of it: nothing."""

    def dies() -> None:
        daemon.kill()
        if modules.live(f"dynamos_{NAME}"):
            with Device() as device:
                (update,) = (one for one in device.updates() if one.module == f"dynamos_{NAME}")
                functions = [one for one in device.functions() if one.update == update.module]
                device.deactivate(functions, update.id)
                until(lambda: retired(device, update.module), "it is still in use")
            modules.unload(update.module)

    return dies


def test_an_enabled_update_is_there_at_boot_unless_the_machine_dies_of_it(
    daemon: Daemon, cli: Callable[..., Any], die: Callable[[], None], tmp_path: Path
) -> None:
    untouched = VERSION.read_text()
    folder = write_update(tmp_path / NAME, {"version_proc_show": [2]}, SOURCE)
    enabled = cli("enable", folder)
    assert (enabled.returncode, enabled.stderr) == (0, "")
    assert enabled.stdout.startswith(f"{NAME}: [enabled at boot], takes effect whenever dynamosd starts")
    assert VERSION.read_text() == untouched
    try:
        for attempt in (1, 2):
            die()
            daemon.start()
            until(lambda: VERSION.read_text() == "2", "it did not take effect")
            until(lambda: control.call("status")["updates"][0]["state"] == "redirected", "it is not told of")
            assert attempts() == attempt
            assert told()["trouble"] == ""
        die()
        daemon.start()
        until(lambda: bool(told()["trouble"]), "it is not held back")
        shown = " ".join(cli("status").stdout.split())
        assert "not active: held back: 2 times the machine or the daemon died within 5 minutes" in shown
        assert f"to let it try again: dynamos enable {folder}; to give it up: dynamos disable {NAME}" in shown
        assert control.call("status")["updates"] == []
        assert VERSION.read_text() == untouched

        # Enabled again, and a daemon that ends in peace.
        assert cli("enable", folder).returncode == 0
        assert told()["trouble"] == ""
        daemon.stop()
        assert json.loads(NOTES.read_text()) == {}
        daemon.start()
        until(lambda: VERSION.read_text() == "2", "it did not take effect")
    finally:
        until(lambda: control.call("ping")["pid"] > 0, "no daemon")
        assert cli("disable", NAME).returncode == 0
        if modules.live(f"dynamos_{NAME}"):
            control.call("unload", name=NAME, wait=60.0)
    assert control.call("status")["enabled"] == []
    assert json.loads(NOTES.read_text()) == {}
    assert VERSION.read_text() == untouched


def test_what_is_wrong_is_said(daemon: Daemon, cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = write_update(tmp_path / NAME, {"version_proc_show": [2]}, SOURCE)
    (source,) = folder.glob("*.c")
    source.chmod(0o666)
    refused = cli("enable", folder)
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"dynamos: {source}: others than root may write there")
    assert cli("enable", tmp_path / "nothing").returncode == 2
    refused = cli("disable", "nobody")
    assert (refused.returncode, refused.stderr) == (
        2, "dynamos: nobody: this update is not enabled; enabled: none\n"
    )  # fmt: skip
    boot.UPDATES.mkdir(parents=True, exist_ok=True)
    damaged = boot.UPDATES / "damaged.toml"
    damaged.write_text("folder = 7\n")
    try:
        assert f"{damaged}: folder: the absolute path" in " ".join(cli("status").stdout.split())
    finally:
        damaged.unlink()
