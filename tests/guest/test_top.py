"""The dashboard of a running daemon, and a recording of it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Daemon, write_update

from dynamos_ng import control, journal
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work
from dynamos_ng.errors import Refusal
from dynamos_ng.image import Kernel
from dynamos_ng.lab.mass_guest import THREADS, ranked
from dynamos_ng.rewrite.clone import examine

CLI = Callable[..., subprocess.CompletedProcess[str]]
MANY, MANY_THOROUGH = 40, 200
#: Small ones are examined sooner.
SIZE_MAX = 80


def many(count: int) -> list[str]:
    """Return functions that can be cloned; most kernels do not call them often."""
    kernel = Kernel.live()
    found: list[str] = []
    every = Counter(kernel.function_names())
    for name in ranked((name for name, times in every.items() if times == 1 and name not in THREADS), 1):
        try:
            if (function := kernel.function(name)).size <= SIZE_MAX:
                examine(kernel, function)
                found.append(name)
        except Refusal:
            continue
        if len(found) == count:
            break
    return found


class Terminal:
    """`dynamos top` in a terminal of 80x24; what it has written since a key was sent can be waited for."""

    def __init__(self, *arguments: str) -> None:
        self._ours, its = os.openpty()
        fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("=4H", 24, 80, 0, 0))
        self._written = ""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "dynamos_ng", "top", *arguments], stdin=its, stdout=its, stderr=its,
            env={**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8"},
        )  # fmt: skip
        os.close(its)

    def keys(self, text: str) -> None:
        self._written = ""
        os.write(self._ours, text.encode())

    def until(self, pattern: str) -> None:
        """Wait until something that matches is written."""
        deadline = time.monotonic() + 120
        while not re.search(pattern, self._written):
            assert time.monotonic() < deadline, self._written
            if select.select([self._ours], [], [], 1)[0]:
                self._written += os.read(self._ours, 1 << 16).decode(errors="replace")
                self._written = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self._written[-20000:])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def terminal(daemon: Daemon) -> Iterator[Terminal]:
    one = Terminal("--interval", "0.5")
    yield one
    one.close()


def test_many_redirected_functions_are_shown_found_and_looked_into(
    daemon: Daemon, cli: CLI, tmp_path: Path, terminal: Terminal, thorough: bool
) -> None:
    count = MANY_THOROUGH if thorough else MANY
    called = "cmdline_proc_show"
    names = [*[name for name in many(count) if name != called][: count - 1], called]
    module = build(write_update(tmp_path / "mass", {name: [] for name in names}), tmp_path)
    control.call("load", path=str(module), watch=False)
    try:
        control.call("activate", name="mass")
        with work.forked(read_on):
            shown = cli("top", "--once", "--interval", "1")
            told = json.loads(cli("top", "--once", "--json").stdout)
            terminal.until("[0-9] calls/s, ")
            terminal.keys("/" + called)
            terminal.until(r"1 function; enter keeps it")
            terminal.keys("\r")
            terminal.until(rf"> {called} +mass +v1 +[0-9.k]+ +[0-9]")
            terminal.keys("\r")
            terminal.until(rf"{called} \[enabled\] of update mass[\s\S]*quiescence: ")
            terminal.keys("s")
            terminal.until("sampled stacks with a frame inside: [0-9]")
            daemon.kill()
            terminal.until("! no daemon answers on ")
            daemon.start("--record", "0.2")
            terminal.keys("\x1b")
            terminal.until(r"dynamosd [0-9.]+ % CPU, [0-9]+ MB; top [0-9.]+ % CPU")
            terminal.until(rf"> {called} +mass +v1 +[0-9.k]+ ")
            terminal.keys("q")
            assert terminal.process.wait(60) == 0
        control.call("deactivate", name="mass")
    finally:
        daemon.kill()  # no other test wants one that records
        daemon.start()
        control.call("unload", name="mass", wait=60.0)
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].startswith(f"1 update, {count} functions, ")
    for name in names:
        assert any(line.startswith(f"  {name[:20]}") for line in lines), name
    (rate,) = (line.split()[3] for line in lines if line.split()[:1] == [called])
    assert re.fullmatch(r"[0-9.]+k?", rate) and rate != "0"
    (update,) = told["updates"]
    assert len(update["functions"]) == count
    assert told["daemon"]["memory"] > 1_000_000
    assert [event["what"] for event in told["events"]][-1] == "activate mass"
    replayed = cli("top", "--replay", journal.FOLDER, "--json").stdout.splitlines()
    assert any(
        update["name"] == "mass" and len(update["functions"]) == count
        for line in replayed for update in json.loads(line)["updates"]
    )  # fmt: skip
    assert cli("top", "--replay", journal.FOLDER, "--once").returncode == 0


def read_on() -> None:
    """Read /proc/cmdline for ever."""
    while True:
        Path("/proc/cmdline").read_bytes()
        time.sleep(0.005)
