"""A load that goes through much of a kernel: files, sockets, pipes, timers, forks, memory under pressure.

Each worker is a process of its own that goes round until it is told to stop, and checks what it gets back from the
kernel. What goes wrong with the kernel's data is then seen, and not only what makes it oops.
"""

from __future__ import annotations

import mmap
import os
import random
import select
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from dynamos_ng.demo.load import Pipes, fork, reap

#: What memory a worker under pressure may have, and what it reads of the disk in each round.
PRESSURE_BYTES = 64 << 20
READ_BYTES = 8 << 20
CGROUPS = Path("/tmp/dynamos-cgroup")
#: How long a worker may take for its last round.
PATIENCE = 120.0


def _files(dice: random.Random) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(10):
            path = folder / f"file{number}"
            data = dice.randbytes(dice.choice((0, 17, 4096, 50_000)))
            path.write_bytes(data)
            os.link(path, folder / "link")
            (folder / "link").rename(folder / f"renamed{number}")
            (folder / f"soft{number}").symlink_to(path)
            assert (folder / f"soft{number}").read_bytes() == data
            os.truncate(path, len(data) // 2)
            assert (folder / f"renamed{number}").read_bytes() == data[: len(data) // 2]
            path.chmod(0o600)
            with path.open("r+b", buffering=0) as file:
                file.seek(3)
                file.write(b"x" * 5000)
                os.fsync(file.fileno())
                with mmap.mmap(file.fileno(), 0) as memory:
                    assert memory[3:5003] == b"x" * 5000
        assert len(os.listdir(folder)) == 30
    Path("/proc/self/maps").read_text()
    Path("/proc/stat").read_text()
    Path("/proc/self/status").read_text()
    Path("/sys/kernel/notes").read_bytes()
    os.statvfs("/")


def _sockets(dice: random.Random) -> None:
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        left, right = socket.socketpair(socket.AF_UNIX, kind)
        with left, right:
            _exchange(left, right, dice)
    with socket.create_server(("127.0.0.1", 0)) as server:
        left = socket.create_connection(server.getsockname())
        right, _ = server.accept()
        with left, right:
            _exchange(left, right, dice)
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as left,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as right,
    ):
        left.bind(("127.0.0.1", 0))
        right.bind(("127.0.0.1", 0))
        left.connect(right.getsockname())
        right.connect(left.getsockname())
        _exchange(left, right, dice)


def _exchange(left: socket.socket, right: socket.socket, dice: random.Random) -> None:
    with select.epoll() as waiting:
        waiting.register(right.fileno(), select.EPOLLIN)
        for _ in range(5):
            data, got = dice.randbytes(dice.randint(1, 8000)), b""
            left.sendall(data)
            while len(got) < len(data):
                assert waiting.poll(10)
                got += right.recv(65536)
            assert got == data


def _processes(dice: random.Random) -> None:
    for _ in range(5):
        pid = os.fork()
        if pid == 0:
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
    word = str(dice.random())
    assert subprocess.run(["cat"], input=word, text=True, capture_output=True, check=True).stdout == word
    threads = [threading.Thread(target=time.sleep, args=(0.001,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    caught: list[int] = []
    signal.signal(signal.SIGALRM, lambda number, _: caught.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.002)
    time.sleep(0.01)
    assert caught == [signal.SIGALRM]
    os.sched_setaffinity(0, {dice.choice(sorted(os.sched_getaffinity(0)))})
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    os.nice(0)


def _waiting(_: random.Random) -> None:
    started = time.monotonic()
    time.sleep(0.003)
    with select.epoll() as waiting:
        waiting.poll(0.002)
    read, write = os.pipe()
    assert select.select([read], [], [], 0.001)[0] == []
    os.write(write, b".")
    assert select.select([read], [], [], 5)[0] == [read]
    os.close(read)
    os.close(write)
    os.sched_yield()
    assert time.monotonic() - started > 0.005


def _memory(dice: random.Random) -> None:
    """Map, touch, protect, give back; and read more of the disk than there is room for."""
    size = dice.choice((1, 4)) << 20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        for page in range(0, size, mmap.PAGESIZE):
            memory[page] = page >> 12 & 0xFF
        pid = os.fork()
        if pid == 0:
            memory[: mmap.PAGESIZE] = b"c" * mmap.PAGESIZE  # a copy on write
            os._exit(memory[mmap.PAGESIZE])
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        assert memory[1] == 0
        memory.madvise(mmap.MADV_DONTNEED, 0, size // 2)
        assert memory[mmap.PAGESIZE] == 0
    done = 0
    files = sorted(Path("/usr/bin").iterdir())
    while done < READ_BYTES:
        path = dice.choice(files)
        if path.is_file():
            done += len(path.read_bytes()) + 4096


WORKERS: tuple[Callable[[random.Random], None], ...] = (_files, _sockets, _processes, _waiting, _memory)


class Load:
    """All workers at once, from `with` on until `finish`."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pipes = Pipes(2, seed)
        self._workers: dict[int, str] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="dynamos-load-"))

    def __enter__(self) -> Load:
        self._stop = self.folder / "stop"
        self._pipes.__enter__()
        for number, worker in enumerate(WORKERS):
            dice = random.Random(self._seed * 100 + number)
            self._workers[fork(partial(self._work, worker, dice))] = worker.__name__[1:]
        _confine(next(pid for pid, name in self._workers.items() if name == "memory"))
        return self

    def _work(self, worker: Callable[[random.Random], None], dice: random.Random) -> None:
        rounds = 0
        while not self._stop.exists() or not rounds:
            worker(dice)
            rounds += 1

    def finish(self) -> list[str]:
        """Stop and return what went wrong, by worker; an empty list if all got from the kernel what they should."""
        self._stop.touch()
        moved, intact = self._pipes.finish()
        wrong = [] if moved and intact else [f"pipes: {moved} bytes moved, which are not those that were sent"]
        deadline = time.monotonic() + PATIENCE
        while self._workers and time.monotonic() < deadline:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in self._workers:
                name = self._workers.pop(pid)
                if status:
                    wrong.append(f"{name}: ended with status {os.waitstatus_to_exitcode(status)}")
            else:
                time.sleep(0.02)
        return wrong + [f"{name}: did not end" for name in self._workers.values()]

    def __exit__(self, *_: object) -> None:
        for pid in self._workers:
            reap(pid)
        self._pipes.__exit__()


def _confine(pid: int) -> None:
    """Give a process little memory, so that the kernel has to reclaim its pages all the time."""
    if not CGROUPS.is_dir():
        CGROUPS.mkdir()
        subprocess.run(["mount", "-t", "cgroup2", "cgroup2", str(CGROUPS)], check=True)
        (CGROUPS / "cgroup.subtree_control").write_text("+memory")
        (CGROUPS / "pressed").mkdir()
        (CGROUPS / "pressed/memory.max").write_text(str(PRESSURE_BYTES))
    (CGROUPS / "pressed/cgroup.procs").write_text(str(pid))
