"""What guest tests share: a running daemon, and updates built for the guest's kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamos_ng import control
from dynamos_ng.errors import DynamosError

DEMO_UPDATES = Path(__file__).parents[2] / "dynamos_ng" / "demo" / "updates"
START_SECONDS = 300


class Daemon:
    """A dynamosd of ours, which tests may kill and start again."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "dynamos_ng.daemon"])
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                assert control.call("ping")["pid"] == self.process.pid
                return
            except DynamosError:
                assert self.process.poll() is None, "dynamosd ended at once"
                assert time.monotonic() < deadline, "dynamosd does not answer"
                time.sleep(0.1)

    def kill(self) -> None:
        """Kill it as the kernel's OOM killer would."""
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        assert self.process is not None
        self.process.terminate()
        assert self.process.wait(60) == 0


@pytest.fixture(scope="session")
def daemon() -> Iterator[Daemon]:
    """Run one daemon for all tests; whatever a test left loaded would fail the last check."""
    one = Daemon()
    one.start()
    yield one
    left = [update["name"] for update in control.call("status")["updates"]]
    one.stop()
    assert left == []


@pytest.fixture
def loaded(daemon: Daemon, tmp_path: Path) -> Iterator[Callable[[Path], Any]]:
    """Build and load updates; unload them after the test, however it ended."""
    from dynamos_ng.build.update import build

    names: list[str] = []

    def load(folder: Path) -> Any:
        update = control.call("load", path=str(build(folder, tmp_path)))
        names.append(update["name"])
        return update

    yield load
    for name in reversed(names):
        if any(update["name"] == name for update in control.call("status")["updates"]):
            control.call("unload", name=name, wait=60.0)


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `dynamos` as an administrator would."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dynamos_ng", *map(str, arguments)],
            capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"}, timeout=200,
        )  # fmt: skip

    return run


def write_update(folder: Path, functions: dict[str, list[int]], source: str = "") -> Path:
    """Write an update's folder: editions by function, and one C source."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = [
        f'[[function]]\nname = "{name}"\neditions = {editions}\n' for name, editions in functions.items()
    ]
    (folder / "update.toml").write_text(f'name = "{folder.name}"\n' + "".join(tables))
    if source:
        (folder / f"{folder.name}.c").write_text(source)
    return folder
