"""The lab's emulator: QEMU as one Debian suite has it, unpacked once and run by that suite's own loader.

So all machines emulate alike, and none with a QEMU that is too old. 7.2's CPUs may go on for ever with code that
another CPU has overwritten while they translated it: they then meet breakpoints of the kernel's that are long gone.
10.0's CPUs may sleep for ever, or for minutes, while a timer should wake them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path

from dynamos_ng.errors import LabError
from dynamos_ng.lab import root

SUITE = "forky"
PACKAGES = ("qemu-system-x86",)
PROGRAM = "qemu-system-x86_64"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_FIRMWARE = ("usr/share/qemu", "usr/share/seabios")


def command() -> list[str]:
    """Return the beginning of a call of QEMU, which is unpacked now if the cache has none (a quarter of a minute)."""
    folder = root.cache() / f"qemu-{_key()}"
    if not folder.exists():
        with root.locked(folder.name):
            if not folder.exists():
                _make(folder)
    root.used(folder)
    firmware = [word for place in _FIRMWARE for word in ("-L", str(folder / place))]
    # The loader is what is run; the process gets back the name by which people look for it.
    return [
        str(folder / "usr/lib64/ld-linux-x86-64.so.2"), "--library-path", str(folder / _LIBRARIES),
        str(folder / "usr/bin" / PROGRAM), *firmware, "-name", f"dynamos,process={PROGRAM}",
    ]  # fmt: skip


def _key() -> str:
    return hashlib.sha256("\n".join((SUITE, *PACKAGES)).encode()).hexdigest()[:16]


def _make(folder: Path) -> None:
    if os.geteuid():
        raise LabError("the lab's emulator can be unpacked by root only: run this as root")
    print("lab: unpacking QEMU (once, a quarter of a minute) …", file=sys.stderr, flush=True)
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    log = folder.with_suffix(".log")
    root.logged(root.mmdebstrap(partial, SUITE, "amd64", PACKAGES, variant="extract"), log)
    partial.rename(folder)
