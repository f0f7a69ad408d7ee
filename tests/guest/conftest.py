"""What guest tests share: a running daemon, and updates built for the guest's kernel."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from dynamos_ng import control, kprobes
from dynamos_ng.build.description import module_name
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work
from dynamos_ng.errors import DynamosError
from dynamos_ng.kprobes import tracefs

DEMO_UPDATES = Path(__file__).parents[2] / "dynamos_ng" / "demo" / "updates"
EXAMPLES = Path(__file__).parents[2] / "dynamos_ng" / "examples"
START_SECONDS = 550
#: What leads to the host.
named = work.named
RELAY = Path("/run/lab/output")


@cache
def pipe() -> str:
    """Return what the names of a pipe's functions begin with, and the demo's update of one: later kernels differ."""
    return named("pipe_read", "anon_pipe_read").removesuffix("_read")


class Daemon:
    """A dynamosd of ours, which tests may kill and start again."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, *options: str) -> None:
        self.process = subprocess.Popen([sys.executable, "-m", "dynamos_ng.daemon", *options])
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
    names: list[str] = []

    def load(folder: Path) -> Any:
        update = control.call("load", path=str(build(folder, tmp_path)))
        names.append(update["name"])
        return update

    yield load
    for name in reversed(names):
        if any(update["name"] == name for update in control.call("status")["updates"]):
            control.call("unload", name=name, wait=60.0)


@contextmanager
def of_class(pid: int, policy_class: int) -> Iterator[None]:
    """Put a process into a policy class meanwhile."""
    control.call("policy_process", pid=pid, policy_class=policy_class)
    try:
        yield
    finally:
        control.call("policy_process", pid=pid, policy_class=0)


def parameter(update: str, name: str) -> Path:
    """Return the file of a parameter of an update's module."""
    return Path("/sys/module", module_name(update), "parameters", name)


@pytest.fixture
def cli() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run `dynamos` as an administrator would."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dynamos_ng", *map(str, arguments)],
            capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"}, timeout=200,
        )  # fmt: skip

    return run


#: An edition 2 of version_proc_show that runs edition 1 and adds the update's {name}.
STACKED = """
#include <linux/seq_file.h>
int version_proc_show_v1(struct seq_file *m, void *v);
int version_proc_show_v2(struct seq_file *m, void *v);
int version_proc_show_v2(struct seq_file *m, void *v)
{{
	int err = version_proc_show_v1(m, v);

	seq_puts(m, "{name} ");
	return err;
}}
"""


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


def uses(function: str) -> tuple[int, int]:
    """Return how often a function's clone was entered, and how often it was left."""
    for update in control.call("status")["updates"]:
        for status in update["functions"]:
            if status["function"]["name"] == function:
                return status["uses"][0]["entered"], status["uses"][0]["exited"]
    raise AssertionError(function)


def entered(function: str) -> int:
    """Return how often a function's clone was entered."""
    return uses(function)[0]


@pytest.fixture
def cloned(daemon: Daemon, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Redirect functions to their clones (`edited`: to its edition 2) without any probe on them; give them back later.

    Return probes would stand in the stack traces.
    """
    names: list[str] = []

    def redirect(update: str, *functions: str, edited: str = "", source: str = "") -> None:
        editions = {name: [2] if name == edited else [] for name in (*functions, *filter(None, [edited]))}
        folder = write_update(tmp_path / update, editions, source)
        control.call("load", path=str(build(folder, tmp_path)), watch=False)
        names.append(update)
        control.call("activate", name=update)

    yield redirect
    left = {update["name"] for update in control.call("status")["updates"]}
    for name in reversed(names):
        if name in left:
            unload(name)


def unload(name: str) -> None:
    """Unload an update in several tries: what an earlier call left on a sleeper's stack goes on being found in a wait.

    That is so for our own; for that of the task that passes the output on, which gets some to pass on; and for that of
    PID 1, which gets a signal as if a child had exited, and looks for it.
    """
    deadline = time.monotonic() + 120
    while True:
        work.stir()
        RELAY.write_bytes(b".")
        os.kill(1, signal.SIGCHLD)
        try:
            control.call("unload", name=name, wait=2.0)
            return
        except control.Remote:
            if time.monotonic() > deadline:
                raise


@contextmanager
def traced(*functions: str) -> Iterator[Callable[[], list[str]]]:
    """Trace calls of functions; what is given returns the callers of those since the last time."""
    trace = tracefs()
    (trace / "set_ftrace_filter").write_text("\n".join(functions))
    (trace / "current_tracer").write_text("function")

    def callers() -> list[str]:
        seen = re.findall(r"<-(\w+)", (trace / "trace").read_text())
        (trace / "trace").write_text("")
        return seen

    try:
        yield callers
    finally:
        (trace / "current_tracer").write_text("nop")
        (trace / "set_ftrace_filter").write_text("")


@contextmanager
def probed(name: str, place: int | str) -> Iterator[Callable[[], int]]:
    """Put a kprobe at an address, or at SYMBOL+OFFSET; what is given returns how often it was hit."""
    kprobes.define_entry(name, place if isinstance(place, str) else f"{place:#x}")
    enable = tracefs() / "events" / kprobes.GROUP / name / "enable"
    try:
        enable.write_text("1")
        yield lambda: kprobes.profile()[name][0]
    finally:
        enable.write_text("0")
        kprobes.remove(name)
