"""Others who probe, trace or patch the very function that is redirected: put there and taken off, before and after."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon, probed, traced, unload, write_update

from dynamos_ng import control, kprobes, modules, neighbours
from dynamos_ng.arch import Kind
from dynamos_ng.build import kbuild
from dynamos_ng.build.update import build
from dynamos_ng.device import Device
from dynamos_ng.errors import Refusal
from dynamos_ng.image import Kernel
from dynamos_ng.kprobes import tracefs
from dynamos_ng.model import Function
from dynamos_ng.rewrite.clone import Original, examine

FUNCTION = "cmdline_proc_show"
FILE = Path("/proc/cmdline")
UPDATE = "beside"
PROBE = "kernel_probe"
SOURCE = """
#include <linux/seq_file.h>
int cmdline_proc_show_v2(struct seq_file *m, void *v);
int cmdline_proc_show_v2(struct seq_file *m, void *v)
{
	seq_puts(m, "edition 2\\n");
	return 0;
}
"""
Hits = Callable[[], int]


# The update


@pytest.fixture(scope="module")
def module(daemon: Daemon, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the update that gives policy class 1 an edition of its own; nothing is beside it yet."""
    folder = tmp_path_factory.mktemp("neighbours")
    return build(write_update(folder / UPDATE, {FUNCTION: [2]}, SOURCE), folder)


def load(module: Path) -> None:
    control.call("load", path=str(module), watch=False)


def activate() -> None:
    control.call("activate", name=UPDATE, classes=[1])


def status() -> Any:
    (update,) = control.call("status")["updates"]
    return update


def notes() -> str:
    return "\n".join(status()["functions"][0]["notes"])


@contextmanager
def redirected(module: Path) -> Iterator[None]:
    """Redirect the function; it is given back and its clone freed at the end."""
    load(module)
    try:
        activate()
        yield
    finally:
        unload(UPDATE)


@pytest.fixture
def loaded_update(module: Path) -> Iterator[None]:
    """Load the update; unload it after the test, however that ended."""
    load(module)
    yield
    if control.call("status")["updates"]:
        unload(UPDATE)


def read_as(policy_class: int) -> str:
    """Read the file as a process of a policy class."""
    control.call("policy_process", pid=os.getpid(), policy_class=policy_class)
    try:
        return FILE.read_text()
    finally:
        control.call("policy_process", pid=os.getpid(), policy_class=0)


def check_editions(rounds: int = 3) -> None:
    """Each class sees its edition, each call is counted once in and once out."""
    before = {use["number"]: use for use in status()["functions"][0]["uses"]}
    for _ in range(rounds):
        assert read_as(1) == "edition 2\n"
        assert "console=" in read_as(0)
    for use in status()["functions"][0]["uses"]:
        old = before[use["number"]]
        assert use["entered"] - old["entered"] == use["exited"] - old["exited"] == rounds


# The neighbours: each is there inside its `with`, and what is given counts the calls it saw


def count_events(folder: Path, pattern: str) -> int:
    return len(re.findall(pattern, (folder / "trace").read_text()))


@contextmanager
def return_probe() -> Iterator[Hits]:
    kprobes.define_return("back", FUNCTION, 16)
    enable = tracefs() / "events" / kprobes.GROUP / "back" / "enable"
    try:
        enable.write_text("1")
        yield lambda: kprobes.profile()["back"][0]
    finally:
        enable.write_text("0")
        kprobes.remove("back")


@contextmanager
def function_tracer() -> Iterator[Hits]:
    with traced(FUNCTION) as callers:
        seen: list[str] = []

        def hits() -> int:
            seen.extend(callers())
            assert set(seen) <= {"seq_read_iter"}
            return len(seen)

        yield hits


@contextmanager
def graph_tracer() -> Iterator[Hits]:
    trace = tracefs()
    (trace / "set_ftrace_filter").write_text(FUNCTION)
    (trace / "current_tracer").write_text("function_graph")
    try:
        yield lambda: count_events(trace, rf"{FUNCTION}\(\)")
    finally:
        (trace / "current_tracer").write_text("nop")
        (trace / "set_ftrace_filter").write_text("")


TRAMPOLINE = """
BPF_ARRAY(seen, u64, 2);
KFUNC_PROBE(cmdline_proc_show, void *m, void *v)
{
	seen.increment(0);
	return 0;
}
KRETFUNC_PROBE(cmdline_proc_show, void *m, void *v, int result)
{
	if (!result)
		seen.increment(1);
	return 0;
}
"""


@contextmanager
def bpf_trampoline() -> Iterator[Hits]:
    """fentry and fexit of one function share a BPF trampoline."""
    import bcc

    program = bcc.BPF(text=TRAMPOLINE, cflags=["-fms-extensions", "-w"])

    def hits() -> int:
        entries, exits = (program["seen"][number].value for number in (0, 1))
        assert entries == exits
        return int(entries)

    try:
        yield hits
    finally:
        program.cleanup()


NEIGHBOURS: dict[str, Callable[[], AbstractContextManager[Hits]]] = {
    "kprobe": lambda: probed(PROBE, Kernel.live().function(FUNCTION).address),
    "kretprobe": return_probe,
    "function": function_tracer,
    "function_graph": graph_tracer,
}


@pytest.mark.parametrize("neighbour", NEIGHBOURS)
def test_both_go_on_whoever_comes_and_goes_first(module: Path, neighbour: str) -> None:
    both_go_on(module, NEIGHBOURS[neighbour])


@pytest.mark.needs("bcc")
def test_fentry_and_fexit_go_on_whoever_comes_and_goes_first(module: Path) -> None:
    both_go_on(module, bpf_trampoline)


def both_go_on(module: Path, put: Callable[[], AbstractContextManager[Hits]]) -> None:
    """Put update and neighbour on the function and take them off, in both orders of either."""
    neighbour = "neighbour"
    original = FILE.read_text()
    clean = cloned_bytes()
    for coming in ((UPDATE, neighbour), (neighbour, UPDATE)):
        for leaving in (coming, coming[::-1]):
            with ExitStack() as undo:
                stacks = {who: undo.enter_context(ExitStack()) for who in coming}
                hits: Hits | None = None
                for who in coming:
                    if who == UPDATE:
                        assert cloned_bytes() == clean
                        stacks[who].enter_context(redirected(module))
                    else:
                        hits = stacks[who].enter_context(put())
                assert hits is not None
                before = hits()
                check_editions(3)
                assert hits() - before == 6, "each call is seen once, whichever edition it reaches"
                stacks[leaving[0]].close()
                if leaving[0] == UPDATE:
                    before = hits()
                    assert [FILE.read_text() for _ in range(3)] == [original] * 3
                    assert hits() - before == 3
                else:
                    check_editions(3)
            assert FILE.read_text() == original
    assert cloned_bytes() == clean


def examined() -> Original:
    kernel = Kernel.live()
    return examine(kernel, kernel.function(FUNCTION))


def cloned_bytes() -> list[bytes]:
    """Return the code that a clone made now would be made of; the ftrace site is whoever's uses it."""
    original = examined()
    return [one.code for one in original.body.instructions if one.address != original.entry.ftrace]


# A live patch replaces the function, and there can be only one


LIVEPATCH = """
#include <linux/livepatch.h>
#include <linux/module.h>
#include <linux/seq_file.h>
static int shown(struct seq_file *m, void *v)
{
	seq_puts(m, "live patch\\n");
	return 0;
}
static struct klp_func funcs[] = { { .old_name = "cmdline_proc_show", .new_func = shown }, { } };
static struct klp_object objects[] = { { .funcs = funcs }, { } };
static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objects };
static int __init start(void)
{
	return klp_enable_patch(&patch);
}
static void __exit end(void)
{
}
module_init(start);
module_exit(end);
MODULE_LICENSE("GPL");
MODULE_INFO(livepatch, "Y");
"""
PATCH = "patch_of_others"


@pytest.fixture(scope="module")
def patch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("livepatch"), PATCH, LIVEPATCH)


def compiled(folder: Path, name: str, source: str) -> Path:
    """Return the kernel module that a C source becomes."""
    (folder / f"{name}.c").write_text(source)
    (folder / "Kbuild").write_text(f"obj-m := {name}.o\n")
    kbuild.make(folder, "modules")
    return folder / f"{name}.ko"


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@contextmanager
def livepatched(patch: Path) -> Iterator[None]:
    """Replace the function with the kernel's own means, from the end of one transition to that of the other."""
    folder = neighbours.LIVEPATCH / PATCH
    modules.load(patch)
    try:
        wait_for(lambda: (folder / "transition").read_text() == "0\n")
        yield
    finally:
        (folder / "enabled").write_text("0")
        wait_for(lambda: not folder.exists())
        modules.unload(PATCH)


@pytest.mark.needs("livepatch")
def test_a_livepatched_function_is_not_redirected_as_long_as_it_is(loaded_update: None, patch: Path) -> None:
    with livepatched(patch):
        with pytest.raises(control.Remote, match=f"activate {FUNCTION}: livepatch {PATCH} replaces it"):
            activate()
        assert status()["state"] == "loaded"
        assert FILE.read_text() == "live patch\n"
    activate()
    check_editions()


@pytest.mark.needs("livepatch")
@pytest.mark.parametrize("first", ["livepatch", "update"])
def test_a_later_livepatch_is_told_and_passes(module: Path, patch: Path, first: str) -> None:
    """It replaces the function, editions and all, and `status` says so; whichever goes first, nothing breaks."""
    original = FILE.read_text()
    with ExitStack() as undo:
        stacks = {who: undo.enter_context(ExitStack()) for who in ("update", "livepatch")}
        stacks["update"].enter_context(redirected(module))
        check_editions()
        stacks["livepatch"].enter_context(livepatched(patch))
        assert read_as(1) == read_as(0) == "live patch\n"
        assert f"livepatch {PATCH} replaces it" in notes()
        stacks[first].close()
        if first == "update":
            assert FILE.read_text() == "live patch\n"
        else:
            assert notes() == ""
            check_editions()
    assert FILE.read_text() == original


# Kprobes where the code itself is patched: a breakpoint, or, optimised, a jump


BREAKPOINT, JUMP = b"\xcc", b"\xe9"


@pytest.fixture(params=[BREAKPOINT, JUMP], ids=["breakpoint", "optimised"])
def patched(request: pytest.FixtureRequest) -> Iterator[Callable[[int], None]]:
    """Let kprobes be optimised or not; what is given waits until the one at an address is as it shall be."""
    setting = Path("/proc/sys/debug/kprobes-optimization")
    setting.write_text("1" if request.param == JUMP else "0")
    kernel = Kernel.live()
    yield lambda address: wait_for(lambda: kernel.read(address, 1) == request.param, 30)
    setting.write_text("1")


def test_a_kprobe_in_the_trampolines_place_is_named(loaded_update: None, patched: Callable[[int], None]) -> None:
    one = function()
    inside = next(place for place in boundaries(one) if place > one.site)
    assert inside < one.site + len(one.trampoline)
    place = f"{FUNCTION}+{inside - one.address:#x}"
    with probed(PROBE, place) as hits:
        patched(inside)
        with pytest.raises(control.Remote, match=rf"kprobe at {re.escape(place)} \({kprobes.GROUP}/{PROBE}\)"):
            activate()
        assert status()["state"] == "loaded"
        FILE.read_text()
        assert hits() == 1
        with pytest.raises(Refusal) as caught:
            examined()
        assert caught.value.address == inside
    activate()
    with pytest.raises(OSError), probed(PROBE, place):  # noqa: PT011 - EILSEQ or EINVAL: there is no such instruction
        pass
    check_editions()


def test_a_kprobe_on_the_trampoline_sees_calls_and_is_named(loaded_update: None) -> None:
    activate()
    one = function()
    place = f"{FUNCTION}+{one.site - one.address:#x}"
    with probed(PROBE, place) as hits:
        check_editions(3)
        assert hits() == 6
        with pytest.raises(control.Remote, match=rf"kprobe at {re.escape(place)} \({kprobes.GROUP}/{PROBE}\)"):
            control.call("deactivate", name=UPDATE)
        assert status()["state"] == "redirected"
        check_editions(3)
    control.call("deactivate", name=UPDATE)
    assert "console=" in FILE.read_text()


def test_a_kprobe_in_the_body_is_silent_and_told(loaded_update: None, patched: Callable[[int], None]) -> None:
    one = function()
    behind = next(place for place in boundaries(one) if place >= one.site + 5 and runs_straight(place))
    place = f"{FUNCTION}+{behind - one.address:#x}"
    with probed(PROBE, place) as hits:
        patched(behind)
        FILE.read_text()
        assert hits() == 1
        assert notes() == ""
        with pytest.raises(Refusal) as caught:
            examined()
        assert caught.value.address == behind
        activate()
        check_editions(3)
        assert hits() == 1
        assert f"kprobe at {place} ({kprobes.GROUP}/{PROBE}) is silent" in notes()
    assert notes() == ""
    check_editions(3)


KPROBES = """
#include <linux/kprobes.h>
#include <linux/module.h>
static unsigned long at[16], hits[16];
static int count;
module_param_array(at, ulong, &count, 0444);
module_param_array(hits, ulong, NULL, 0444);
static struct kprobe probes[16], *list[16];
static int hit(struct kprobe *probe, struct pt_regs *regs)
{
	hits[probe - probes]++;
	return 0;
}
static int __init start(void)
{
	int i;

	for (i = 0; i < count; i++) {
		probes[i].addr = (kprobe_opcode_t *)at[i];
		probes[i].pre_handler = hit;
		list[i] = &probes[i];
	}
	return register_kprobes(list, count);
}
static void __exit end(void)
{
	unregister_kprobes(list, count);
}
module_init(start);
module_exit(end);
MODULE_LICENSE("GPL");
"""
PROBES = "kprobes_of_others"


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a module that sets kprobes where tracefs takes none: in code without a ftrace site."""
    return compiled(tmp_path_factory.mktemp("kprobes"), PROBES, KPROBES)


def test_kprobes_on_the_clone_and_the_handler(
    loaded_update: None, probes: Path, patched: Callable[[int], None]
) -> None:
    """They see every call; the update is freed with the probes still on it."""
    activate()
    one = function()
    inner = [next(place for place in decoded(edition.start, edition.end)[1:] if runs_straight(place))
             for edition in one.editions]  # fmt: skip
    places = [one.handler, *(edition.start for edition in one.editions), *inner]
    subprocess.run(["insmod", probes, "at=" + ",".join(map(hex, places))], check=True)
    try:
        for place in inner:
            patched(place)
        check_editions(3)
        told = (Path("/sys/module") / PROBES / "parameters/hits").read_text().split(",")
        hits = dict(zip(places, map(int, told), strict=False))
        assert hits[one.handler] == 6
        assert all(hits[edition.start] == 3 for edition in one.editions)
        assert all(hits[place] == 3 for place in inner)
        unload(UPDATE)
        assert "console=" in FILE.read_text()
    finally:
        modules.unload(PROBES)


def function() -> Function:
    with Device() as device:
        (one,) = (one for one in device.functions() if one.name == FUNCTION)
    return one


def decoded(start: int, end: int) -> list[int]:
    """Return where the instructions begin that stand there now."""
    kernel = Kernel.live()
    return [one.address for one in kernel.arch.decode(kernel.read(start, end - start), start)[0]]


def boundaries(one: Function) -> list[int]:
    """Return where instructions of the original begin."""
    return decoded(one.address, one.address + one.size)


def runs_straight(place: int) -> bool:
    """Tell whether a jump of five bytes could stand at a place in the stead of instructions that only compute."""
    kernel = Kernel.live()
    code = kernel.arch.decode(kernel.read(place, 4 + 15), place)[0]
    return all(one.kind is Kind.PLAIN for one in code if one.address < place + 5)
