"""Processes of this machine, as /proc and psutil tell of them. The only importer of psutil."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil

from dynamos_ng.errors import UsageError
from dynamos_ng.model import Holder

#: Frames shown of a sleeper's stack; the outermost are the same for every system call.
FRAMES = 12


def check_process(pid: int) -> None:
    """Raise UsageError unless PID is a live process (and not merely a thread of one)."""
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
    except psutil.Error:
        return ""


def kernel_stack(tgid: int, tid: int) -> tuple[str, ...]:
    """Return the kernel stack of a sleeping task, innermost frame first; empty when it is gone or running."""
    try:
        text = Path(f"/proc/{tgid}/task/{tid}/stack").read_text()
    except OSError:
        return ()
    frames = (line.split(maxsplit=1)[-1] for line in text.splitlines() if line)
    return tuple(frame for frame, _ in zip(frames, range(FRAMES), strict=False))


def described(holders: Iterable[Holder]) -> Iterator[Holder]:
    """Add the kernel stack to each holder. Idle tasks (PID 0) have none to show."""
    for holder in holders:
        yield replace(holder, stack=kernel_stack(holder.tgid, holder.pid)) if holder.pid else holder
