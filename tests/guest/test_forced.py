"""What a load seldom does, brought about on purpose in clones: faults, warnings, flipped keys, stack traces, probes."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import Daemon, write_update

from dynamos_ng import control, kprobes
from dynamos_ng.arch import Kind
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work
from dynamos_ng.device import Device
from dynamos_ng.errors import Refusal
from dynamos_ng.image import Kernel
from dynamos_ng.kprobes import tracefs
from dynamos_ng.rewrite.clone import examine

libc = ctypes.CDLL(None, use_errno=True)


def entered(function: str) -> int:
    """Return how often a function's clone was entered."""
    for update in control.call("status")["updates"]:
        for status in update["functions"]:
            if status["function"]["name"] == function:
                return int(status["uses"][0]["entered"])
    raise AssertionError(function)


@pytest.fixture
def cloned(daemon: Daemon, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Redirect functions to their clones (`edited`: to its edition 2) without any probe on them; give them back later.

    Return probes would stand in the stack traces.
    """
    names: list[str] = []

    def redirect(update: str, *functions: str, edited: str = "", source: str = "") -> None:
        editions = {name: [2] if name == edited else [] for name in (*functions, *filter(None, [edited]))}
        folder = write_update(tmp_path / update, editions, source)
        control.call("load", path=str(build(folder, tmp_path)), watch=False)
        names.append(update)
        control.call("activate", name=update)

    yield redirect
    for name in reversed(names):
        unload(name)


def unload(name: str) -> None:
    """Unload an update in several tries: what an earlier call left on our own stack goes on being found in a wait."""
    deadline = time.monotonic() + 120
    while True:
        work.stir()
        try:
            control.call("unload", name=name, wait=2.0)
            return
        except control.Remote:
            if time.monotonic() > deadline:
                raise


# Faults

WAKE_OP, PRIVATE = 5, 128
FUTEX, GETDENTS64 = 202, 217
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
	current->in_eventfd = 1;
	seq_printf(m, "%llu", eventfd_signal_mask(NULL, 1, 0));
	current->in_eventfd = 0;
	return 0;
}
"""


def kernel_log() -> str:
    return subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout


@pytest.mark.boot(expected=r"WARNING: CPU: \d+ PID: \d+ at fs/eventfd\.c:\d+ eventfd_signal_mask_v1\+")
def test_a_warning_in_a_clone_is_reported_like_any_other(cloned: Callable[..., None]) -> None:
    cloned("warns", "eventfd_signal_mask", edited="cmdline_proc_show", source=WARNS)
    Path("/proc/sys/kernel/panic_on_warn").write_text("0")
    try:
        before = kernel_log()
        assert [Path("/proc/cmdline").read_text() for _ in range(2)] == ["0", "0"]
        said = kernel_log().removeprefix(before)
    finally:
        Path("/proc/sys/kernel/panic_on_warn").write_text("1")
    assert len(re.findall(r"WARNING: CPU: ", said)) == 1, "once, as the original would"
    assert re.search(r"RIP: 0010:eventfd_signal_mask_v1\+0x[0-9a-f]+/0x[0-9a-f]+ \[dynamos_warns\]", said)
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


@contextmanager
def traced(*functions: str) -> Iterator[Callable[[], list[str]]]:
    """Trace calls of functions; what is given returns the callers of those since the last time."""
    trace = tracefs()
    (trace / "set_ftrace_filter").write_text("\n".join(functions))
    (trace / "current_tracer").write_text("function")

    def callers() -> list[str]:
        seen = re.findall(r"<-(\w+)", (trace / "trace").read_text())
        (trace / "trace").write_text("")
        return seen

    try:
        yield callers
    finally:
        (trace / "current_tracer").write_text("nop")
        (trace / "set_ftrace_filter").write_text("")


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


def test_a_static_call_is_retargeted_in_the_clone(cloned: Callable[..., None]) -> None:
    """A tracepoint calls its only user directly, and several through a loop; the call in the clone goes along."""
    kernel = Kernel.live()
    cloned("calls", "__set_task_comm")
    with Device() as device:
        clone = next(one for one in device.functions() if one.name == "__set_task_comm").editions[0]

    def called() -> list[str]:
        code, _ = kernel.arch.decode(kernel.read(clone.start, clone.end - clone.start), clone.start)
        names = [name for one in code if one.kind is Kind.CALL and one.target for name in kernel.names(one.target)]
        return [name for name in names if RENAME in name]

    def rename() -> None:
        before = entered("__set_task_comm")
        Path("/proc/self/comm").write_text("python3")
        assert entered("__set_task_comm") > before

    loop, direct = [f"__traceiter_{RENAME}"], [f"trace_event_raw_event_{RENAME}"]
    other = tracefs() / "instances/forced"
    other.mkdir()
    try:
        rename()
        assert called() == loop, "as long as nobody wants to know, it is skipped"
        with event(tracefs()) as one:
            rename()
            assert (called(), one()) == (direct, True)
            with event(other) as two:
                rename()
                assert (called(), one(), two()) == (loop, True, True)
            rename()
            assert (called(), one(), two()) == (direct, True, False)
        rename()
        assert (called(), one()) == (loop, False)
    finally:
        other.rmdir()


# Stack traces


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


#: By the function that is to be found asleep; none in which the daemon, its client or the lab wait themselves.
PAUSES: dict[str, Callable[[], None]] = {
    "do_epoll_wait": pause_in_epoll,
    "pipe_read": pause_in_read,
    "do_wait": pause_in_wait,
    "do_sigtimedwait": pause_in_signal,
    "hrtimer_nanosleep": lambda: time.sleep(60),
}


def stack_of(pause: Callable[[], None], function: str) -> list[str]:
    """Return the functions on the kernel stack of a process asleep in a function, innermost first."""

    def run() -> None:
        os.setpgid(0, 0)
        pause()

    pid = work.fork(run)
    try:
        deadline = time.monotonic() + 30
        while True:
            names = [line.split()[1].partition("+")[0] for line in Path(f"/proc/{pid}/stack").read_text().splitlines()]
            if any(name in (function, f"{function}_v1") for name in names):
                return names
            assert time.monotonic() < deadline, f"{function}: not asleep there: {names}"
            time.sleep(0.05)
    finally:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_the_stack_trace_of_a_sleeper_in_a_clone_is_complete(cloned: Callable[..., None]) -> None:
    originals = {function: stack_of(pause, function) for function, pause in PAUSES.items()}
    assert all(names[-1].startswith("entry_SYSCALL_64") for names in originals.values())
    cloned("sleepers", *PAUSES)
    for function, pause in PAUSES.items():
        wanted = [f"{name}_v1" if name in PAUSES else name for name in originals[function]]
        assert f"{function}_v1" in wanted
        assert stack_of(pause, function) == wanted


# Others who watch the same functions


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


@contextmanager
def probed(name: str, place: int | str) -> Iterator[Callable[[], int]]:
    """Put a kprobe at an address, or at SYMBOL+OFFSET; what is given returns how often it was hit."""
    kprobes.define_entry(name, place if isinstance(place, str) else f"{place:#x}")
    enable = tracefs() / "events" / kprobes.GROUP / name / "enable"
    try:
        enable.write_text("1")

        def hits() -> int:
            lines = (tracefs() / "kprobe_profile").read_text().splitlines()
            return int(next(line.split()[1] for line in lines if line.split()[0] == name))

        yield hits
    finally:
        enable.write_text("0")
        kprobes.remove(name)


def test_a_kprobe_at_the_entry_goes_on_counting(cloned: Callable[..., None]) -> None:
    with probed("before", Kernel.live().function("version_proc_show").address) as hits:
        read_version()
        cloned("probed", "version_proc_show")
        read_version()
        assert hits() == 2
        assert entered("version_proc_show") == 1


def test_a_function_with_a_kprobe_in_its_body_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    """Where the breakpoint stands; and no more once the probe is gone."""
    folder = write_update(tmp_path / "inside", {"cmdline_proc_show": []})
    kernel = Kernel.live()
    symbol = kernel.function("cmdline_proc_show")
    body = examine(kernel, symbol).body
    inside = next(one for one in body.instructions if one.size >= 5 and one.address > symbol.address + 10)
    setting = Path("/proc/sys/debug/kprobes-optimization")
    setting.write_text("0")
    try:
        with probed("inside", inside.address):
            with pytest.raises(Refusal) as caught:
                build(folder, tmp_path)
            assert caught.value.function == "cmdline_proc_show"
            assert caught.value.address is not None
            assert inside.address <= caught.value.address < inside.address + inside.size
    finally:
        setting.write_text("1")
    assert build(folder, tmp_path).exists()
