"""Calls made in interrupts have a policy class of their own, for functions that tell them from others."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import parameter, write_update

from dynamos_ng import control

#: Waking a task up is done in both: in tasks, and in the timer's interrupt.
SOURCE = """
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/sched.h>

static unsigned int tasks, interrupts;
module_param(tasks, uint, 0644);
module_param(interrupts, uint, 0644);

int wake_up_process_v1(struct task_struct *task);
int wake_up_process_v2(struct task_struct *task);

int wake_up_process_v2(struct task_struct *task)
{
	if (in_task())
		tasks++;
	else
		interrupts++;
	return wake_up_process_v1(task);
}
"""
ENOUGH = 30


def seen() -> tuple[int, int]:
    return tuple(int(parameter("woken", name).read_text()) for name in ("tasks", "interrupts"))  # type: ignore[return-value]


def work() -> None:
    """Have tasks woken in both ways: from a sleep by the timer, and to work for one that asks for it on each CPU."""
    time.sleep(0.001)
    Path("/proc/sys/vm/stat_refresh").write_text("1")


def grown(by: Callable[[int, int], bool]) -> tuple[int, int]:
    """Work until what edition 2 has counted since now is enough, and return that."""
    began, deadline = seen(), time.monotonic() + 120
    while True:
        work()
        now = seen()
        counted = now[0] - began[0], now[1] - began[1]
        if by(*counted):
            return counted
        assert time.monotonic() < deadline, counted


@pytest.mark.everywhere
def test_calls_in_interrupts_have_a_class(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_update(tmp_path / "woken", {"wake_up_process": [2]}, SOURCE)
    description = folder / "update.toml"
    description.write_text(description.read_text() + "interrupts = true\n")
    loaded(folder)
    assert cli("activate", "woken", "--class", "interrupts").returncode == 0
    tasks, _ = grown(lambda _, interrupts: interrupts >= ENOUGH)
    assert tasks == 0, "edition 2 is for interrupts alone"
    assert "calls in interrupts run v2" in " ".join(cli("status").stdout.split())

    policy = tmp_path / "policy.toml"
    policy.write_text("[default.functions]\nwake_up_process = 2\n[interrupt.functions]\nwake_up_process = 1\n")
    done = cli("policy", "apply", policy)
    assert done.returncode == 0, done.stderr
    try:
        _, interrupts = grown(lambda tasks, _: tasks >= ENOUGH)
        assert interrupts == 0
        assert "interrupt" in cli("policy", "show").stdout
        policy.write_text("[default.functions]\nwake_up_process = 1\n[interrupt.functions]\nwake_up_process = 3\n")
        refused = cli("policy", "apply", policy)
        assert refused.returncode == 2
        assert "3: interrupt: wake_up_process of update woken has no edition 3; it has 1, 2\n" in refused.stderr
        grown(lambda tasks, _: tasks >= 1)
    finally:
        assert cli("policy", "clear").returncode == 0
    before = seen()
    for _ in range(ENOUGH):
        work()
    assert seen() == before, "without the policy interrupts have the edition of class 0"
    control.call("unload", name="woken", wait=60.0)


def test_a_function_that_tells_nothing_has_no_such_class(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    loaded(write_update(tmp_path / "plain", {"cmdline_proc_show": []}))
    said = "does not tell interrupts from other calls: that takes interrupts = true in its update.toml"
    for words in (
        ("activate", "plain", "--class", "interrupts", "--edition", "1"),
        ("policy", "set", "--function", "cmdline_proc_show", "--class", "interrupts", "--edition", "1"),
    ):
        refused = cli(*words)
        assert (refused.returncode, refused.stderr) == (2, f"dynamos: cmdline_proc_show {said}\n")
    refused = cli("policy", "set", "--pid", "1", "--class", "interrupts")
    assert refused.returncode == 2
    assert refused.stderr == "dynamos: policy class 255: no process has it: it is that of calls made in interrupts\n"
    control.call("activate", name="plain")
    policy = tmp_path / "policy.toml"
    policy.write_text("[interrupt.functions]\ncmdline_proc_show = 1\n")
    refused = cli("policy", "apply", policy)
    assert refused.returncode == 2
    assert refused.stderr == f"dynamos: {policy}:1: interrupt: cmdline_proc_show of update plain {said}\n"
    control.call("unload", name="plain", wait=60.0)
