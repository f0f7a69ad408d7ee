"""The running kernel's memory, read by several processes at once."""

from __future__ import annotations

import os
import time

from dynamos_ng.demo import load as work
from dynamos_ng.image import Kernel
from dynamos_ng.memory import Kcore

PROCESSES = 2
SECONDS = 5.0


def test_processes_of_one_family_do_not_read_each_others_bytes() -> None:
    kernel, kcore = Kernel.live(), Kcore()
    symbols = [kernel.function(name) for name in ("vfs_read", "vfs_write", "do_exit", "schedule")]
    wanted = {symbol: kcore.read(symbol.address, symbol.size) for symbol in symbols}

    def read() -> None:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            for symbol, code in wanted.items():
                assert kcore.read(symbol.address, symbol.size) == code

    pids = [work.fork(read) for _ in range(PROCESSES)]
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * PROCESSES
