"""Others who probe, trace or patch the very function that is redirected: put there and taken off, before and after."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest
from beside import (
    FILE,
    FUNCTION,
    PROBE,
    UPDATE,
    activate,
    check_editions,
    cloned_bytes,
    compiled,
    notes,
    read_as,
    redirected,
    status,
    wait_for,
)
from conftest import probed, traced

from dynamos_ng import control, kprobes, modules, neighbours
from dynamos_ng.image import Kernel
from dynamos_ng.kprobes import tracefs

Hits = Callable[[], int]


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


