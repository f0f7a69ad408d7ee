"""Work for a kernel: readers, sleepers, and pipes whose checksums must come out right.

Each piece is made of forked processes, so that it has kernel stacks of its own, and ends them itself.
"""

from __future__ import annotations

import hashlib
import itertools
import mmap
import os
import pty
import random
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

BLOCK_MAX = 70_000
#: length in bytes, then a SHA-256
REPORT = 8 + 32


def named(*names: str) -> str:
    """Return which of these names a function has in the running kernel: later ones renamed some."""
    text = Path("/proc/kallsyms").read_text()
    return next(name for name in names if re.search(rf" [tT] {name}$", text, re.MULTILINE))


def fork(run: Callable[[], object]) -> int:
    """Run a function in a child process and return its PID; the child never returns from here."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        run()
        status = 0
    finally:
        os._exit(status)


def reap(pid: int) -> None:
    """End a child that we started, if it still runs, and collect it."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    with suppress(ChildProcessError):
        os.waitpid(pid, 0)


@contextmanager
def forked(*runs: Callable[[], object]) -> Iterator[list[int]]:
    """Run each function in a process of its own and give their PIDs; those that still run are killed at the end."""
    pids = [fork(run) for run in runs]
    try:
        yield pids
    finally:
        for pid in pids:
            reap(pid)


def read_exactly(fd: int, size: int) -> bytes:
    """Read `size` bytes, or fewer at the end of the file."""
    data = b""
    while len(data) < size and (part := os.read(fd, size - len(data))):
        data += part
    return data


@dataclass(frozen=True)
class Reader:
    """A process that reads a file each time it is told to."""

    pid: int
    go: int
    answer: int


@contextmanager
def reader_of(path: str) -> Iterator[Reader]:
    """Start a process that reads `path` on demand (`read_together`)."""
    go_read, go_write = os.pipe()
    answer_read, answer_write = os.pipe()

    def run() -> None:
        os.close(go_write)
        while os.read(go_read, 1):
            data = Path(path).read_bytes()
            os.write(answer_write, len(data).to_bytes(8, "little") + data)

    pid = fork(run)
    try:
        yield Reader(pid, go_write, answer_read)
    finally:
        for fd in (go_read, go_write, answer_read, answer_write):
            os.close(fd)
        reap(pid)


def read_together(*readers: Reader) -> list[str]:
    """Let the readers read at the same moment; return what each saw."""
    for reader in readers:
        os.write(reader.go, b".")
    return [
        read_exactly(reader.answer, int.from_bytes(read_exactly(reader.answer, 8), "little")).decode()
        for reader in readers
    ]


@dataclass(frozen=True)
class Sleeper:
    """A process asleep in a read of an empty pipe."""

    pid: int
    end: int

    def wake(self) -> None:
        """Give it the byte that it waits for; it then leaves the kernel and exits."""
        os.write(self.end, b".")

    def wake_after(self, seconds: float) -> None:
        """Wake it later, from a thread."""
        timer = threading.Timer(seconds, self.wake)
        timer.daemon = True
        timer.start()


@contextmanager
def sleeping_reader(then: Callable[[], object] = lambda: None) -> Iterator[Sleeper]:
    """Start a process and return once it sleeps in pipe_read, whichever edition that is; woken, it does `then`."""
    end_read, end_write = os.pipe()

    def run() -> None:
        os.close(end_write)
        os.read(end_read, 1)
        then()

    pid = fork(run)
    try:
        deadline = time.monotonic() + 30
        # wchan, for /proc/PID/stack makes a kernel with kretprobes warn when the task wakes in that moment.
        while "pipe_read" not in Path(f"/proc/{pid}/wchan").read_text():
            if time.monotonic() > deadline:
                raise TimeoutError("the reader did not fall asleep in pipe_read")
            time.sleep(0.02)
        yield Sleeper(pid, end_write)
    finally:
        os.close(end_read)
        os.close(end_write)
        reap(pid)


@contextmanager
def repeated(*steps: Callable[[], object]) -> Iterator[None]:
    """Let each step be repeated in a process of its own meanwhile; RuntimeError if one failed, or was never done."""
    stop = mmap.mmap(-1, 1)  # shared with the children; an end of a pipe would be inherited by others, too

    def repeat(step: Callable[[], object]) -> None:
        done = 0
        while not stop[0]:
            step()
            done += 1
        assert done

    pids = [fork(lambda step=step: repeat(step)) for step in steps]  # type: ignore[misc]
    try:
        yield
        stop[0] = 1
        failed = []
        for step in steps:
            if os.waitpid(pids.pop(0), 0)[1]:
                failed.append(step)
        if failed:
            raise RuntimeError(f"what was to be repeated has failed: {failed}")
    finally:
        for pid in pids:
            reap(pid)


class Pipes:
    """Pairs of processes, a writer of random data and a reader, each summing what passes."""

    def __init__(self, pairs: int, seed: int = 1) -> None:
        self._pairs = pairs
        self._seed = seed
        self._pids: list[int] = []
        self._reports: list[tuple[int, int]] = []

    def __enter__(self) -> Pipes:
        self._stop_read, self._stop_write = os.pipe()
        os.set_blocking(self._stop_read, False)
        for number in range(self._pairs):
            self._start(random.Random(self._seed * 1000 + number))
        return self

    def _start(self, dice: random.Random) -> None:
        data_read, data_write = os.pipe()
        sent_read, sent_write = os.pipe()
        got_read, got_write = os.pipe()

        def write() -> None:
            os.close(data_read)
            os.close(self._stop_write)
            _write(data_write, self._stop_read, sent_write, dice)

        def read() -> None:
            os.close(data_write)
            os.close(self._stop_write)
            _read(data_read, got_write, dice)

        self._pids += [fork(write), fork(read)]
        for fd in (data_read, data_write, sent_write, got_write):
            os.close(fd)
        self._reports.append((sent_read, got_read))

    def flow(self, seconds: float) -> None:
        """Let data flow for so long."""
        time.sleep(seconds)

    def carry(self, size: int) -> None:
        """Let data flow until the writers have written so many bytes."""
        while sum(_written(pid) for pid in self._pids[::2]) < size:
            time.sleep(0.2)

    def finish(self) -> tuple[int, bool]:
        """Stop the writers; return the bytes moved, and whether every reader saw what its writer sent."""
        os.close(self._stop_write)
        self._stop_write = -1
        moved, intact = 0, True
        for sent, got in self._reports:
            wrote, read = read_exactly(sent, REPORT), read_exactly(got, REPORT)
            intact = intact and len(wrote) == REPORT and wrote == read
            moved += int.from_bytes(read[:8], "little")
        return moved, intact

    def __exit__(self, *_: object) -> None:
        for pid in self._pids:
            reap(pid)
        for fd in (self._stop_read, self._stop_write, *(fd for pair in self._reports for fd in pair)):
            if fd >= 0:
                os.close(fd)


def _written(pid: int) -> int:
    """Return how many bytes a process has handed to write()."""
    return int(re.search(r"^wchar: (\d+)$", Path(f"/proc/{pid}/io").read_text(), re.MULTILINE)[1])  # type: ignore[index]


def _report(fd: int, length: int, digest: bytes) -> None:
    os.write(fd, length.to_bytes(8, "little") + digest)


def _stopped(stop: int) -> bool:
    """Return whether the other end of the stop pipe has been closed."""
    try:
        return not os.read(stop, 1)
    except BlockingIOError:
        return False


def _write(data: int, stop: int, report: int, dice: random.Random) -> None:
    total, digest = 0, hashlib.sha256()
    while not _stopped(stop):
        block = dice.randbytes(dice.choice((1, 100, 4096, dice.randint(1, BLOCK_MAX))))
        digest.update(block)
        total += len(block)
        while block:
            block = block[os.write(data, block) :]
        if dice.random() < 0.3:  # an empty pipe: the reader sleeps
            time.sleep(0.002)
    os.close(data)
    _report(report, total, digest.digest())


def _read(data: int, report: int, dice: random.Random) -> None:
    total, digest = 0, hashlib.sha256()
    while block := os.read(data, dice.randint(1, BLOCK_MAX)):
        digest.update(block)
        total += len(block)
        if dice.random() < 0.1:  # a full pipe: the writer sleeps
            time.sleep(0.005)
    _report(report, total, digest.digest())


def stir() -> None:
    """Cause ordinary work on every CPU, so that idle kernel threads run once."""
    os.sync()
    for cpu in os.sched_getaffinity(0):
        subprocess.run(["taskset", "-c", str(cpu), "true"], check=True)
    # Work for no CPU in particular, in a burst: a worker that begins wakes another one as long as there is more.
    terminals = [pty.openpty() for _ in range(32)]
    for ends in terminals:
        os.write(ends[0], b"x")
    for end in itertools.chain.from_iterable(terminals):
        os.close(end)
