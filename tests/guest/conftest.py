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


# What others do beside an update: beside.py, which imports this file


@pytest.fixture(scope="module")
def module(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the update that tests of neighbours load."""
    import beside

    return beside.built(tmp_path_factory.mktemp("neighbours"))


@pytest.fixture
def loaded_update(module: Path) -> Iterator[None]:
    """Load it; unload it after the test, however that ended."""
    import beside

    with beside.loaded(module):
        yield


# Policies from files, of an update in which two system calls have an edition 2

#: What edition 2 of the two system calls answers; no process and no group has this number.
MAGIC = 0x7FFFFFFF
#: Its first system call is the redirected one; its status says which edition that ran.
FIRST = """
#ifdef __x86_64__
asm(".globl _start; _start: mov $110, %eax; syscall; cmp $0x7fffffff, %eax; sete %dil;"
    "movzbl %dil, %edi; mov $60, %eax; syscall");
#else
asm(".globl _start; _start: mov $64, %eax; int $0x80; cmp $0x7fffffff, %eax; sete %bl;"
    "movzbl %bl, %ebx; mov $1, %eax; int $0x80");
#endif
"""


def calls() -> tuple[str, str]:
    """Return the kernel's names of getppid and getpgrp."""
    wide = os.uname().machine == "x86_64"
    return ("__x64_sys_getppid", "__x64_sys_getpgrp") if wide else ("__ia32_sys_getppid", "__ia32_sys_getpgrp")


@pytest.fixture(scope="module")
def two(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Load an update in which two system calls have an edition 2."""
    folder = tmp_path_factory.mktemp("two")
    source = "#include <linux/ptrace.h>\n" + "".join(
        f"long {name}_v2(const struct pt_regs *regs);\n"
        f"long {name}_v2(const struct pt_regs *regs) {{ return {MAGIC}; }}\n"
        for name in calls()
    )
    path = build(write_update(folder / "two", {name: [2] for name in calls()}, source), folder)
    control.call("load", path=str(path), watch=False)
    yield "two"
    unload("two")


@pytest.fixture
def active(two: str) -> Iterator[str]:
    """Activate it for nobody; afterwards there is no policy, and nothing is redirected."""
    control.call("activate", name=two, edition=1)
    yield two
    if control.call("policy_show")["in_force"]:
        control.call("policy_clear")
    control.call("deactivate", name=two)


def reachable(folder: Path) -> None:
    """Let all users reach a folder."""
    for one in (folder, *folder.parents):
        one.chmod(one.stat().st_mode | 0o055)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a program of any name whose first system call is getppid."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "first.c").write_text(FIRST)
    subprocess.run(
        ["gcc", "-nostdlib", "-static", "-o", folder / "first", folder / "first.c"], check=True
    )
    reachable(folder)

    def of_name(name: str) -> Path:
        path = folder / name
        if not path.exists():
            path.write_bytes((folder / "first").read_bytes())
            path.chmod(0o755)
        return path

    return of_name


def apply(text: str) -> Any:
    return control.call("policy_apply", text=text, file="test.toml")


def rule(name: str, match: str, edition: int, more: str = "") -> str:
    wanted = f"match = {{ {match} }}\n" if match else ""
    return f'[[rule]]\nname = "{name}"\n{wanted}updates = {{ two = {edition} }}\n{more}\n'


def explain(pid: int) -> Any:
    return control.call("policy_explain", pid=pid)


def edition_of(path: Path, **options: Any) -> int:
    """Run a program whose first system call tells its edition."""
    return 1 + subprocess.run([path], check=False, **options).returncode


@contextmanager
def running(*command: str, **options: Any) -> Iterator[int]:
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, **options) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def becomes(value: Callable[[], object], wanted: object) -> None:
    """Wait until something becomes as wanted."""
    deadline = time.monotonic() + 60
    while (is_so := value()) != wanted:
        assert time.monotonic() < deadline, (is_so, wanted)
        time.sleep(0.02)
