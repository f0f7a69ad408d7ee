"""Adaptation handlers: BPF programs that choose the edition by the arguments, and what becomes of those that cannot."""

from __future__ import annotations

import ctypes as c
import errno
import json
import os
import platform
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon, write_update

from dynamos_ng import bpf, control, modules
from dynamos_ng.adaptation import PINS
from dynamos_ng.bpf import MapShape
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work
from dynamos_ng.device import Device
from dynamos_ng.errors import KernelRefused
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.model import Function

#: The sixth argument of process_vm_readv is "flags", which the original wants to be 0; here the caller asks for an
#: edition by it. The seventh of the function, which lies on the stack, says whether it is process_vm_writev.
FUNCTION = "process_vm_rw"
EDITIONS = """
#include <linux/errno.h>
#include <linux/types.h>
#include "dynamos_update.h"
struct iovec;
DYNAMOS_CONSTANT(WRITES, 3);
#define ARGUMENTS pid_t pid, const struct iovec *to, unsigned long to_count, const struct iovec *from, \\
    unsigned long from_count, unsigned long flags, int write
#define EDITION(n, error) \\
ssize_t process_vm_rw_v##n(ARGUMENTS); \\
ssize_t process_vm_rw_v##n(ARGUMENTS) { return write == (n == 3) ? -(error) : -EBADE; }
EDITION(2, EDOM)
EDITION(3, EXDEV)
"""
CHOOSER = """
struct frames { u64 ip[32]; };
BPF_ARRAY(frames, struct frames, 1);

int chooser(struct bpf_raw_tracepoint_args *ctx)
{
	u32 first = 0;
	struct frames *place = frames.lookup(&first);

	if (place && ctx->args[5] == 2)
		bpf_get_stack(ctx, place, sizeof(*place), 0);
	return (u32)ctx->args[6] ? WRITES : ctx->args[5];
}
"""


def update(folder: Path, program: str, function: str = FUNCTION, editions: str = EDITIONS) -> Path:
    """Write an update whose one function adapts by the program "chooser"."""
    return adapted(write_update(folder, {function: [2, 3] if editions else []}, editions), program)


def adapted(folder: Path, program: str) -> Path:
    """Give the last function of an update's folder a handler."""
    with (folder / "update.toml").open("a") as file:
        file.write('adapt = "adapt.bpf.c:chooser"\n')
    (folder / "adapt.bpf.c").write_text(program)
    return folder


def function_of(name: str) -> Function:
    with Device() as device:
        return next(function for function in device.functions() if function.update == f"dynamos_{name}")


def counts(name: str) -> tuple[int, int]:
    adaptation = function_of(name).adaptation
    assert adaptation is not None
    return adaptation.unknown, adaptation.avoided


def entered_by_edition(name: str) -> dict[int, int]:
    (update,) = [update for update in control.call("status")["updates"] if update["name"] == name]
    return {use["number"]: use["entered"] for use in update["functions"][0]["uses"]}


class IoVec(c.Structure):
    _fields_ = [("base", c.c_void_p), ("length", c.c_size_t)]


def copy(flags: int, call: str = "process_vm_readv") -> int | str:
    """Copy five bytes within this process; return how many, or the name of the error."""
    source, target = c.create_string_buffer(b"bytes"), c.create_string_buffer(6)
    one, other = IoVec(c.addressof(target), 5), IoVec(c.addressof(source), 5)
    libc = c.CDLL(None, use_errno=True)
    done = getattr(libc, call)(os.getpid(), c.byref(one), c.c_ulong(1), c.byref(other), c.c_ulong(1), c.c_ulong(flags))
    return int(done) if done >= 0 else errno.errorcode[c.get_errno()]


@pytest.mark.everywhere
def test_the_arguments_choose(loaded: Callable[[Path], Any], tmp_path: Path, cli: Callable[..., Any]) -> None:
    loaded(update(tmp_path / "chosen", CHOOSER))
    assert copy(0) == 5
    assert copy(2) == "EINVAL"
    control.call("activate", name="chosen")
    assert copy(2) == "EDOM", "an argument in a register"
    assert copy(0, "process_vm_writev") == "EXDEV", "an argument on the stack"
    assert copy(1) == "EINVAL", "v1"
    assert counts("chosen") == (0, 0)

    stack = PINS / "dynamos_chosen" / "adapt" / "frames"
    fd = bpf.open_pin(stack)
    frames = struct.unpack("=32Q", bpf.lookup(fd, bytes(4), 256))
    os.close(fd)
    symbols = Symbols.live()
    names = [symbols.label(frame).split("+")[0] for frame in frames if frame]
    assert f"{FUNCTION}_handler" in names, names
    if platform.machine() == "x86_64":
        assert names[names.index(f"{FUNCTION}_handler") + 1 :][-2:] == [
            "do_syscall_64", "entry_SYSCALL_64_after_hwframe"
        ], f"the handler's unwind entries lead on to the very end: {names}"  # fmt: skip

    assert copy(0) == 5, "0: the policy map decides, and that says v1"
    control.call("policy_edition", function=FUNCTION, policy_class=None, edition=2)
    assert copy(0) == "EDOM"
    for edition in (4, 15, 16, 63, 64, (1 << 32) - 1):
        assert copy(edition) == "EINVAL", "there is no such edition: v1, whatever the policy says"
    assert counts("chosen") == (6, 0)
    (told,) = json.loads(cli("status", "--json").stdout)["updates"][0]["functions"]
    assert told["function"]["adaptation"] == {
        "program": function_of("chosen").adaptation.program, "unknown": 6, "avoided": 0  # type: ignore[union-attr]
    }
    shown = cli("status").stdout
    assert "(chooser) chooses its editions: 6 calls got v1" in " ".join(shown.split())
    control.call("deactivate", name="chosen")
    assert copy(2) == "EINVAL"


@pytest.mark.kernels("6.12", "7.2")  # earlier ones let no program of this type ask
def test_a_program_may_ask_for_the_cookie_that_it_has_not(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    """The helper reads what the kernel's own tracepoints leave for it."""
    program = "int chooser(struct bpf_raw_tracepoint_args *ctx) { return bpf_get_attach_cookie(ctx) ? 3 : 2; }"
    loaded(update(tmp_path / "asks", program))
    control.call("activate", name="asks")
    assert copy(0) == "EDOM"
    assert counts("asks") == (0, 0)


def test_it_outlives_the_daemon(daemon: Daemon, loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    loaded(update(tmp_path / "chosen", CHOOSER))
    control.call("activate", name="chosen")
    before = function_of("chosen").adaptation
    daemon.kill()
    assert copy(2) == "EDOM"
    assert (PINS / "dynamos_chosen" / "adapt" / "frames").exists()
    (PINS / "dynamos_gone" / "adapt").mkdir(parents=True)
    daemon.start()
    assert copy(2) == "EDOM"
    assert function_of("chosen").adaptation == before
    assert not (PINS / "dynamos_gone").exists(), "pins of what is not loaded are swept"
    control.call("unload", name="chosen", wait=60.0)
    assert not (PINS / "dynamos_chosen").exists()
    with pytest.raises(FileNotFoundError):
        bpf.program_by_id(before.program)  # type: ignore[union-attr]


def test_programs_come_and_go_under_load(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    loaded(update(tmp_path / "chosen", CHOOSER))
    control.call("activate", name="chosen")
    function = function_of("chosen")
    seen_read, seen_write = os.pipe()

    def call() -> None:
        os.write(seen_write, b".")
        while True:
            if copy(2) not in ("EDOM", "EINVAL") or copy(0) != 5 or copy(9) != "EINVAL":
                os.write(seen_write, b"x")

    program = bpf.program_by_id(function.adaptation.program)  # type: ignore[union-attr]
    with work.forked(call, call, call), Device() as device:
        assert work.read_exactly(seen_read, 3) == b"..."
        for _ in range(50):
            device.adapt(function, None)
            assert copy(2) == "EINVAL", "without a program the policy map decides"
            device.adapt(function, program)
            assert copy(2) == "EDOM"
            device.adapt(function, program)
        assert copy(2) == "EDOM"
    os.close(program)
    os.close(seen_write)
    assert os.read(seen_read, 1) == b"", "no call ever went elsewhere"
    os.close(seen_read)


@pytest.mark.everywhere
def test_a_program_never_runs_inside_another(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    """The program updates a map, by the function that is being decided on."""
    program = """
    BPF_HASH(own, u64, u64, 16);
    int chooser(struct bpf_raw_tracepoint_args *ctx)
    {
        u64 key = 1;
        own.update(&key, &key);
        return 1;
    }
    """
    loaded(update(tmp_path / "inside", program, "htab_map_update_elem", ""))
    control.call("activate", name="inside")
    fd = bpf.map_create("outer", MapShape(bpf.MAP_HASH, 8, 8, 64))
    before = counts("inside")
    for number in range(50):
        bpf.update(fd, struct.pack("=Q", number), bytes(8))
    assert counts("inside") == (before[0], before[1] + 50)
    os.close(fd)
    own = bpf.open_pin(PINS / "dynamos_inside" / "adapt" / "own")
    assert bpf.lookup(own, struct.pack("=Q", 1), 8) == struct.pack("=Q", 1)
    os.close(own)


def test_a_call_in_an_interrupt_adapts(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    """The clock's interrupt says whether it came from user space."""
    source = """
    void update_process_times_v1(int user);
    void update_process_times_v2(int user);
    void update_process_times_v2(int user) { update_process_times_v1(user); }
    """
    program = "int chooser(struct bpf_raw_tracepoint_args *ctx) { return (u32)ctx->args[0] ? 2 : 1; }\n"
    folder = write_update(tmp_path / "tick", {"update_process_times": [2]}, source)
    loaded(adapted(folder, program))
    control.call("activate", name="tick")
    deadline = time.monotonic() + 120
    while (entered := entered_by_edition("tick"))[2] < 20:
        assert time.monotonic() < deadline, entered
        sum(range(100_000))
    assert entered[1] > entered[2], "edition 2 calls the first; and there were ticks in the kernel"
    assert counts("tick")[0] == 0


def test_what_cannot_be_attached(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    loaded(update(tmp_path / "chosen", CHOOSER))
    loaded(write_update(tmp_path / "plain", {"cmdline_proc_show": []}))
    chosen, plain = function_of("chosen"), function_of("plain")
    map_fd = bpf.map_create("map", MapShape(bpf.MAP_HASH, 8, 8, 64))
    program = bpf.program_by_id(chosen.adaptation.program)  # type: ignore[union-attr]
    with Device() as device:
        for function, fd, number in (
            (chosen, map_fd, errno.EBADFD), (chosen, 99999, errno.EBADFD), (chosen, -7, errno.EBADFD),
            (plain, program, errno.ENOLINK), (plain, None, errno.ENOLINK),
        ):  # fmt: skip
            with pytest.raises(KernelRefused) as caught:
                device.adapt(function, fd)
            assert caught.value.errno == number
    os.close(program)
    os.close(map_fd)
    assert function_of("chosen") == chosen
    assert function_of("plain").adaptation is None


def test_what_the_verifier_refuses_is_not_loaded(
    daemon: Daemon, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    def state() -> Any:
        with Device() as device:
            return device.info(), Path("/proc/modules").read_text().split()[0::6], sorted(PINS.rglob("*"))

    before = state()
    bad = "int chooser(struct bpf_raw_tracepoint_args *ctx)\n{\n\treturn ctx->args[50];\n}\n"
    done = cli("load", update(tmp_path / "refused", bad), "--output", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("dynamos: BPF program chooser of adapt.bpf.c: the kernel refuses it:\n")
    assert "invalid bpf_context access" in done.stderr
    assert state() == before
    (tmp_path / "refused" / "adapt.bpf.c").write_text(f"{bad}#error words of the author\n")
    done = cli("load", tmp_path / "refused", "--output", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("dynamos: adapt.bpf.c: ")
    assert "adapt.bpf.c:5:2: error: words of the author" in done.stderr
    assert state() == before


def test_a_module_that_came_by_hand_gets_its_program_by_a_load(
    daemon: Daemon, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    module = build(update(tmp_path / "chosen", CHOOSER), tmp_path)
    modules.load(module)
    try:
        control.call("activate", name="chosen")
        assert copy(2) == "EINVAL"
        assert "is not attached" in " ".join(cli("status").stdout.split())
        control.call("load", path=str(module))
        assert copy(2) == "EDOM"
    finally:
        control.call("unload", name="chosen", wait=60.0)
