"""The daemon as a service: it says how it is, works with the rights that its unit file leaves it, and does not grow."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from conftest import DEMO_UPDATES, START_SECONDS, Daemon

from dynamos_ng import control
from dynamos_ng.build.update import build
from dynamos_ng.cli import completion, parser

UNIT = Path(control.__file__).with_name("systemd") / "dynamosd.service"
GROUP = "dynamos-here"
#: What the daemon may grow by in thousands of requests; each one's own matter would be more.
GROWTH = 2 << 20


def rights() -> str:
    """Return the unit file's capabilities, for setpriv."""
    lines = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    return ",".join(["-all", *(f"+{name.removeprefix('CAP_').lower()}" for line in lines for name in line.split())])


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(START_SECONDS)
        yield sock


def heard(manager: socket.socket, field: str) -> dict[str, str]:
    """Return the next message that has a field."""
    while True:
        message = dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines())
        if field in message:
            return message


def test_a_service_manager_hears_how_it_is(daemon: Daemon, manager: socket.socket, tmp_path: Path) -> None:
    module = build(DEMO_UPDATES / "cmdline", tmp_path)
    subprocess.run(["groupadd", "--system", GROUP], check=True)
    daemon.stop()
    log = tmp_path / "log"
    with log.open("wb") as out:
        status = os.fstat(out.fileno())
        environment = {
            **os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "2000000",
            "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}",
        }  # fmt: skip
        service = subprocess.Popen(
            ["setpriv", "--bounding-set", rights(), "--no-new-privs", sys.executable, "-m", "dynamos_ng.daemon",
             "--view-group", GROUP],
            stderr=out, env=environment,
        )  # fmt: skip
    try:
        assert heard(manager, "READY")["STATUS"] == "0 functions are loaded"
        assert not int(re.search(r"CapBnd:\s+(\w+)", Path(f"/proc/{service.pid}/status").read_text())[1], 16) & 1 << 5  # type: ignore[index]
        for _ in range(2):
            heard(manager, "WATCHDOG")
        # With no more rights than these it does all of its work.
        control.call("load", path=str(module))
        control.call("activate", name="cmdline")
        control.call("policy_rule", comm="somebody", policy_class=1)
        assert control.call("quiescence", function="cmdline_proc_show", seconds=0.1)["probes"] is not None
        control.call("policy_rule", comm="somebody", policy_class=0)
        # Somebody at a shell need not know its name by heart.
        offered = subprocess.run(
            ["bash", "-c", "source /dev/stdin; COMP_WORDS=(dynamos unload cmd); COMP_CWORD=2; _dynamos; "
                           "echo ${COMPREPLY[@]}"],
            input=completion.script(parser()), capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert (offered.stdout, offered.stderr) == ("cmdline\n", "")
        control.call("unload", name="cmdline", wait=60.0)

        before = control.SOCKET.stat().st_gid
        subprocess.run(["groupmod", "--gid", str(before + 1000), GROUP], check=True)
        service.send_signal(signal.SIGHUP)
        assert int(heard(manager, "RELOADING")["MONOTONIC_USEC"]) > 0
        heard(manager, "READY")
        assert control.SOCKET.stat().st_gid == before + 1000
        subprocess.run(["groupdel", GROUP], check=True)
        service.send_signal(signal.SIGHUP)
        heard(manager, "RELOADING")
        heard(manager, "READY")
        assert control.SOCKET.stat().st_gid == before + 1000

        second = subprocess.run(
            [sys.executable, "-m", "dynamos_ng.daemon"], capture_output=True, text=True, check=False, timeout=200
        )
        assert second.returncode == 1
        assert "another dynamosd is running" in second.stderr

        service.terminate()
        heard(manager, "STOPPING")
        assert service.wait(60) == 0
    finally:
        service.kill()
        service.wait()
        daemon.start()
    lines = log.read_text().splitlines()
    assert not [line for line in lines if line.startswith("dynamosd")], "the journal has the name already"
    assert "<6>activate name=cmdline, by root (UID 0)" in lines
    assert any(line.startswith(f"<3>reload: {GROUP}: there is no such group") for line in lines)


def test_thousands_of_requests_do_not_make_it_grow(daemon: Daemon) -> None:
    assert daemon.process is not None
    process = psutil.Process(daemon.process.pid)

    def requests(count: int) -> None:
        lines = (b'{"verb": "ping"}\n', b'{"verb": "nothing"}\n', b"no request\n", b"x" * 50_000 + b"\n",
                 b'{"verb": "activate", "arguments": {"name": "nobody"}}\n',
                 b'{"verb": "policy_process", "arguments": {"pid": 4194303, "policy_class": 1}}\n')  # fmt: skip
        for number in range(count):
            with socket.socket(socket.AF_UNIX) as sock, sock.makefile("rb") as answers:
                sock.connect(str(control.SOCKET))
                sock.sendall(lines[number % len(lines)])
                if number % 7:  # else it leaves without having heard
                    assert set(json.loads(answers.readline())) & {"result", "error"}
        for _ in range(count // 100):
            control.call("status")

    requests(300)
    before, threads = process.memory_info().rss, process.num_threads()
    requests(2000)
    assert process.memory_info().rss - before < GROWTH
    assert process.num_threads() <= threads + 1
