"""Saved images: a stock kernel as it runs, with KASLR off, taken from a guest once and kept in the cache.

A folder holds ``image.elf`` (the kernel's code and data, as an ELF file's load segments), ``kallsyms``, ``blacklist``
and ``vmlinuz``: what `image.saved` and ``dynamos survey --image`` read.
"""

from __future__ import annotations

import re
import shutil
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dynamos_ng.errors import ImageError, LabError, UsageError
from dynamos_ng.lab import machine, root
from dynamos_ng.memory import Kcore

_KERNEL = re.compile(r"^ *([0-9a-f]+)-([0-9a-f]+) : Kernel (?:code|rodata|data|bss)$", re.MULTILINE)
_SECONDS = 300.0
_BLOCK = 1 << 21


def ensure(kernel: str = root.DEFAULT) -> Path:
    """Return the folder of one of root.KERNELS, saved now if the cache has none."""
    guest = root.ensure(kernel)
    folder = guest.folder / "saved"
    with root.locked(f"saved-{kernel}"):
        if not folder.exists():
            save(folder, kernel)
    return folder


def save(folder: Path, kernel: str = root.DEFAULT) -> None:
    """Boot a guest and save its kernel into FOLDER, which must not be there; UsageError, LabError."""
    if folder.exists():
        raise UsageError(f"{folder}: is there already")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
    except OSError as error:
        raise UsageError(f"{folder}: {error.strerror}") from None
    done = machine.run(["python3", "-m", "dynamos_ng.lab.saved"], timeout=_SECONDS, out_dir=partial, kernel=kernel)
    if done.status:
        shutil.rmtree(partial)
        raise LabError(f"the guest could not save its kernel:\n{done.output}")
    shutil.copyfile(root.ensure(kernel).kernel, partial / "vmlinuz")
    partial.rename(folder)


def _in_guest(out: Path) -> None:
    """Write the running kernel's symbols, blacklist and memory to OUT."""
    symbols = Path("/proc/kallsyms").read_text()
    (out / "kallsyms").write_text(symbols)
    (out / "blacklist").write_text(Path("/sys/kernel/debug/kprobes/blacklist").read_text())
    areas = [tuple(int(end, 16) for end in area) for area in _KERNEL.findall(Path("/proc/iomem").read_text())]
    text = re.search(r"^([0-9a-f]+) \w _text$", symbols, re.MULTILINE)
    areas.sort()
    if not areas or text is None:
        raise LabError("/proc/iomem or /proc/kallsyms does not tell where the kernel lies")
    moved = int(text[1], 16) - areas[0][0]
    kcore = Kcore()
    start, end = areas[0][0] + moved, areas[-1][1] + 1 + moved
    segments: list[tuple[int, bytearray]] = []
    for at in range(start, end, _BLOCK):
        with suppress(ImageError, OSError):  # a freed part of the kernel
            data = kcore.read(at, min(_BLOCK, end - at))
            if not segments or segments[-1][0] + len(segments[-1][1]) != at:
                segments.append((at, bytearray()))
            segments[-1][1].extend(data)
    (out / "image.elf").write_bytes(elf(segments, len(text[1]) // 2))


def elf(segments: Sequence[tuple[int, bytes | bytearray]], word: int) -> bytes:
    """Return an ELF file for addresses of WORD bytes that holds segments (address, bytes) of memory."""
    if word == 8:
        start, header, program = bytes((2, 1, 1)), "<HHIQQQIHHHHHH", "<IIQQQQQQ"
    else:
        start, header, program = bytes((1, 1, 1)), "<HHIIIIIHHHHHH", "<IIIIIIII"
    first, size = 16 + struct.calcsize(header), struct.calcsize(program)
    machine_number = 62 if word == 8 else 3
    fields = (4, machine_number, 1, 0, first, 0, 0, first, size, len(segments), 0, 0, 0)
    parts = [b"\x7fELF" + start + bytes(9), struct.pack(header, *fields)]
    place = first + size * len(segments)
    for address, data in segments:
        where = (place, address, 0, len(data), len(data))
        parts.append(struct.pack(program, 1, *((7, *where) if word == 8 else (*where, 7)), 1))
        place += len(data)
    return b"".join([*parts, *(data for _, data in segments)])


if __name__ == "__main__":
    _in_guest(Path("/out"))
