"""Kprobes that others put where the code itself is patched: a breakpoint, or, optimised, a jump."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from beside import FILE, FUNCTION, PROBE, UPDATE, activate, check_editions, compiled, examined, notes, status, wait_for
from conftest import probed, unload

from dynamos_ng import control, kprobes, modules
from dynamos_ng.arch import Kind
from dynamos_ng.device import Device
from dynamos_ng.errors import Refusal
from dynamos_ng.image import Kernel
from dynamos_ng.model import Function

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
