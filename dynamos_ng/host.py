"""Processes of this machine, as /proc and psutil tell of them. The only importer of psutil."""

from __future__ import annotations

from pathlib import Path

import psutil

from dynamos_ng.errors import UsageError


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
