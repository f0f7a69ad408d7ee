"""What a policy decides when a program begins: in the kernel at its exec, or by the daemon soon after."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from conftest import apply, becomes, edition_of, explain, rule, running

from dynamos_ng import cgroups, control, host
from dynamos_ng.policy.classes import Classes
from dynamos_ng.policy.language import parse
from dynamos_ng.policy.verdict import Process, decide


def state(pid: int) -> tuple[bool, str]:
    told = explain(pid)
    return told["undecided"], told["rule"]


def child_of(pid: int) -> int:
    """Return a process's only child, once it has one."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    becomes(lambda: children.read_text() != "", True)
    return int(children.read_text())


def test_no_instruction_of_a_new_program_runs_in_another_class(active: str, first: Callable[[str], Path]) -> None:
    apply(
        rule("by name", 'comm = "firstborn"', 2)
        + rule("by user", "uid = 12345", 2)
        + rule("by group", 'comm = "grouped", gid = 54321', 2)
    )
    for _ in range(50):
        assert edition_of(first("firstborn")) == 2
        assert edition_of(first("other")) == 1
    assert edition_of(first("other"), user=12345) == 2
    assert edition_of(first("grouped"), group=54321) == 2
    assert edition_of(first("other"), group=54321) == 1
    assert edition_of(first("grouped")) == 1


def test_a_share_is_the_same_in_the_kernel_and_in_python(active: str, first: Callable[[str], Path]) -> None:
    text = rule("few", 'comm = "shared"', 2, "percent = 30") + rule("rest", 'comm = "shared"', 1)
    apply(text)
    classes = Classes(parse(text, "", host.accounts()), 1, (0, 0))
    seen: list[int] = []
    for _ in range(150):
        pid = os.posix_spawn(first("shared"), ["shared"], {})
        edition = 1 + os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        process = Process(pid, "shared", "", "", 0, 0, "", 0, ())
        assert edition == {1: 2, 2: 1}[decide(classes, process, 0).number]
        seen.append(edition)
    assert {1, 2} == set(seen)


def test_a_fork_inherits_and_an_exec_is_decided_anew(active: str, tmp_path: Path) -> None:
    apply(rule("shells", 'comm = "sh"', 2))
    os.mkfifo(tmp_path / "fifo")
    with running("sh", "-c", f"(read a < {tmp_path}/fifo) & exec sleep 60") as pid:
        becomes(lambda: host.name_of(pid), "sleep")
        told = explain(pid)
        assert (told["rule"], told["how"]) == ("default", "decided by the kernel at its exec")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for child in children:
            told = explain(int(child))
            assert (told["rule"], told["how"]) == ("shells", "inherited when it was forked")
            os.kill(int(child), signal.SIGKILL)
        assert children


def test_what_only_the_daemon_knows_is_decided_soon(active: str, tmp_path: Path) -> None:
    own = Path("/proc/self/comm").read_text().strip()
    leader = subprocess.Popen(
        ["sh", "-c", "read a; sleep 63 & read b; kill $!; wait"], stdin=subprocess.PIPE, start_new_session=True
    )
    assert leader.stdin is not None
    apply(
        rule("argv", 'argv = "sleep 6[1]"', 2)
        + rule("exe", f'exe = "{tmp_path}/*"', 2)
        + rule("parent", 'parent = "parental", comm = "sleep"', 2)
        + rule("session", f'ancestor = "{own}", session = {leader.pid}, argv = "sleep 63"', 2)
    )
    where = {one["name"]: one["where"] for one in control.call("policy_show")["in_force"]["rules"]}
    assert where == {"argv": "daemon", "exe": "daemon", "parent": "daemon", "session": "daemon", "default": "kernel"}
    program = tmp_path / "nap"
    program.write_bytes(Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    script = tmp_path / "parental"
    script.write_text("#!/bin/sh\nsleep 62 & wait\n")
    script.chmod(0o755)
    for command, wanted in (
        (["sleep", "61"], "argv"), ([str(program), "60"], "exe"), (["sleep", "63"], "default"),
    ):  # fmt: skip
        with running(*command) as pid:
            becomes(partial(state, pid), (False, wanted))
    with running(str(script)) as pid:
        child = child_of(pid)
        becomes(partial(state, child), (False, "parent"))
        assert explain(child)["how"] == "decided by the daemon"
        os.kill(child, signal.SIGKILL)
    leader.stdin.write(b"\n")
    leader.stdin.flush()
    becomes(partial(state, child_of(leader.pid)), (False, "session"))
    leader.communicate()


@pytest.fixture
def hierarchy() -> Iterator[Path]:
    """Return the unified hierarchy, mounted if it is not, without the cgroups that a test leaves there."""
    mounted = cgroups.mount()
    root = mounted or Path("/sys/fs/cgroup")
    if mounted is None:
        subprocess.run(["mount", "-t", "cgroup2", "none", root], check=True)
    yield root
    for left in root.glob("dynamos-*"):
        left.rmdir()
    if mounted is None:
        subprocess.run(["umount", root], check=True)


def test_cgroups_are_decided_by_the_kernel_once_they_are_known(
    active: str, hierarchy: Path, first: Callable[[str], Path]
) -> None:
    """A shell in the cgroup starts the program, so that it is there at its exec."""

    def edition_in(cgroup: Path) -> int:
        entering = f"echo $$ > {cgroup}/cgroup.procs; exec {first('inside')}"
        return 1 + subprocess.run(["sh", "-c", entering], check=False).returncode

    known, other = hierarchy / "dynamos-known", hierarchy / "dynamos-other"
    known.mkdir()
    other.mkdir()
    apply(rule("in it", 'cgroup = "/dynamos-k*", comm = "inside"', 2) + rule("new", 'cgroup = "/dynamos-new"', 2))
    where = {one["name"]: one["where"] for one in control.call("policy_show")["in_force"]["rules"]}
    assert where["in it"] == "kernel"
    for _ in range(10):
        assert (edition_in(known), edition_in(other)) == (2, 1)
    new = hierarchy / "dynamos-new"
    new.mkdir()
    with running("sh", "-c", f"echo $$ > {new}/cgroup.procs; exec sleep 60") as pid:
        becomes(lambda: (host.name_of(pid), *state(pid)), ("sleep", False, "new"))
        assert explain(pid)["how"] == "decided by the daemon"
    for _ in range(10):
        assert edition_in(new) == 2
    becomes((new / "cgroup.procs").read_text, "")
