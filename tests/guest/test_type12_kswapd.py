"""Type 12: a subsystem whose heart is a kernel thread that never returns, replaced together with its functions."""

from __future__ import annotations

import mmap
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLES, probed

from dynamos_ng import control
from dynamos_ng.demo import load as work

NAME = "type12-kswapd"
MIB = 1 << 20
#: What is left for the page cache: more than the reserve, and less than the disk.
CACHE = 600 * MIB
#: An administrator's, such as no kswapd has by itself.
NICE, CPUS = -3, {0}


def statistic(name: str) -> int:
    """Return a number of /proc/vmstat."""
    return int(re.search(rf"^{name} (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)[1])  # type: ignore[index]


def free() -> int:
    return statistic("nr_free_pages") * mmap.PAGESIZE


def reserve() -> int:
    """Return what the edition keeps free: an eighth of the node, less what counting by processor may miss."""
    pages = sum(map(int, re.findall(r"^ +present +(\d+)$", Path("/proc/zoneinfo").read_text(), re.MULTILINE)))
    return pages * mmap.PAGESIZE // 8 * 95 // 100


def stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()


def threads() -> list[int]:
    """Return the PIDs of the threads that are called kswapd0."""
    listed = subprocess.run(["ps", "-e", "-o", "pid=,comm="], capture_output=True, text=True, check=True).stdout
    return [int(line.split()[0]) for line in listed.splitlines() if line.split()[1] == "kswapd0"]


def thread() -> int:
    """Return the PID of the one kswapd."""
    (pid,) = threads()
    return pid


def traits(pid: int) -> tuple[int, set[int], int]:
    """Return nice value, affinity and flags; whether it has used a clock or a FPU is its own affair."""
    return os.getpriority(os.PRIO_PROCESS, pid), os.sched_getaffinity(pid), int(stat(pid)[6]) & 0x00220800


def uses() -> dict[str, tuple[int, int]]:
    """Return entered and exited of the editions 2."""
    (update,) = control.call("status")["updates"]
    return {f["function"]["name"]: (f["uses"][1]["entered"], f["uses"][1]["exited"]) for f in update["functions"]}


def hog(size: int) -> None:
    """Take memory that nothing can be won back from, and keep it."""
    memory = mmap.mmap(-1, size)
    for at in range(0, size, mmap.PAGESIZE):
        memory[at] = 1
    time.sleep(100_000)


def read_disk() -> None:
    while True:
        with Path("/dev/vda").open("rb", buffering=0) as disk:
            while disk.read(MIB):
                pass


def read_files() -> None:
    """Fill the high memory of a 32-bit kernel too, where the disk's own cache has no place."""
    while True:
        for folder, _, names in os.walk("/usr"):
            for name in names:
                path = Path(folder, name)
                if path.is_file():
                    path.read_bytes()


def until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline, f"{what}: {free() // MIB} MiB free, {reserve() // MIB} MiB reserve"
        time.sleep(0.1)


def test_kswapd_is_replaced_and_comes_back(loaded: Callable[[Path], Any]) -> None:
    def works_as_before() -> None:
        """Under pressure memory is won back, and the reserve is not kept."""
        before = statistic("pgsteal_kswapd")
        with work.forked(read_disk, read_files):
            until(lambda: free() < reserve() // 2, "the original keeps no reserve")
            until(lambda: statistic("pgsteal_kswapd") > before + 10_000, "the original reclaims")

    with work.forked(lambda: hog(max(free() - CACHE, MIB))):
        until(lambda: free() < CACHE + 50 * MIB, "the memory is taken")
        first = thread()
        os.setpriority(os.PRIO_PROCESS, first, NICE)
        os.sched_setaffinity(first, CPUS)
        before = traits(first)
        works_as_before()

        functions = loaded(EXAMPLES / NAME)["functions"]
        with probed("in_the_way", functions[0]["site"]), pytest.raises(control.Remote, match=r"kprobe at kswapd\+"):
            control.call("activate", name=NAME)
        assert thread() == first, "the stop was refused, and the successor is gone"
        control.call("activate", name=NAME, classes=[9])
        assert len(threads()) == 2, "a kernel thread is of class 0: it stays in charge, its successor waits"
        assert stat(max(threads()))[0] == "I", "who waits for long is not taken for a task that hangs"
        control.call("deactivate", name=NAME)
        assert thread() == first

        until(lambda: stat(first)[0] == "S", "the original sleeps")
        asleep = control.call("quiescence", function="kswapd")["walk"]["holders"]
        assert [(holder["pid"], holder["edition"]) for holder in asleep] == [(first, 0)]
        with work.forked(read_disk):
            control.call("activate", name=NAME)
        until(lambda: uses()["kswapd"] == (1, 0), "the successor runs the edition")
        second = thread()
        assert second != first
        assert not Path(f"/proc/{first}").exists(), "the original's thread has ended"
        assert traits(second) == before
        entered, exited = uses()["balance_pgdat"]
        assert entered == exited, "the exit of the call in which it ended is counted"
        until(lambda: free() >= reserve(), "the edition looks after its reserve")
        assert subprocess.run(["rmmod", "dynamos_type12_kswapd"], capture_output=True, check=False).returncode
        stolen = statistic("pgsteal_kswapd")
        with work.forked(read_disk, read_disk):
            until(lambda: statistic("pgsteal_kswapd") > stolen + 50_000, "the edition reclaims")
        until(lambda: free() >= reserve(), "the edition keeps its reserve")

        with work.forked(read_disk):
            control.call("deactivate", name=NAME)
            until(lambda: uses()["kswapd"] == (1, 1), "the edition's thread leaves")
        third = thread()
        assert third not in (first, second)
        assert traits(third) == before
        works_as_before()
        control.call("activate", name=NAME)
        until(lambda: uses()["kswapd"] == (2, 1), "and again")
        control.call("unload", name=NAME, wait=60.0)
        assert control.call("status")["updates"] == []
        assert traits(thread()) == before
        works_as_before()
    os.setpriority(os.PRIO_PROCESS, thread(), 0)
    os.sched_setaffinity(thread(), os.sched_getaffinity(0))
