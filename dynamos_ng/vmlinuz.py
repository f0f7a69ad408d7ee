"""The vmlinux ELF file inside a kernel image (/boot/vmlinuz-*), and where it keeps its tables.

A kernel that does not list its data symbols (CONFIG_KALLSYMS_ALL) does not say where its tables are: the sections of
its vmlinux do. The jump table has no section of its own; it is found by what it holds.
"""

from __future__ import annotations

import lzma
import os
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from dynamos_ng.arch import Arch
from dynamos_ng.errors import ImageError, MissingTool
from dynamos_ng.memory import Elf, Source


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    def decompress(self, data: bytes, /) -> bytes: ...


#: As many entries in a row, each leading from code to code, do not occur by chance.
_ENTRIES = 64
_GNU_BUILD_ID = 3
_PACKED: tuple[tuple[bytes, Callable[[], _Decompressor]], ...] = (
    (b"\xfd7zXZ\0", partial(lzma.LZMADecompressor, lzma.FORMAT_XZ)),
    (b"\x1f\x8b", partial(zlib.decompressobj, 31)),
)
_CODE = (".text", ".init.text", ".exit.text")


def of_release(release: str) -> Path:
    """Return where a distribution keeps the image of a kernel release."""
    return Path(f"/boot/vmlinuz-{release}")


def unpack(path: Path) -> bytes:
    """Return the vmlinux inside the kernel image at PATH, which may be one already; ImageError if it has none.

    See Documentation/x86/boot.rst in the kernel's source for the fields of an image's header.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror}: the kernel's image is wanted") from None
    if raw[:4] == b"\x7fELF":
        return raw
    if raw[0x202:0x206] != b"HdrS":
        raise ImageError(f"{path}: neither a kernel image for x86 nor an ELF file")
    offset, length = struct.unpack_from("<II", raw, 0x248)
    start = 512 * ((raw[0x1F1] or 4) + 1) + offset
    found = _decompress(raw[start : start + length], path)
    if found[:4] != b"\x7fELF":
        raise ImageError(f"{path}: no vmlinux inside")
    return found


def _decompress(packed: bytes, path: Path) -> bytes:
    """Return what is packed, less the size that the build appends to it."""
    try:
        for magic, make in _PACKED:
            if packed.startswith(magic):
                decompressor = make()
                found = decompressor.decompress(packed)
                if decompressor.eof:
                    return found
                raise ImageError(f"{path}: the file is cut off")
        if packed.startswith(b"\x28\xb5\x2f\xfd"):
            done = subprocess.run(["zstd", "-dcq"], input=packed[:-4], capture_output=True, check=False)
            if not done.returncode:
                return done.stdout
            raise ImageError(f"{path}: zstd: {done.stderr.decode(errors='replace').strip()}")
    except FileNotFoundError:
        raise MissingTool(f"{path}: packed with zstd: apt install zstd") from None
    except (lzma.LZMAError, zlib.error) as error:
        raise ImageError(f"{path}: {error}") from None
    raise ImageError(f"{path}: packed in a way that is not known ({packed[:4].hex(' ')})")


def _kept(path: Path, folder: Path) -> Path:
    """Return the file in FOLDER with the vmlinux of the image at PATH; those of its earlier images are removed."""
    status = path.stat()
    plain = folder / f"{path.name}-{status.st_size:x}-{status.st_mtime_ns:x}"
    if not plain.exists():
        folder.mkdir(parents=True, exist_ok=True)
        new = folder / f".{plain.name}-{os.getpid()}"
        try:
            with new.open("wb") as file:
                file.write(unpack(path))
                file.flush()
                os.fsync(file.fileno())
            for old in folder.glob(f"{path.name}-*"):
                old.unlink(missing_ok=True)
            new.rename(plain)
        finally:
            new.unlink(missing_ok=True)
    return plain


class Vmlinux:
    """A vmlinux file's bytes and tables, at the addresses that it was linked for."""

    def __init__(self, path: Path, keep: Path | None = None) -> None:
        """Unpack the kernel image at PATH, for this time, or into the folder KEEP for as long as PATH is the same."""
        self.path = path
        if keep is not None:
            with suppress(OSError):  # it can be done without
                self.elf = Elf(_kept(path, keep))
                return
        with tempfile.TemporaryDirectory() as folder:
            plain = Path(folder) / "vmlinux"
            plain.write_bytes(unpack(path))
            self.elf = Elf(plain)

    @property
    def text(self) -> int:
        """Return the address of the first byte of code, the kernel's `_stext`."""
        return self._section(".text")[0]

    def _section(self, name: str) -> tuple[int, int]:
        found = self.elf.sections.get(name)
        if found is None:
            raise ImageError(f"{self.path}: its vmlinux has no section {name}")
        return found

    def check(self, running: Source, moved: int) -> None:
        """Refuse a vmlinux that is not the one RUNNING, which lies MOVED bytes further."""
        start, size = self._section(".notes")
        notes = self.elf.read(start, size)
        at = 0
        while at + 12 <= size:
            name, length, kind = struct.unpack_from("<III", notes, at)
            end = at + 12 + -(-name // 4) * 4 + -(-length // 4) * 4
            if kind == _GNU_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0":
                if running.read(start + moved + at, end - at) != notes[at:end]:
                    raise ImageError(f"{self.path}: not the image of the running kernel: their build IDs differ")
                return
            at = end
        raise ImageError(f"{self.path}: it has no build ID, which would tell whether it is the running kernel's")

    def section(self, name: str) -> tuple[int, int]:
        """Return address and size of a section; (0, 0) if there is none of that name."""
        return self.elf.sections.get(name, (0, 0))

    def jump_table(self, arch: Arch) -> tuple[int, int]:
        """Return address and size of the jump table; (0, 0) if there is none.

        Each entry of struct jump_entry leads from a site, a nop or a jump to a target, to that target.
        """
        start, size = self._section(".rodata")
        words = memoryview(self.elf.read(start, size)[: size // 4 * 4]).cast("i")
        code = [(self.elf.read(*area), area[0]) for name in _CODE if (area := self.section(name))[1]]
        low, high = min(base for _, base in code) - start, max(base + len(data) for data, base in code) - start
        stride = 2 + arch.word // 4
        last = len(words) - stride

        def entry(at: int) -> bool:
            site, target = start + 4 * at + words[at], start + 4 * at + 4 + words[at + 1]
            return any(0 <= site - base < len(data) and _initial(data, site - base, target - base, arch)
                       for data, base in code)  # fmt: skip

        # A row this long holds a place that a look at few of them meets, and few words, taken for sites, lie in code.
        for at in range(0, last, _ENTRIES // 2 * stride):
            for met in range(at, min(at + stride, last)):
                if low <= 4 * met + words[met] < high and entry(met):
                    first = end = met
                    while first >= stride and entry(first - stride):
                        first -= stride
                    while end <= last and entry(end):
                        end += stride
                    if end - first >= _ENTRIES * stride:
                        return start + 4 * first, 4 * (end - first)
        return 0, 0


def _initial(code: bytes, site: int, target: int, arch: Arch) -> bool:
    """Return whether the code at SITE is a static key's, not yet patched: a nop, or a jump to TARGET."""
    found = code[site : site + 5]
    width = {0xE9: 4, 0xEB: 1}.get(found[0], 0)
    if not width:
        return found == arch.nop5 or found[:2] == b"\x66\x90"
    return site + 1 + width + int.from_bytes(found[1 : 1 + width], "little", signed=True) == target
