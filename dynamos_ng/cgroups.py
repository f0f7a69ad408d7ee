"""Control groups of the unified hierarchy: their paths, and the numbers by which the kernel knows them."""

from __future__ import annotations

import ctypes as c
import os
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD = -100
#: Of kernfs, whose handles are the 64-bit number that BPF gets (FILEID_KERNFS of include/linux/exportfs.h).
_KERNFS, _HANDLE_BYTES = 0xFE, 8


class _Handle(c.Structure):
    _fields_ = [("size", c.c_uint32), ("type", c.c_int32), ("id", c.c_uint8 * _HANDLE_BYTES)]


def mount() -> Path | None:
    """Return where the unified hierarchy is mounted."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    return None


def number(path: Path) -> int | None:
    """Return the number of the cgroup at a path; None if there is none."""
    handle, mount_id = _Handle(size=_HANDLE_BYTES), c.c_int()
    libc = c.CDLL(None, use_errno=True)
    if libc.name_to_handle_at(_AT_FDCWD, os.fsencode(path), c.byref(handle), c.byref(mount_id), 0) < 0:
        return None
    return int.from_bytes(bytes(handle.id), "little") if handle.type == _KERNFS else None


def all_of(root: Path) -> Iterator[tuple[str, int]]:
    """Yield path, as /proc/PID/cgroup shows it, and number of each cgroup."""
    for folder, _, _ in os.walk(root):
        found = number(Path(folder))
        if found is not None:
            inside = os.path.relpath(folder, root)
            yield "/" if inside == "." else os.fsencode(f"/{inside}").decode(errors="replace"), found
