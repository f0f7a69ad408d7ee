"""Processes and accounts of this machine, as /proc and psutil tell of them. The only importer of psutil."""

from __future__ import annotations

import grp
import os
import pwd
import time
from contextlib import suppress
from pathlib import Path

import psutil

from dynamos_ng.errors import UsageError
from dynamos_ng.model import Cost
from dynamos_ng.policy.language import Accounts
from dynamos_ng.policy.verdict import Process

#: So much of a process's arguments is looked at.
ARGV_MAX = 1 << 15
#: Where _stat() has a task's flags, and the flag of one that exits (include/linux/sched.h).
_FLAGS, _PF_EXITING = 6, 0x4


def check_process(pid: int) -> None:
    """Raise UsageError unless PID is a live process (and not merely a thread of one)."""
    if type(pid) is not int or pid < 1:  # whoever asks the daemon may send anything, and a path is read as root
        raise UsageError(f"PID {pid!r}: not the number of a process")
    try:
        leader = _thread_group(pid)
    except (OSError, ValueError):
        raise UsageError(f"PID {pid}: no such process") from None
    if leader != pid:
        raise UsageError(f"PID {pid} is a thread of process {leader}: give the process's PID")


def _thread_group(tid: int) -> int:
    for line in Path(f"/proc/{tid}/status").read_text(errors="replace").splitlines():
        if line.startswith("Tgid:"):
            return int(line.split()[1])
    raise ValueError(tid)


def name_of(pid: int) -> str:
    """Return a process's name, or an empty text when it is gone."""
    try:
        return str(psutil.Process(pid).name())
    except (psutil.Error, OSError):  # psutil lets some through when the PID has a new owner
        return ""


def pids() -> list[int]:
    """Return all processes, kernel threads too, also those that have exited and wait to be reaped."""
    return [int(name) for name in os.listdir("/proc") if name.isdecimal()]


def process(pid: int) -> Process | None:
    """Return what rules can ask of a process; None if there is none, or all its threads have exited."""
    folder = Path("/proc", str(pid))
    try:
        comm, fields = _stat(pid)
        if fields[0] in "ZX" and len(os.listdir(folder / "task")) < 2:
            return None
        status = dict(
            line.split(":\t", 1) for line in (folder / "status").read_text(errors="replace").splitlines()
            if ":\t" in line
        )  # fmt: skip
        if status["Tgid"] != str(pid):
            return None
        with (folder / "cmdline").open("rb") as file:
            argv = file.read(ARGV_MAX).rstrip(b"\0").replace(b"\0", b" ")
        unified = [
            line.removeprefix("0::")
            for line in (folder / "cgroup").read_text(errors="replace").splitlines()
            if line.startswith("0::")
        ]
        return Process(
            pid=pid,
            comm=comm,
            exe=_exe(folder),
            argv=argv.decode(errors="replace"),
            uid=int(status["Uid"].split()[0]),
            gid=int(status["Gid"].split()[0]),
            cgroup=unified[0] if unified else "",
            session=int(fields[3]),
            parents=tuple(_parents(int(fields[1]))),
        )
    except (OSError, ValueError, KeyError, IndexError):
        return None


def is_ending(pid: int) -> bool:
    """Return whether every thread of a process has begun to exit; so has one that is gone."""
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return True
    for tid in threads:
        with suppress(OSError, ValueError, IndexError):
            if not int(_stat(f"{pid}/task/{tid}")[1][_FLAGS]) & _PF_EXITING:
                return False
    return True


def _stat(task: int | str) -> tuple[str, list[str]]:
    """Return a task's name, and the fields after it: state, parent, process group, session, and so on."""
    text = Path(f"/proc/{task}/stat").read_bytes().decode(errors="replace")
    start, end = text.index("("), text.rindex(")")
    return text[start + 1 : end], text[end + 2 :].split()


def _exe(folder: Path) -> str:
    try:
        return os.fsencode(os.readlink(folder / "exe")).decode(errors="replace").removesuffix(" (deleted)")
    except FileNotFoundError:  # a kernel thread
        return ""


def _parents(pid: int) -> list[str]:
    """Return the names of a process and those above it; one that has just gone ends the list."""
    found: list[str] = []
    while pid and len(found) < 1000:
        try:
            comm, fields = _stat(pid)
        except (OSError, ValueError):
            break
        found.append(comm)
        pid = int(fields[1])
    return found


def accounts() -> Accounts:
    """Return who knows this machine's users and groups."""

    def uid(name: str) -> int | None:
        try:
            return pwd.getpwnam(name).pw_uid
        except (KeyError, ValueError):
            return None

    def gid(name: str) -> int | None:
        try:
            return grp.getgrnam(name).gr_gid
        except (KeyError, ValueError):
            return None

    return Accounts(uid, gid)


def own_cost() -> Cost:
    """Return what this process has used until now."""
    process = psutil.Process()
    return Cost(process.pid, time.process_time(), int(process.memory_info().rss))
