"""Policies from files: applied as a whole, explained, with updates, and without a daemon as with one."""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import (
    DEMO_UPDATES,
    MAGIC,
    Daemon,
    apply,
    becomes,
    calls,
    edition_of,
    explain,
    parameter,
    rule,
    running,
    unload,
    write_update,
)

from dynamos_ng import bpfmaps, control, enforcement, host, policymaps
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work
from dynamos_ng.errors import DynamosError, KernelRefused
from dynamos_ng.manager import Manager

POLICIES = Path(__file__).parents[2] / "policies"


@pytest.fixture(scope="module")
def maps(daemon: Daemon) -> Iterator[bpfmaps.Maps]:
    with bpfmaps.open_maps() as maps:
        yield maps


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


#: The kernel has forgotten the class of one that comes here, and does not yet call it a zombie.
LATE = """
#include <linux/delay.h>
#include <linux/fdtable.h>
#include <linux/module.h>
#include <linux/sched.h>
static bool hold = true;
module_param(hold, bool, 0644);
void exit_files_v1(struct task_struct *task);
void exit_files_v2(struct task_struct *task);
void exit_files_v2(struct task_struct *task)
{
	while (READ_ONCE(hold) && !strcmp(task->comm, "late"))
		msleep(20);
	exit_files_v1(task);
}
"""


def test_who_is_ending_gets_no_class(
    active: str, loaded: Callable[[Path], Any], first: Callable[[str], Path], maps: bpfmaps.Maps, tmp_path: Path
) -> None:
    """Nobody would take it away again."""
    loaded(write_update(tmp_path / "late", {"exit_files": [2]}, LATE))
    control.call("activate", name="late", edition=2)
    with subprocess.Popen([first("late")]) as late:
        try:
            becomes(lambda: host.is_ending(late.pid) and maps.class_of(late.pid) == 0, True)
            assert ") Z " not in Path(f"/proc/{late.pid}/stat").read_text()
            apply("[default]\nupdates = { two = 2 }\n")
            assert maps.class_of(late.pid) == 0 != maps.class_of(os.getpid())
        finally:
            parameter("late", "hold").write_text("0")


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


def test_classes_set_by_hand_are_left_and_come_back(
    active: str, maps: bpfmaps.Maps, first: Callable[[str], Path]
) -> None:
    control.call("policy_rule", comm="sleep", policy_class=1)
    control.call("policy_edition", function=calls()[0], policy_class=1, edition=2)
    try:
        with running("sleep", "60") as pid:
            becomes(lambda: maps.class_of(pid), 1)
            apply(rule("none", 'comm = "firstborn"', 2))
            assert maps.class_of(pid) >= 128, "the half that was in use by hand was taken"
            control.call("policy_clear")
            assert maps.class_of(pid) == 0
            apply(rule("none", 'comm = "firstborn"', 2))
            apply("[default]\nupdates = { two = 2 }\n")
            assert maps.class_of(pid) == maps.class_of(os.getpid()) == 1
            assert edition_of(first("sleep")) == 2
            control.call("policy_clear")
            assert (maps.class_of(pid), maps.class_of(os.getpid())) == (1, 0), "the exec rule gives sleep its class"
            assert edition_of(first("sleep")) == 1, "the class kept an edition of the policy that was left"
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
