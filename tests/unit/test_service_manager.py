"""What a service manager is told: by real sockets, without a kernel that is changed."""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamos_ng import service

UNIT = Path(service.__file__).with_name("systemd") / "dynamosd.service"


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """Listen as a service manager does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(30)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
        yield sock


class _Answer(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        if self.server.answers.is_set():  # type: ignore[attr-defined]
            self.rfile.readline()
            self.wfile.write(b'{"result": {}}\n')


def test_the_watchdog_is_fed_only_while_the_daemon_answers(
    manager: socket.socket, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "control"
    with socketserver.UnixStreamServer(str(path), _Answer) as server:
        server.answers = answers = threading.Event()  # type: ignore[attr-defined]
        answers.set()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        with service.Watchdog(path):
            assert [manager.recv(100) for _ in range(3)] == [b"WATCHDOG=1"] * 3
            answers.clear()
            while not caplog.records:  # it is noticed
                manager.setblocking(False)
                try:
                    manager.recv(100)
                except BlockingIOError:
                    threading.Event().wait(0.01)
            said = len(caplog.records)
            while len(caplog.records) < said + 3:
                threading.Event().wait(0.01)
            left = []
            while True:
                try:
                    left.append(manager.recv(100))
                except BlockingIOError:
                    break
            assert len(left) <= 1, "at most the one that was under way"
            answers.set()
            manager.settimeout(30)
            assert manager.recv(100) == b"WATCHDOG=1"
        server.shutdown()
        thread.join()
    assert "the daemon does not answer itself" in caplog.text


@pytest.mark.parametrize(("name", "value"), [("WATCHDOG_USEC", ""), ("WATCHDOG_PID", "1")])
def test_a_watchdog_of_somebody_else_is_not_fed(
    manager: socket.socket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    before = threading.active_count()
    with service.Watchdog(tmp_path / "nobody"):
        assert threading.active_count() == before


def test_without_a_service_manager_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    service.notify(READY=1)


def test_a_manager_that_has_gone_is_no_failure(manager: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    Path(os.environ["NOTIFY_SOCKET"]).unlink()
    service.notify(READY=1)
    assert "the service manager does not hear" in caplog.text


def test_lines_carry_journalds_priorities() -> None:
    record = logging.LogRecord("dynamosd", logging.WARNING, "", 0, "one\ntwo", (), None)
    assert service.Priorities().format(record) == "<4>one\n<4>two"


def test_the_unit_file_says_what_the_daemon_does(tmp_path: Path) -> None:
    text = UNIT.read_text()
    assert re.search(r"^Type=notify$", text, re.MULTILINE)
    assert re.search(r"^WatchdogSec=", text, re.MULTILINE)
    if systemd := shutil.which("systemd-analyze"):
        # The daemon need not be installed where this is looked at.
        copy = tmp_path / UNIT.name
        copy.write_text(text.replace("ExecStart=dynamosd", "ExecStart=/bin/true"))
        done = subprocess.run([systemd, "verify", copy], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")
