"""Policies from files, in force: decided at exec, applied as a whole, explained, and without a daemon as with one."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO_UPDATES, Daemon, unload, write_update

from dynamos_ng import bpfmaps, cgroups, control, enforcement, host, policymaps
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work
from dynamos_ng.errors import DynamosError, KernelRefused
from dynamos_ng.manager import Manager
from dynamos_ng.policy.classes import Classes
from dynamos_ng.policy.language import parse
from dynamos_ng.policy.verdict import Process, decide

POLICIES = Path(__file__).parents[2] / "policies"
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


@pytest.fixture(scope="module")
def maps(daemon: Daemon) -> Iterator[bpfmaps.Maps]:
    with bpfmaps.open_maps() as maps:
        yield maps


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


def state(pid: int) -> tuple[bool, str]:
    told = explain(pid)
    return told["undecided"], told["rule"]


def is_under_a_rule(pid: int) -> bool:
    return bool(explain(pid)["rule"])


def child_of(pid: int) -> int:
    """Return a process's only child, once it has one."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    becomes(lambda: children.read_text() != "", True)
    return int(children.read_text())


def generation() -> int:
    shown = control.call("policy_show")["in_force"]
    return int(shown["generation"]) if shown else 0


# The command line


def test_the_examples_are_applied_shown_explained_and_taken_away(
    daemon: Daemon, cli: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    control.call("load", path=str(build(DEMO_UPDATES / "cmdline", tmp_path)), watch=False)
    control.call("activate", name="cmdline", edition=1)
    try:
        done = cli("policy", "check", POLICIES / "services.toml")
        assert done.returncode == 0 and done.stdout.count("daemon") == 3, done.stderr
        for example in sorted(POLICIES.glob("*.toml")):
            done = cli("policy", "apply", example)
            assert done.returncode == 0 and "is in force" in done.stdout, done.stderr
            shown = control.call("policy_show")["in_force"]
            assert shown["file"] == str(example) and shown["summary"] and shown["by_hand"] == []
            assert sum(one["processes"] for one in shown["rules"]) > 10
        done = cli("policy", "apply", POLICIES / "pagers.toml")
        text = Path("/proc/cmdline").read_text()
        pager = subprocess.run(
            ["more", "/proc/cmdline"], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL
        )
        assert "edition=2" in pager.stdout and "edition=2" not in text
        done = cli("policy", "show")
        assert "pagers.toml, generation" in done.stdout and "comm more" in done.stdout and "kernel" in done.stdout
        done = cli("policy", "explain", os.getpid(), "--json")
        told = json.loads(done.stdout)
        assert told["rule"] == "default" and [name for name, _ in told["earlier"]] == ["less", "more"]
        assert told["earlier"][0][1] == f"comm is {told['comm']}, not less"
        done = cli("policy", "diff", POLICIES / "services.toml")
        assert "more: taken away" in done.stdout and "batch: new" in done.stdout
        done = cli("policy", "diff", POLICIES / "pagers.toml")
        assert "nothing would change" in done.stdout
        wrong = tmp_path / "wrong.toml"
        wrong.write_text('[[rule]]\nname = "a"\nmatch = { comn = "less" }\nupdates = { cmdline = 2 }\n')
        done = cli("policy", "apply", wrong)
        assert done.returncode == 2 and f"dynamos: {wrong}:3: rule[1].match.comn: unknown key" in done.stderr
        wrong.write_text('[default]\nupdates = { cmdline = 3 }\n')
        done = cli("policy", "apply", wrong)
        assert done.returncode == 2 and "cmdline_proc_show of update cmdline has no edition 3" in done.stderr
        assert control.call("policy_show")["in_force"]["file"] == str(POLICIES / "pagers.toml")
        done = cli("policy", "set", "--pid", os.getpid(), "--class", 1)
        assert done.returncode == 2 and "pagers.toml is in force" in done.stderr
        done = cli("policy", "clear")
        assert done.returncode == 0 and control.call("policy_show")["in_force"] is None
        assert control.call("policy_show")["processes"] == []
        done = cli("policy", "explain", os.getpid())
        assert done.returncode == 2 and "no policy is in force" in done.stderr
    finally:
        unload("cmdline")


# At exec


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


# As a whole


def test_a_process_goes_from_one_policy_to_the_other_once(active: str) -> None:
    old, new = "[default]\nupdates = { two = 1 }\n", "[default]\nupdates = { two = 2 }\n"
    apply(old)
    seen, told = os.pipe()

    def ask_both() -> None:
        changes, last = 0, False
        while not os.path.exists("/tmp/enough"):
            for call in (os.getppid, os.getpgrp):
                now = call() == MAGIC
                changes, last = changes + (now != last), now
        os.write(told, bytes([changes, last]))

    Path("/tmp/enough").unlink(missing_ok=True)
    with work.forked(*[ask_both] * 3):
        apply(new)
        Path("/tmp/enough").touch()
        answers = b""
        while len(answers) < 6:
            answers += os.read(seen, 6)
    Path("/tmp/enough").unlink()
    assert answers == bytes([1, 1]) * 3
    os.close(seen)
    os.close(told)


def test_a_rejected_policy_leaves_the_old_one_in_force(active: str, first: Callable[[str], Path]) -> None:
    text = rule("by name", 'comm = "firstborn"', 2)
    apply(text)
    before = generation()
    generator = random.Random(5)
    for _ in range(30):
        at = generator.randrange(len(text))
        broken = text[:at] + generator.choice("[]{}=\"'\n#x0\0") + text[at + generator.randrange(3) :]
        try:
            apply(broken)
        except control.Remote as error:
            assert error.exit_code == 2 and all(line.startswith("test.toml:") for line in str(error).splitlines())
            assert generation() == before
            assert edition_of(first("firstborn")) == 2
        else:
            apply(text)
            before = generation()
    for wrong in ("", "[default]\nupdates = { two = 9 }\n", 7, None, {"a": 1}):
        with pytest.raises(control.Remote) as refused:
            control.call("policy_apply", text=wrong, file="test.toml")
        assert refused.value.exit_code == 2
        assert generation() == before


def test_an_application_that_fails_midway_is_undone(
    active: str, daemon: Daemon, tmp_path: Path, first: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.stop()
    settle, calls_left = policymaps.settle, [2]

    def fails() -> None:
        calls_left[0] -= 1
        if calls_left[0] == 0:
            raise KernelRefused("as the test wants it")
        settle()

    manager = Manager()
    try:
        with enforcement.Enforcement(manager, tmp_path) as ours:
            ours.apply(rule("by name", 'comm = "firstborn"', 2), "old.toml")
            rows = [manager.maps.row(function.id) for function in manager.functions()]
            files = sorted(path.name for path in tmp_path.glob("policy-*"))
            monkeypatch.setattr(enforcement, "settle", fails)
            with pytest.raises(DynamosError, match="as the test wants it"):
                ours.apply("[default]\nupdates = { two = 2 }\n", "new.toml")
            assert calls_left[0] < 0, "the way back did not settle"
            assert ours.in_force is not None and ours.in_force.ruleset.file == "old.toml"
            assert [manager.maps.row(function.id) for function in manager.functions()] == rows
            assert sorted(path.name for path in tmp_path.glob("policy-*")) == files
            allowed = {ours.in_force.of(0), ours.in_force.of(1)}
            assert {chosen for _, chosen in manager.maps.classified()} <= allowed
            assert edition_of(first("firstborn")) == 2 and edition_of(first("other")) == 1
            ours.clear()
    finally:
        manager.close()
        daemon.start()


def test_a_rule_ends_by_itself(active: str, first: Callable[[str], Path]) -> None:
    text = rule("a while", 'comm = "sleep"', 2, 'for = "3s"')
    with running("sleep", "60") as pid:
        becomes(partial(host.name_of, pid), "sleep")
        becomes(lambda: (apply(text), explain(pid)["rule"])[1], "a while")
        becomes(lambda: explain(pid)["rule"], "default")
        told = explain(pid)
        assert told["earlier"] == [["a while", "its time is over"]] and told["how"] == "decided by the daemon"
    with running("sleep", "60") as pid:
        becomes(lambda: host.name_of(pid), "sleep")
        assert explain(pid)["how"] == "decided by the kernel at its exec"
        assert explain(pid)["rule"] == "default"


# With updates, and by hand


def test_what_is_activated_later_follows_the_policy_and_the_hand_wins_for_once(
    two: str, first: Callable[[str], Path]
) -> None:
    text = rule("by name", 'comm = "firstborn"', 2)
    apply(text)
    try:
        for wanted, edition in (((2, 1), None), ((2, 2), 2), ((2, 1), None)):
            control.call("activate", name=two, edition=edition)
            assert (edition_of(first("firstborn")), edition_of(first("other"))) == wanted
            by_hand = control.call("policy_show")["in_force"]["by_hand"]
            assert sorted(by_hand) == (sorted(calls()) if edition else [])
            control.call("deactivate", name=two)
        control.call("activate", name=two, edition=1)
        assert edition_of(first("firstborn")) == 1
        apply(text)
        assert edition_of(first("firstborn")) == 2
        control.call("deactivate", name=two)
        apply(f"[default.functions]\n{calls()[0]} = 7\n")
        with pytest.raises(control.Remote, match=rf"test.toml:1: default: {calls()[0]} of update two has no edition 7"):
            control.call("activate", name=two)
    finally:
        control.call("policy_clear")


def test_classes_set_by_hand_are_left_and_come_back(active: str, maps: bpfmaps.Maps) -> None:
    control.call("policy_rule", comm="sleep", policy_class=1)
    control.call("policy_edition", function=calls()[0], policy_class=1, edition=2)
    try:
        with running("sleep", "60") as pid:
            becomes(lambda: maps.class_of(pid), 1)
            apply(rule("none", 'comm = "firstborn"', 2))
            assert maps.class_of(pid) >= 128, "the half that was in use by hand was taken"
            control.call("policy_clear")
            assert maps.class_of(pid) == 0
        with running("sleep", "60") as pid:
            becomes(lambda: maps.class_of(pid), 1)
            control.call("policy_rule", comm="cat", policy_class=200)
            with pytest.raises(control.Remote, match="take away what was set by hand"):
                apply(rule("none", 'comm = "firstborn"', 2))
            assert generation() == 0 and maps.class_of(pid) == 1
    finally:
        for comm in ("sleep", "cat"):
            control.call("policy_rule", comm=comm, policy_class=0)


# No daemon


def test_without_a_daemon_the_policy_goes_on_and_the_next_one_takes_over(
    active: str, daemon: Daemon, maps: bpfmaps.Maps, first: Callable[[str], Path]
) -> None:
    apply(rule("by name", 'comm = "firstborn"', 2) + rule("late", 'argv = "sleep 61"', 2))
    before = generation()
    daemon.kill()
    assert edition_of(first("firstborn")) == 2
    with running("sleep", "61") as pid:
        becomes(lambda: host.name_of(pid), "sleep")
        given = maps.class_of(pid)
        daemon.start()
        assert generation() == before
        becomes(lambda: explain(pid)["rule"], "late")
        assert maps.class_of(pid) != given
        assert edition_of(first("firstborn")) == 2
