"""Stacks of tasks that sleep in clones, as the kernel's own unwinder tells them, and words of calls that have ended."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pytest
from conftest import named, parameter, unload, write_update

from dynamos_ng import control
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work


def pause_in_epoll() -> None:
    select.epoll().poll(60)


def pause_in_read() -> None:
    read, _ = os.pipe()
    os.read(read, 1)


def pause_in_wait() -> None:
    pid = work.fork(lambda: time.sleep(60))
    os.waitpid(pid, 0)


def pause_in_signal() -> None:
    signal.sigtimedwait([signal.SIGUSR1], 60)


#: By the names of the function that is to be found asleep; none in which the daemon, its client or the lab wait
#: themselves.
PAUSES: dict[tuple[str, ...], Callable[[], None]] = {
    ("do_epoll_wait",): pause_in_epoll,
    ("pipe_read", "anon_pipe_read"): pause_in_read,
    ("do_wait",): pause_in_wait,
    ("do_sigtimedwait", "__x64_sys_rt_sigtimedwait"): pause_in_signal,
    ("hrtimer_nanosleep",): lambda: time.sleep(60),
}


@contextmanager
def asleep(pause: Callable[[], None], function: str) -> Iterator[tuple[int, list[str]]]:
    """Have a process sleep in a function; its PID, and the functions on its kernel stack, innermost first."""

    def run() -> None:
        os.setpgid(0, 0)
        pause()

    pid = work.fork(run)
    try:
        deadline = time.monotonic() + 30
        while True:
            names = [line.split()[1].partition("+")[0] for line in Path(f"/proc/{pid}/stack").read_text().splitlines()]
            if any(name in (function, f"{function}_v1") for name in names):
                break
            assert time.monotonic() < deadline, f"{function}: not asleep there: {names}"
            time.sleep(0.05)
        yield pid, names
    finally:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def stack_of(pause: Callable[[], None], function: str) -> list[str]:
    with asleep(pause, function) as (_, names):
        return names


def test_the_stack_trace_of_a_sleeper_in_a_clone_is_complete(cloned: Callable[..., None]) -> None:
    pauses = {named(*names): pause for names, pause in PAUSES.items()}
    originals = {function: stack_of(pause, function) for function, pause in pauses.items()}
    assert all(names[-1].startswith("entry_SYS") for names in originals.values())
    cloned("sleepers", *pauses)
    for function, pause in pauses.items():
        wanted = [f"{name}_v1" if name in pauses else name for name in originals[function]]
        assert f"{function}_v1" in wanted
        assert stack_of(pause, function) == wanted


#: Asks as livepatch does, for which a stack on which anything is doubtful is none.
RELIABLE = """
#include <linux/module.h>
#include <linux/sched/task.h>
#include <linux/stacktrace.h>
#include "dynamos_update.h"

static int pids[8], depths[8], count;
module_param_array(pids, int, &count, 0644);
module_param_array(depths, int, NULL, 0444);

static int look(void)
{
	static unsigned long frames[64];
	int i;

	for (i = 0; i < count; i++) {
		struct task_struct *task = find_get_task_by_vpid(pids[i]);

		if (!task)
			return -ESRCH;
		depths[i] = stack_trace_save_tsk_reliable(task, frames, ARRAY_SIZE(frames));
		put_task_struct(task);
	}
	return 0;
}

DYNAMOS_BEFORE(look, NULL);
"""


@pytest.mark.needs("livepatch")
@pytest.mark.processors
def test_the_kernel_takes_stacks_through_clones_for_reliable(cloned: Callable[..., None], tmp_path: Path) -> None:
    pauses = {named(*names): pause for names, pause in PAUSES.items()}
    cloned("sleepers", *pauses)
    control.call("load", path=str(build(write_update(tmp_path / "reliable", {}, RELIABLE), tmp_path)), watch=False)
    try:
        with ExitStack() as sleeping:
            found = [sleeping.enter_context(asleep(pause, name)) for name, pause in pauses.items()]
            assert all(any(name.endswith("_v1") for name in names) for _, names in found)
            parameter("reliable", "pids").write_text(",".join(str(pid) for pid, _ in found))
            control.call("activate", name="reliable")
            depths = [int(depth) for depth in parameter("reliable", "depths").read_text().split(",")[: len(found)]]
        assert all(depth >= len(names) for depth, (_, names) in zip(depths, found, strict=True)), depths
    finally:
        unload("reliable")


def write_and_poll(end: int) -> None:
    """Call the clones deep down, then sleep with the same stack in use and their words in what poll() never wrote."""
    null = os.open("/dev/null", os.O_WRONLY)
    for _ in range(100):
        os.write(null, b"x")
        os.pwrite(null, b"x", 0)
    waiting = select.poll()
    waiting.register(end, select.POLLIN)
    waiting.poll()


@pytest.mark.needs("livepatch")
def test_what_a_finished_call_left_on_a_stack_holds_nothing_up(cloned: Callable[..., None]) -> None:
    """A sleeper whose stack still has words of a clone, in room that poll() took and did not write, is no user."""
    cloned("stale", "vfs_write", "ksys_write", "write_null", "rw_verify_area")
    end, other = os.pipe()
    with work.forked(*[partial(write_and_poll, end)] * 4) as pids:
        deadline = time.monotonic() + 60
        while not all("poll" in Path(f"/proc/{pid}/wchan").read_text() for pid in pids):
            assert time.monotonic() < deadline, "they do not sleep in poll()"
            time.sleep(0.1)
        control.call("unload", name="stale", wait=60.0)
    os.close(end)
    os.close(other)
