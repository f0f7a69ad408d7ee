"""The unit file under systemd itself: installed, started, reloaded, killed and stopped as an administrator would."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO_UPDATES, becomes

from dynamos_ng import control

pytestmark = pytest.mark.boot(cmdline="nokaslr lab.init=systemd")

NAME = "dynamosd.service"
UNIT = Path(control.__file__).with_name("systemd") / NAME
#: Where the README says that the checkout is to be.
CHECKOUT = Path("/opt/dynamos_ng")
Command = Callable[..., "subprocess.CompletedProcess[str]"]


def systemctl(*arguments: str) -> str:
    done = subprocess.run(["systemctl", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + journal()
    return done.stdout.strip()


def shown(name: str) -> str:
    """Return a property of the service."""
    return systemctl("show", "--value", "--property", name, NAME)


def journal() -> str:
    """Return what the service has written, each line after its priority."""
    written = subprocess.run(
        ["journalctl", "--unit", NAME, "--output=json"], capture_output=True, text=True, check=True
    ).stdout
    return "\n".join(f"{line['PRIORITY']} {line['MESSAGE']}" for line in map(json.loads, written.splitlines()))


@pytest.fixture
def service() -> Iterator[None]:
    """Install the service and start it; afterwards it has been stopped, and nothing of it is left."""
    unit = Path("/etc/systemd/system") / NAME
    options = Path("/etc/default/dynamosd")
    CHECKOUT.symlink_to("/dynamos")
    shutil.copy(UNIT, unit)
    # The host builds for its guests: their processors are slow.
    options.write_text('DYNAMOS_KBUILD=/run/lab/kbuild\nDYNAMOSD_OPTIONS="--view-group=adm --record=5"\n')
    systemctl("daemon-reload")
    systemctl("enable", "--now", NAME)
    yield
    systemctl("disable", "--now", NAME)
    assert (shown("ActiveState"), shown("Result")) == ("inactive", "success"), journal()
    for path in (CHECKOUT, unit, options):
        path.unlink()


def states() -> Any:
    return {update["name"]: update["state"] for update in control.call("status")["updates"]}


def test_the_unit_file_serves_an_administrator(service: None, cli: Command, tmp_path: Path) -> None:
    assert (shown("ActiveState"), shown("StatusText")) == ("active", "0 functions are loaded")
    assert control.call("ping")["pid"] == int(shown("MainPID"))
    assert control.SOCKET.group() == "adm"
    folder = tmp_path / "cmdline"
    shutil.copytree(DEMO_UPDATES / "cmdline", folder)
    done = cli("enable", folder)
    assert done.returncode == 0, done.stderr + journal()

    # At its start it builds, loads and activates what is enabled.
    systemctl("restart", NAME)
    becomes(states, {"cmdline": "redirected"})
    assert "edition=2" in Path("/proc/cmdline").read_text()

    systemctl("reload", NAME)
    becomes(lambda: (shown("ActiveState"), shown("SubState")), ("active", "running"))

    # It is killed: what it has done stays, systemd starts another one, and that one takes over.
    killed = shown("MainPID")
    systemctl("kill", "--signal=KILL", NAME)
    assert "edition=2" in Path("/proc/cmdline").read_text()
    becomes(lambda: shown("NRestarts"), "1")
    becomes(lambda: shown("ActiveState"), "active")
    assert shown("MainPID") != killed
    assert states() == {"cmdline": "redirected"}

    done = cli("disable", "cmdline")
    assert done.returncode == 0, done.stderr
    done = cli("unload", "cmdline", "--timeout", "60")
    assert done.returncode == 0, done.stderr
    assert "edition=2" not in Path("/proc/cmdline").read_text()
    said = journal()
    assert "6 unload name=cmdline" in said and "by root (UID 0)" in said
    assert not [line for line in said.splitlines() if line.startswith("3")], said
