"""Functions of every kind, redirected together under load: each is entered, and the kernel behaves as before."""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import entered, named, pipe, uses, write_update

from dynamos_ng import control
from dynamos_ng.demo import load as work

pytestmark = pytest.mark.everywhere

#: What is special about each on a stock 6.1 kernel.
KINDS = {
    "strncpy_from_user": "exception table, and no ftrace site",
    "kmem_cache_alloc": "static keys and static calls",
    "do_sys_openat2": "inner branches",
    "vfs_write": "a WARN, static calls",
    "filp_close": "a cold part",
    "__fput": "indirect calls through tables of operations",
    "dput": "loops, several WARNs",
    "copy_page_to_iter": "a static key, and no ftrace site",
    "wake_up_new_task": "static keys, static calls",
    "put_pid": "a tail jump",
}


def churn(folder: Path) -> None:
    """Open, write, read, rename and remove files; fork and exec."""
    for number in range(40):
        path = folder / f"file{number}"
        path.write_bytes(os.urandom(5000))
        assert len(path.read_bytes()) == 5000
        path.rename(folder / "other")
        (folder / "other").unlink()
    for _ in range(5):
        assert subprocess.run(["/bin/true"], check=False).returncode == 0


def test_every_kind_under_load(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    kinds = [named(name, f"{name}_noprof") for name in KINDS]
    loaded(write_update(tmp_path / "kinds", {name: [] for name in kinds}))
    control.call("activate", name="kinds")
    with work.Pipes(3) as pipes:
        churn(tmp_path)
        moved, intact = pipes.finish()
    assert intact
    assert moved
    assert {name for name in kinds if not entered(name)} == set()
    assert os_open_fault() == errno.EFAULT, "a fault inside a cloned access to user memory is fixed up in the clone"
    control.call("unload", name="kinds", wait=120.0)
    churn(tmp_path)


def os_open_fault() -> int:
    """Open a path at an address that is not mapped; return the errno."""
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.open(ctypes.c_void_p(8), os.O_RDONLY) == -1
    return ctypes.get_errno()


def test_a_function_that_never_returns(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    """do_exit is judged by the stack walk alone: its exits can never balance."""
    loaded(write_update(tmp_path / "exits", {"do_exit": []}))
    control.call("activate", name="exits")
    for _ in range(10):
        subprocess.run(["/bin/true"], check=True)
    calls, returns = uses("do_exit")
    assert calls >= 10
    assert returns == 0
    control.call("unload", name="exits", wait=60.0)
    assert control.call("status")["updates"] == []


def test_a_function_in_some_of_whose_calls_the_task_ends(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    """get_signal returns for a signal that is handled, and for one that kills it calls do_group_exit."""
    loaded(write_update(tmp_path / "signals", {"get_signal": []}))
    control.call("activate", name="signals")
    for _ in range(10):
        with work.forked(signal.pause) as pids:
            time.sleep(0.05)
            os.kill(pids[0], signal.SIGTERM)
            os.waitpid(pids[0], 0)
    assert entered("get_signal") >= 10
    control.call("unload", name="signals", wait=60.0)
    assert control.call("status")["updates"] == []


def test_an_edition_may_call_the_original(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    function = f"{pipe()}_read"
    source = """
#include <linux/fs.h>
#include <linux/uio.h>
ssize_t pipe_read_v1(struct kiocb *iocb, struct iov_iter *to);
ssize_t pipe_read_v2(struct kiocb *iocb, struct iov_iter *to);
static unsigned long long_reads;
ssize_t pipe_read_v2(struct kiocb *iocb, struct iov_iter *to)
{
	if (iov_iter_count(to) > 1000)
		long_reads++;
	if (iov_iter_count(to) == 7)
		return -EDOM;
	return pipe_read_v1(iocb, to);
}
""".replace("pipe_read", function)
    loaded(write_update(tmp_path / "wrapped", {function: [2]}, source))
    control.call("activate", name="wrapped", classes=[9])
    control.call("policy_process", pid=os.getpid(), policy_class=9)
    end_read, end_write = os.pipe()
    try:
        os.write(end_write, b"0123456789")
        try:
            os.read(end_read, 7)
            raise AssertionError("edition 2 was not run")
        except OSError as error:
            assert error.errno == errno.EDOM
        assert os.read(end_read, 2000) == b"0123456789"
    finally:
        control.call("policy_process", pid=os.getpid(), policy_class=0)
        os.close(end_read)
        os.close(end_write)
    time.sleep(0.1)
    status = control.call("status")["updates"][0]["functions"][0]
    uses = {use["number"]: use for use in status["uses"]}
    assert uses[2]["entered"] == uses[2]["exited"] == 2
    assert uses[1]["entered"] >= 1
    control.call("unload", name="wrapped", wait=60.0)
