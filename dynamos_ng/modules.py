"""Kernel modules: load, unload, and what a module file says of itself."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from dynamos_ng.device import meaning
from dynamos_ng.errors import Busy, DynamosError, KernelRefused, UsageError

#: finit_module, delete_module
SYSCALLS = {"x86_64": (313, 176), "i686": (350, 129)}
O_NONBLOCK = 0o4000


def loaded(name: str) -> bool:
    """Return whether a module of this name is in the kernel."""
    return (Path("/sys/module") / name / "refcnt").exists()


def live(name: str) -> bool:
    """Return whether a module of this name is in the kernel and has been set up."""
    try:
        return (Path("/sys/module") / name / "initstate").read_text() == "live\n"
    except OSError:
        return False


def used_by(name: str) -> list[str]:
    """Return the modules whose symbols a loaded module uses."""
    lines = [line.split() for line in Path("/proc/modules").read_text().splitlines()]
    return [fields[0] for fields in lines if name in fields[3].split(",")]


def modinfo(path: Path) -> dict[str, str]:
    """Return the .modinfo of a module file by key (the last value where a key repeats)."""
    try:
        with path.open("rb") as file:
            section = ELFFile(file).get_section_by_name(".modinfo")
            data = section.data() if section else b""
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file") from None
    except (OSError, ELFError) as error:
        raise UsageError(f"{path}: not a kernel module: {error}") from None
    pairs = (entry.decode(errors="replace").partition("=") for entry in data.split(b"\0") if entry)
    info = {key: value for key, _, value in pairs}
    if "vermagic" not in info:
        raise UsageError(f"{path}: not a kernel module: it has no version magic")
    return info


def load(path: Path) -> str:
    """Load a module file and return its name. KernelRefused says why not, with the kernel's own words."""
    info = modinfo(path)
    built_for = info["vermagic"].split()[0]
    if built_for != platform.release():
        raise KernelRefused(
            f"{path.name}: built for kernel {built_for}, and this one is {platform.release()}: "
            "run 'dynamos build' again here",
            errno.ENOEXEC,
        )
    name = info.get("name", path.stem.replace("-", "_"))
    with _kernel_log() as log, path.open("rb") as file:
        code = _syscall(0, ctypes.c_int(file.fileno()), b"", ctypes.c_int(0))
        if code == errno.EEXIST:
            raise KernelRefused(f"{name}: a module of this name is loaded already", code)
        if code:
            words = "".join(f"\n  kernel: {line}" for line in log() if name in line)
            raise KernelRefused(f"{path.name}: {meaning(code)}{words}", code)
    return name


def unload(name: str) -> None:
    """Unload a module; Busy when it is in use. A moment's grace covers a file that is just being closed."""
    for left in (3, 2, 1, 0):
        code = _syscall(1, name.encode(), ctypes.c_uint(O_NONBLOCK))
        if code not in (errno.EAGAIN, errno.EWOULDBLOCK) or not left:
            break
        time.sleep(0.1)
    if code in (errno.EAGAIN, errno.EBUSY):
        raise Busy(f"{name}: the module is in use")
    if code:
        raise KernelRefused(f"rmmod {name}: {os.strerror(code)}", code)


def _syscall(which: int, *arguments: object) -> int:
    """Make a module system call; return 0 or its errno."""
    numbers = SYSCALLS.get(platform.machine())
    if numbers is None:
        raise DynamosError(f"{platform.machine()}: this architecture is not supported")
    libc = ctypes.CDLL(None, use_errno=True)
    return ctypes.get_errno() if libc.syscall(ctypes.c_long(numbers[which]), *arguments) else 0


class _Log:
    """The kernel's messages since this was made."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        os.lseek(fd, 0, os.SEEK_END)

    def __call__(self) -> list[str]:
        lines: list[str] = []
        while True:
            try:
                record = os.read(self._fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return lines
            except OSError:  # a record was overwritten before we read it
                continue
            lines.append(record.partition(";")[2].splitlines()[0])


@contextmanager
def _kernel_log() -> Iterator[_Log]:
    fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield _Log(fd)
    finally:
        os.close(fd)
