"""What probes see, by bcc or by libbpf: calls counted exactly, misses shown, stacks sampled, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import pipe

from dynamos_ng import bpf, kprobes
from dynamos_ng.build import dynamos_ko
from dynamos_ng.demo import load as work
from dynamos_ng.image import Kernel
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.model import CallCounts
from dynamos_ng.probes import Probes
from dynamos_ng.rewrite.clone import examine


@pytest.fixture(scope="module")
def shared() -> Iterator[Probes]:
    """Compile once for all tests."""
    dynamos_ko.ensure_loaded()
    with Probes() as probes:
        yield probes


@pytest.fixture
def probes(shared: Probes) -> Iterator[Probes]:
    yield shared
    shared.unwatch(list(shared.counts()))


def symbols(*names: str) -> dict[str, list[int]]:
    """Return every address of each of these functions."""
    found: dict[str, list[int]] = {name: [] for name in names}
    with open("/proc/kallsyms") as lines:
        for line in lines:
            address, kind, name, *_ = line.split()
            if name in found and kind in "tT":
                found[name].append(int(address, 16))
    return found


def defined_by(pid: int) -> list[str]:
    """Return the kprobe events that a process has defined."""
    lines = (kprobes.tracefs() / "kprobe_events").read_text().splitlines()
    return [line for line in lines if f"calls_{pid}_" in line]


def asleep_in(pid: int, function: str) -> bool:
    """Wait until a process sleeps in a kernel function."""
    deadline = time.monotonic() + 20
    while function not in Path(f"/proc/{pid}/wchan").read_text():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def read_version(times: int) -> None:
    for _ in range(times):
        fd = os.open("/proc/version", os.O_RDONLY)
        os.read(fd, 4096)
        os.close(fd)


# Calls


def test_calls_are_counted_exactly(probes: Probes) -> None:
    assert probes.watch(["version_proc_show"]) == ()
    read_version(1000)
    assert probes.counts() == {"version_proc_show": CallCounts(1000, 1000, 0)}


def test_calls_on_all_cpus_at_once_are_counted_exactly(probes: Probes) -> None:
    probes.watch(["version_proc_show"])
    for pid in [work.fork(lambda: read_version(500)) for _ in range(4)]:
        os.waitpid(pid, 0)
    assert probes.counts() == {"version_proc_show": CallCounts(2000, 2000, 0)}


def test_functions_are_counted_apart_and_watched_from_their_own_time(probes: Probes) -> None:
    probes.watch(["version_proc_show"])
    read_version(3)
    probes.watch(["version_proc_show", "cmdline_proc_show"])
    Path("/proc/cmdline").read_bytes()
    read_version(2)
    assert {name: count.entries for name, count in probes.counts().items()} == {
        "version_proc_show": 5,
        "cmdline_proc_show": 1,
    }
    probes.unwatch(["version_proc_show", "never_watched"])
    probes.watch(["version_proc_show"])
    assert probes.counts()["version_proc_show"] == CallCounts(0, 0, 0)


def test_a_call_in_progress_is_counted_as_entered_and_not_returned(probes: Probes) -> None:
    read, write = os.pipe()
    pipe_read = f"{pipe()}_read"
    probes.watch([pipe_read])
    before = probes.counts()[pipe_read]
    with work.forked(lambda: os.read(read, 1)) as (pid,):
        assert asleep_in(pid, pipe_read)
        inside = probes.counts()[pipe_read]
        os.write(write, b".")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    after = probes.counts()[pipe_read]
    assert (inside.entries - before.entries, inside.exits - before.exits) == (1, 0)
    assert (after.entries - before.entries, after.exits - before.exits) == (1, 1)
    os.close(read)
    os.close(write)


def test_a_call_that_began_before_is_not_seen_to_return(probes: Probes) -> None:
    pipe_read = f"{pipe()}_read"
    read, write = os.pipe()
    with work.forked(lambda: os.read(read, 1)) as (pid,):
        assert asleep_in(pid, pipe_read)
        probes.watch([pipe_read])
        os.write(write, b".")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert probes.counts()[pipe_read] == CallCounts(0, 0, 0)
    os.close(read)
    os.close(write)


def test_missed_returns_are_shown() -> None:
    pipe_read = f"{pipe()}_read"
    read, write = os.pipe()
    with Probes(maxactive=1) as few:
        few.watch([pipe_read])
        with work.forked(*[lambda: os.read(read, 1)] * 3) as pids:
            assert all(asleep_in(pid, pipe_read) for pid in pids)
            os.write(write, b"...")
            for pid in pids:
                os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            assert few.counts() == {pipe_read: CallCounts(3, 1, 2)}
    os.close(read)
    os.close(write)


def test_programs_that_the_kernel_skipped_are_shown(probes: Probes) -> None:
    # While a task works on a hash map, the kernel runs no program at a kprobe on that CPU.
    probes.watch(["htab_map_delete_elem"])
    fd = bpf.map_create("skipped", bpf.MapShape(bpf.MAP_HASH, 4, 4, 8))
    for _ in range(10):
        bpf.update(fd, b"keys", b"data")
        bpf.delete(fd, b"keys")
    os.close(fd)
    assert probes.counts() == {"htab_map_delete_elem": CallCounts(0, 0, 20)}


# What cannot be watched


def test_unwatchable_functions_are_named_with_the_reason(probes: Probes) -> None:
    entry = "do_syscall_64" if os.uname().machine == "x86_64" else "do_int80_syscall_32"
    kernel = Kernel.live()
    inside = examine(kernel, kernel.function("version_proc_show")).entry.site  # after the ftrace site
    names = ["no_such_function", entry, "kstrtoll", "version_proc_show"]
    refused = {one.name: one.reason for one in probes.watch(names) + probes.watch({"inside": inside})}
    assert refused == {
        "no_such_function": "no such function in the kernel",
        entry: "the kernel allows no probes there: it is noinstr, or has no ftrace site",
        "kstrtoll": "the kernel allows no probes there: it is noinstr, or has no ftrace site",
        "inside": "no ftrace site is there: a probe would be a breakpoint, where the trampoline goes",
    }
    assert list(probes.counts()) == ["version_proc_show"]
    assert len(defined_by(os.getpid())) == 2


def test_an_ambiguous_name_needs_addresses(probes: Probes) -> None:
    addresses = symbols("s_show")["s_show"]
    assert len(addresses) > 1
    (refused,) = probes.watch(["s_show"])
    assert refused.reason == "several functions have this name: give its address"
    probes.watch({f"s_show-{number}": address for number, address in enumerate(addresses)})
    with open("/proc/kallsyms", "rb", buffering=0) as lines:
        lines.read(4096)
    seen = [count.entries for count in probes.counts().values()]
    assert len(seen) > 1
    assert [count > 10 for count in sorted(seen)] == [False] * (len(seen) - 1) + [True]


# Leaving nothing behind


def test_close_takes_everything_away() -> None:
    with Probes() as probes:
        probes.watch(["version_proc_show"])
        assert len(defined_by(os.getpid())) >= 2
        own = f"calls_{os.getpid()}_{Probes._serial}"
    assert own not in (kprobes.tracefs() / "kprobe_events").read_text()
    assert "version_proc_show" not in Path("/sys/kernel/debug/kprobes/list").read_text()
    assert probes.counts() == {}


def test_what_a_killed_process_left_is_at_rest_and_swept() -> None:
    loader = """
import os, signal
from dynamos_ng.probes import Probes
probes = Probes()
assert probes.watch(["version_proc_show"]) == ()
print(os.getpid(), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", loader], check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    pid = int(done.stdout)
    assert len(defined_by(pid)) == 2
    listed = Path("/sys/kernel/debug/kprobes/list").read_text().splitlines()
    assert all("[DISABLED]" in line for line in listed if "version_proc_show" in line)
    Probes().close()
    assert defined_by(pid) == []


# Stacks


def test_the_sampler_finds_a_busy_function_and_no_idle_one(probes: Probes) -> None:
    places = symbols("read_zero", "version_proc_show")
    ranges = [(places["read_zero"][0], places["read_zero"][0] + 0x100)]
    ranges.append((places["version_proc_show"][0], places["version_proc_show"][0] + 0x10))

    def busy() -> None:
        with open("/dev/zero", "rb", buffering=0) as zero:
            buffer = bytearray(1 << 20)
            while True:
                zero.readinto(buffer)

    with work.forked(busy):
        probes.start_sampler()
        time.sleep(2)
        probes.stop_sampler()
    samples = probes.samples(ranges)
    assert samples.found[0] > 20
    assert samples.found[1] == 0
    assert samples.kernel >= samples.found[0] == sum(stack.samples for stack in samples.stacks)
    assert samples.lost == 0
    known = Symbols.live()
    named = [[known.around(frame)[0][0].name for frame in stack.frames] for stack in samples.stacks]
    assert all("read_zero" in names for names in named)
    assert named[0][-1] in ("entry_SYSCALL_64_after_hwframe", "entry_SYSENTER_32", "entry_INT80_32")
    time.sleep(0.3)
    assert probes.samples(ranges) == samples, "it went on after the stop"


def test_earlier_samples_are_forgotten(probes: Probes) -> None:
    everything = [(1 << 31, (1 << 64) - 1)]
    first, second = (sum(stack.samples for stack in probes.sample(everything, time)) for time in (1.0, 0.2))
    assert first > second > 0


# Events


def test_fork_exec_and_exit_are_told_in_order(probes: Probes) -> None:
    probes.start_events()
    probes.events()
    with subprocess.Popen(["true"]) as process:
        pass
    told = [(event.kind, event.parent, event.comm) for event in probes.events() if event.pid == process.pid]
    me = Path("/proc/self/comm").read_text().strip()
    assert told == [("fork", os.getpid(), me), ("exec", 0, "true"), ("exit", 0, "true")]
    assert probes.events_lost() == 0


def test_events_that_find_no_room_are_counted() -> None:
    with Probes() as slow:
        slow.start_events(pages=1)
        for _ in range(100):
            with work.forked(lambda: None):
                pass
        received = sum(event.kind in ("fork", "exit") for event in slow.events())
        assert 0 < received < 200
        assert received + slow.events_lost() >= 200
