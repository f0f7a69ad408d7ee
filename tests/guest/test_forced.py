"""What a load seldom does, brought about on purpose in clones: faults, warnings, flipped keys, every way out."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import re
import struct
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import entered, probed, traced, uses

from dynamos_ng.arch import DIRECT
from dynamos_ng.demo import load as work
from dynamos_ng.device import Device
from dynamos_ng.image import Kernel
from dynamos_ng.kprobes import tracefs
from dynamos_ng.rewrite.clone import examine

libc = ctypes.CDLL(None, use_errno=True)


# Faults

WAKE_OP, PRIVATE = 5, 128
FUTEX, GETDENTS64 = (202, 217) if os.uname().machine == "x86_64" else (240, 220)
BAD = 8


def failed(result: int) -> int:
    assert result == -1
    return ctypes.get_errno()


def test_a_fault_in_a_clone_is_fixed_up_in_the_clone(cloned: Callable[..., None], tmp_path: Path) -> None:
    """By an exception table entry of each sort that user memory knows, and in none of its callers."""
    cloned("faults", "strncpy_from_user", "strnlen_user", "filldir64", "futex_wake_op")
    word = ctypes.c_uint32(0)
    folder = os.open("/usr", os.O_RDONLY)
    arguments = (ctypes.c_void_p * 2)(BAD, None)
    try:
        assert failed(libc.open(ctypes.c_void_p(BAD), os.O_RDONLY)) == errno.EFAULT
        assert failed(libc.execve(b"/bin/true", arguments, None)) == errno.EFAULT
        assert failed(libc.syscall(GETDENTS64, folder, ctypes.c_void_p(BAD), 4096)) == errno.EFAULT
        wake = (ctypes.byref(word), WAKE_OP | PRIVATE, 1, ctypes.c_void_p(1), ctypes.c_void_p(BAD), 0)
        assert failed(libc.syscall(FUTEX, *wake)) == errno.EFAULT
        # A page that is merely not there yet: the clone faults, goes on, and writes what it should.
        with mmap.mmap(-1, 1 << 16, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
            place = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            size = libc.syscall(GETDENTS64, folder, ctypes.c_void_p(place), 1 << 16)
            seen = ctypes.string_at(place, size)
        assert b"bin\0" in seen
        assert b"lib\0" in seen
        other = ctypes.c_uint32(40)
        add_two = 1 << 28 | 2 << 12  # FUTEX_OP_ADD
        assert libc.syscall(FUTEX, *wake[:4], ctypes.byref(other), add_two) == 0
        assert other.value == 42
    finally:
        os.close(folder)
    assert all(entered(name) for name in ("strncpy_from_user", "strnlen_user", "filldir64", "futex_wake_op"))


# Warnings

WARNS = """
#include <linux/eventfd.h>
#include <linux/sched.h>
#include <linux/seq_file.h>
int cmdline_proc_show_v2(struct seq_file *m, void *v);
/* A signal from within a signal, which the kernel must not do and warns of. */
int cmdline_proc_show_v2(struct seq_file *m, void *v)
{
	/* Later kernels give it no number and get none back. */
	void (*signal_mask)(struct eventfd_ctx *ctx, u64 number, u64 mask) = (void *)eventfd_signal_mask;

	current->in_eventfd = 1;
	signal_mask(NULL, 1, 0);
	current->in_eventfd = 0;
	seq_puts(m, "0");
	return 0;
}
"""


def kernel_log() -> str:
    return subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout


@pytest.mark.trouble(r"WARNING: .*\bfs/eventfd\.c:\d+ (at )?eventfd_signal_mask_v1\+")
def test_a_warning_in_a_clone_is_reported_like_any_other(cloned: Callable[..., None]) -> None:
    cloned("warns", "eventfd_signal_mask", edited="cmdline_proc_show", source=WARNS)
    Path("/proc/sys/kernel/panic_on_warn").write_text("0")
    try:
        before = kernel_log()
        assert [Path("/proc/cmdline").read_text() for _ in range(2)] == ["0", "0"]
        said = kernel_log().removeprefix(before)
    finally:
        Path("/proc/sys/kernel/panic_on_warn").write_text("1")
    assert len(re.findall(r"WARNING: ", said)) == 1, "once, as the original would"
    assert re.search(r"[RE]IP: (0010:)?eventfd_signal_mask_v1\+0x[0-9a-f]+/0x[0-9a-f]+ \[dynamos_warns\]", said)
    assert re.search(r"Call Trace:.*cmdline_proc_show_v2\+0x.* \[dynamos_warns\].*seq_read_iter\+0x.*vfs_read\+0x",
                     said, re.DOTALL)  # fmt: skip
    assert int(Path("/proc/sys/kernel/tainted").read_text()) & 1 << 9, "tainted by a warning"
    assert entered("eventfd_signal_mask") == 2


# Keys and calls that the kernel patches

SCHEDSTATS = Path("/proc/sys/kernel/sched_schedstats")


def wakeups_counted(state: str) -> bool:
    """Tell whether the scheduler keeps statistics of a process that wakes a few times, with the key in a state."""

    def count(pid: int) -> int:
        SCHEDSTATS.write_text("1")  # without it the file does not say
        found = re.search(r"nr_wakeups +: +(\d+)", Path(f"/proc/{pid}/sched").read_text())
        assert found
        return int(found.group(1))

    read, write = os.pipe()

    def sleep_and_wake() -> None:
        while os.read(read, 1):
            pass

    with work.forked(sleep_and_wake) as (pid,):
        time.sleep(0.2)
        before = count(pid)
        SCHEDSTATS.write_text(state)
        for _ in range(5):
            os.write(write, b".")
            time.sleep(0.05)
        after = count(pid)
    os.close(read)
    os.close(write)
    return after > before


@pytest.mark.parametrize("at_first", ["0", "1"])
def test_a_static_key_rules_the_clone_as_well(cloned: Callable[..., None], at_first: str) -> None:
    """Whichever way it stood when the clone was made."""
    SCHEDSTATS.write_text(at_first)
    try:
        cloned("keys", "try_to_wake_up")
        for state in (at_first, "1", "0", "1", "0"):
            before = entered("try_to_wake_up")
            assert wakeups_counted(state) is (state == "1")
            assert entered("try_to_wake_up") > before
    finally:
        SCHEDSTATS.write_text("0")


def test_a_key_that_is_read_only_since_boot_is_no_key_of_the_clone(cloned: Callable[..., None]) -> None:
    """The module loader would write to it."""
    cloned("fixed", "__check_object_size")
    Path("/proc/version").read_text()
    assert entered("__check_object_size") > 0


RENAME = "task_rename"


@contextmanager
def event(folder: Path) -> Iterator[Callable[[], bool]]:
    """Record renamed tasks in a folder of tracefs; what is given tells whether one was recorded since the last time."""
    enable = folder / "events/task" / RENAME / "enable"
    enable.write_text("1")

    def recorded() -> bool:
        seen = f"{RENAME}:" in (folder / "trace").read_text()
        (folder / "trace").write_text("")
        return seen

    try:
        yield recorded
    finally:
        enable.write_text("0")


def called(function: str) -> Counter[str]:
    """Return the kernel's functions that a clone calls or jumps to, and how often, as its code stands now."""
    kernel = Kernel.live()
    with Device() as device:
        clone = next(one for one in device.functions() if one.name == function).editions[0]
    return targets(kernel, clone.start, clone.end)


def targets(kernel: Kernel, start: int, end: int) -> Counter[str]:
    code, _ = kernel.arch.decode(kernel.read(start, end - start), start)
    return Counter(name for one in code if one.kind in DIRECT and one.target for name in kernel.names(one.target))


def test_a_static_call_is_retargeted_in_the_clone(cloned: Callable[..., None]) -> None:
    """A tracepoint calls its only user directly, and several through a loop; the call in the clone goes along."""
    cloned("calls", "__set_task_comm")

    def now() -> list[str]:
        return [name for name in called("__set_task_comm") if RENAME in name]

    def rename() -> None:
        before = entered("__set_task_comm")
        Path("/proc/self/comm").write_text("python3")
        assert entered("__set_task_comm") > before

    loop, direct = [f"__traceiter_{RENAME}"], [f"trace_event_raw_event_{RENAME}"]
    if os.uname().machine != "x86_64":  # calls lead to a jump, which alone is patched
        loop = direct = [f"__SCT__tp_func_{RENAME}"]
    other = tracefs() / "instances/forced"
    other.mkdir()
    try:
        rename()
        assert now() == loop, "as long as nobody wants to know, it is skipped"
        with event(tracefs()) as one:
            rename()
            assert (now(), one()) == (direct, True)
            with event(other) as two:
                rename()
                assert (now(), one(), two()) == (loop, True, True)
            rename()
            assert (now(), one(), two()) == (direct, True, False)
        rename()
        assert (now(), one()) == (loop, False)
    finally:
        other.rmdir()


PREEMPTION = Path("/sys/kernel/debug/sched/preempt")
#: What the mode of preemption puts at the static calls of each kind, where it does not take the call away.
RESCHEDULES = {"__cond_resched", "preempt_schedule_thunk", "preempt_schedule_notrace_thunk"}


def use_memory_file() -> None:
    file = os.memfd_create("file")
    fcntl.flock(file, fcntl.LOCK_EX)
    os.write(file, b"some" * 10_000)
    assert os.pread(file, 8, 20_000) == b"somesome"
    os.ftruncate(file, 0)
    os.close(file)


@pytest.mark.kernels("6.1")  # later ones have other modes, and ask elsewhere for a guest
def test_the_mode_of_preemption_rules_the_clones_as_well(cloned: Callable[..., None]) -> None:
    """It is made of nothing but static calls, thousands of them: in some modes they call nothing.

    No load meanwhile: an emulated CPU that is kept busy makes each take 40 ms, and all of them together minutes.
    """
    names = ("flock_lock_inode", "do_sys_ftruncate", "shmem_get_inode", "shmem_file_read_iter", "shmem_undo_range")
    mode = re.search(r"\((\w+)\)", PREEMPTION.read_text())
    assert mode
    cloned("modes", *names)
    seen = set()
    try:
        for chosen in ("full", "none", "voluntary"):
            PREEMPTION.write_text(chosen)
            kernel = Kernel.live()
            for name in names:
                symbol = kernel.function(name)
                wanted, have = targets(kernel, symbol.address, symbol.end), called(name)
                assert {one: have[one] for one in RESCHEDULES} == {one: wanted[one] for one in RESCHEDULES}
            seen.add(tuple(sum(called(name)[one] for name in names) for one in sorted(RESCHEDULES)))
            before = {name: entered(name) for name in names}
            use_memory_file()
            assert all(entered(name) > before[name] for name in names)
    finally:
        PREEMPTION.write_text(mode[1])
    assert len(seen) == 3


PERF_EVENT_OPEN = 298
PERF_SAMPLE = 9


def sampled() -> list[int]:
    """Run until the kernel's clock has found us in this program; return all places where it found us.

    It samples every 10 ms: if more often, a busy emulated CPU may not get out of the kernel between two samples.
    """
    # type and size; config: PERF_COUNT_SW_CPU_CLOCK; sample_period in ns; sample_type: PERF_SAMPLE_IP
    attributes = struct.pack("<IIQQQ", 1, 64, 0, 10_000_000, 1).ljust(64, b"\0")
    counter = libc.syscall(PERF_EVENT_OPEN, attributes, 0, -1, -1, 0)
    assert counter >= 0
    try:
        with mmap.mmap(counter, 65 * mmap.PAGESIZE) as ring:
            deadline = time.monotonic() + 60
            while True:
                (head,) = struct.unpack_from("<Q", ring, 1024)
                records = struct.iter_unpack("<IHHQ", ring[mmap.PAGESIZE : mmap.PAGESIZE + head])
                places = [place for kind, _, _, place in records if kind == PERF_SAMPLE]
                if any(0 < place < 1 << 47 for place in places) and len(places) > 5:
                    return places
                assert time.monotonic() < deadline, f"never sampled in this program: {list(map(hex, places))}"
    finally:
        os.close(counter)


@pytest.mark.kernels("6.1")  # later ones have other modes, and ask elsewhere for a guest
def test_a_static_call_leads_into_a_module_and_back(cloned: Callable[..., None]) -> None:
    """Of one that stands for `return 0` there is no call at all; with KVM it has somebody to ask."""
    function, ask, where = "perf_instruction_pointer", "kvm_guest_state", "kvm_guest_get_ip"
    cloned("guests", function)

    def sample() -> None:
        before = entered(function)
        places = sampled()
        assert entered(function) - before >= len(places)

    alone = called(function)
    assert not {ask, where} & alone.keys()
    sample()
    subprocess.run(["modprobe", "kvm-amd"], check=True)
    try:
        assert called(function)[ask] == called(function)[where] == 1
        with traced(ask) as callers:
            sample()
            assert f"{function}_v1" in callers()
    finally:
        subprocess.run(["rmmod", "kvm_amd", "kvm"], check=True)
    assert called(function) == alone
    sample()
    calls, returns = uses(function)
    assert calls == returns > 0


# Ways out


def read_cpuinfo() -> None:
    os.close(os.open("/proc/cpuinfo", os.O_RDONLY))


def log_a_line() -> None:
    Path("/dev/kmsg").write_text("<6>hello from a part that was split off\n")


def add_no_swap() -> None:
    assert failed(libc.swapon(b"/nowhere", 0)) == errno.ENOENT


#: On i386 it is part of its caller, which has a ftrace site.
SWAPON, SITE = ("__do_sys_swapon", False) if os.uname().machine == "x86_64" else ("__ia32_sys_swapon", True)
#: Functions that nobody calls but we; how, and what is special about them.
WAYS_OUT: dict[str, tuple[Callable[[], None], str]] = {
    "cpuinfo_open": (read_cpuinfo, "left by a tail jump"),
    "devkmsg_write": (log_a_line, "its .cold part does the work"),
    SWAPON: (add_no_swap, "no ftrace site on x86_64"),
}


def test_every_way_out_is_counted(cloned: Callable[..., None]) -> None:
    """Exactly; and a split part is entered in the clone, not in the original."""
    kernel = Kernel.live()
    originals = {name: examine(kernel, kernel.function(name)) for name in WAYS_OUT}
    assert "seq_open" in {name for way in originals["cpuinfo_open"].ways for name in kernel.names(way)}
    assert (originals[SWAPON].entry.ftrace is not None) is SITE
    cold = originals["devkmsg_write"].body.parts[1]
    assert any("devkmsg_emit" in name for name in targets(kernel, cold.address, cold.end))
    cloned("ways", *WAYS_OUT)
    with probed("cold", cold.address) as hits:
        for call, _ in WAYS_OUT.values():
            for _ in range(7):
                call()
        assert hits() == 0, "the original's part"
    assert kernel_log().count("hello from a part that was split off") == 7
    assert {name: uses(name) for name in WAYS_OUT} == dict.fromkeys(WAYS_OUT, (7, 7))
