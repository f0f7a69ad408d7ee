"""Others who watch the same functions: tracers and probes go on, and what they leave in a function is not cloned."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Daemon, entered, pipe, probed, traced, unload, uses, write_update

from dynamos_ng import control, kprobes
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work
from dynamos_ng.errors import Refusal
from dynamos_ng.image import Kernel
from dynamos_ng.kprobes import tracefs
from dynamos_ng.rewrite.clone import examine


def read_version() -> None:
    Path("/proc/version").read_text()


def test_a_function_traced_while_it_is_cloned_stays_traced(cloned: Callable[..., None]) -> None:
    """Its ftrace site is a call at that time: neither is the call cloned, nor does the tracer lose the function."""
    with traced("version_proc_show") as callers:
        read_version()
        assert callers() == ["seq_read_iter"]
        cloned("traced", "version_proc_show")
        read_version()
        assert callers() == ["seq_read_iter"]
        assert entered("version_proc_show") == 1
    read_version()
    with traced("version_proc_show") as callers:
        read_version()
        assert callers() == ["seq_read_iter"]
    assert entered("version_proc_show") == 3


def test_who_only_asks_leaves_no_probes_and_is_not_awaited_for_ever(daemon: Daemon) -> None:
    before = (tracefs() / "kprobe_events").read_text()
    assert control.call("quiescence", function="version_proc_show", seconds=0.1)["walk"]["tasks"]
    assert (tracefs() / "kprobe_events").read_text() == before
    with pytest.raises(control.Remote, match="stacks are sampled for up to 600 s"):
        control.call("quiescence", function="version_proc_show", seconds=1e8)


def test_tracers_that_enable_all_events_do_not_hold_up_a_removal(daemon: Daemon, tmp_path: Path) -> None:
    """The kernel keeps the definitions of our probes while another one uses them; the next daemon takes them away."""
    control.call("load", path=str(build(write_update(tmp_path / "seen", {"version_proc_show": []}), tmp_path)))
    control.call("activate", name="seen")
    enable = tracefs() / "events" / kprobes.GROUP / "enable"
    enable.write_text("1")
    try:
        read_version()
        unload("seen")
        control.call("load", path=str(tmp_path / "dynamos_seen.ko"))
        (update,) = control.call("status")["updates"]
        assert update["functions"][0]["probes"] is not None, "a new pair counts, beside the one that is kept"
        unload("seen")
        daemon.kill()
        daemon.start()
    finally:
        enable.write_text("0")
    daemon.stop()
    daemon.start()
    assert f":{kprobes.GROUP}/" not in (tracefs() / "kprobe_events").read_text()


def test_a_kprobe_at_the_entry_goes_on_counting(cloned: Callable[..., None]) -> None:
    with probed("entry", "version_proc_show") as hits:
        read_version()
        cloned("probed", "version_proc_show")
        read_version()
        assert hits() == 2
        assert entered("version_proc_show") == 1


def optimised(address: int) -> bool:
    """Wait until the kernel has put a jump in the place of a probe's breakpoint, which it does not do everywhere."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        if any(f"{address:x} " in line and "[OPTIMIZED]" in line for line in kprobes.LIST.read_text().splitlines()):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("jump", [False, True], ids=["breakpoint", "jump"])
def test_a_function_with_a_kprobe_in_its_body_is_refused(daemon: Daemon, tmp_path: Path, jump: bool) -> None:
    """Where the probe stands, whichever instruction it is, and no more once the probe is gone."""
    name = "cmdline_proc_show"
    folder = write_update(tmp_path / "inside", {name: []})
    kernel = Kernel.live()
    original = examine(kernel, kernel.function(name))
    site = original.entry.site + kernel.arch.trampoline
    inside = [one for one in original.body.instructions if one.address >= site]
    setting = Path("/proc/sys/debug/kprobes-optimization")
    setting.write_text(str(int(jump)))
    tried = 0
    try:
        for one in inside:
            with probed("inside", one.address):
                if jump and not optimised(one.address):
                    continue
                tried += 1
                with pytest.raises(Refusal) as caught:
                    build(folder, tmp_path)
                assert caught.value.function == name
                assert (caught.value.reason, caught.value.address) == ("a kprobe stands in it", one.address)
    finally:
        setting.write_text("1")
    assert tried >= 2
    assert build(folder, tmp_path).exists()


@contextmanager
def graphed(*functions: str) -> Iterator[Callable[[], str]]:
    """Have the function graph tracer follow calls of functions, each to its return; what is given returns its report.

    It keeps their return addresses for itself: the stack has its own in their places.
    """
    trace = tracefs()
    (trace / "set_ftrace_filter").write_text("\n".join(functions))
    (trace / "options/funcgraph-tail").write_text("1")
    (trace / "current_tracer").write_text("function_graph")
    try:
        yield (trace / "trace").read_text
    finally:
        (trace / "current_tracer").write_text("nop")
        (trace / "options/funcgraph-tail").write_text("0")
        (trace / "set_ftrace_filter").write_text("")


def in_flight(function: str) -> int:
    calls, returns = uses(function)
    return calls - returns


def test_a_sleeper_is_found_though_the_graph_tracer_keeps_its_return_address(cloned: Callable[..., None]) -> None:
    """By the walk and in stack traces; the original and the clone are left by way of the tracer."""
    pipe_read = f"{pipe()}_read"
    with graphed(pipe_read, "schedule") as report, work.sleeping_reader() as before:
        cloned("graph", pipe_read)
        (tracefs() / "set_ftrace_filter").write_text(f"{pipe_read}\n{pipe_read}_v1\nschedule")
        with work.sleeping_reader() as inside:
            stack = [line.split()[1] for line in Path(f"/proc/{inside.pid}/stack").read_text().splitlines()]
            assert stack[0].startswith(f"{pipe_read}_v1+")
            assert stack[-1].startswith("entry_SYS")
            holds = f"(?s)PID {inside.pid}\\) sleeps in {pipe_read} v1.*{pipe_read}_v1"
            with pytest.raises(control.Remote, match=holds):
                control.call("unload", name="graph", wait=1.0)
            assert in_flight(pipe_read) == 1
            for sleeper in (before, inside):
                sleeper.wake()
                os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
        assert in_flight(pipe_read) == 0
        assert all(f"}} /* {name} " in report() for name in (pipe_read, f"{pipe_read}_v1", "schedule"))
