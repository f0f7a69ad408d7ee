"""Bytes of a kernel: of the running one (`Kcore`), of a vmlinux file (`Elf`), of a piece of saved memory
(`Dump`)."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import NamedTuple, Protocol

from dynamos_ng.errors import ImageError

KCORE = Path("/proc/kcore")


class Source(Protocol):
    """Where bytes come from."""

    def read(self, address: int, size: int) -> bytes:
        """Return SIZE bytes at virtual ADDRESS; ImageError if they are not all there."""
        ...


class _Segment(NamedTuple):
    address: int
    offset: int
    size: int


class _ElfFile:
    """Bytes of an ELF file's load segments, by virtual address."""

    def __init__(self, path: Path, missing: str) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}: {missing}") from None
        header = os.pread(self._file, 64, 0)
        if header[:5] != b"\x7fELF\x02":
            raise ImageError(f"{path}: not a 64-bit ELF file: {missing}")
        (table,) = struct.unpack_from("<Q", header, 32)
        entry, count = struct.unpack_from("<HH", header, 54)
        raw = os.pread(self._file, entry * count, table)
        self._segments = []
        for at in range(0, entry * count, entry):
            kind, _flags, offset, address, _physical, size = struct.unpack_from("<IIQQQQ", raw, at)
            if kind == 1:
                self._segments.append(_Segment(address, offset, size))

    def __del__(self) -> None:
        if hasattr(self, "_file"):
            os.close(self._file)

    def read(self, address: int, size: int) -> bytes:
        """Return SIZE bytes at virtual ADDRESS; ImageError if the file does not hold them."""
        for segment in self._segments:
            if segment.address <= address and address + size <= segment.address + segment.size:
                data = os.pread(self._file, size, segment.offset + address - segment.address)
                while len(data) < size:
                    at = segment.offset + address - segment.address + len(data)
                    more = os.pread(self._file, size - len(data), at)
                    if not more:
                        break
                    data += more
                if len(data) == size:
                    return data
        raise ImageError(f"{self.path}: no {size} bytes at {address:#x}")


class Kcore(_ElfFile):
    """The running kernel's memory."""

    def __init__(self, path: Path = KCORE) -> None:
        super().__init__(path, "the kernel's memory can be read by root only, and not under lockdown")


class Elf(_ElfFile):
    """A vmlinux file, as it lies inside vmlinuz."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "a vmlinux ELF file is wanted")


class Dump:
    """Bytes saved from memory, beginning at a virtual address."""

    def __init__(self, data: bytes, address: int) -> None:
        self._data = data
        self._address = address

    def read(self, address: int, size: int) -> bytes:
        """Return SIZE bytes at virtual ADDRESS."""
        at = address - self._address
        if at < 0 or at + size > len(self._data):
            raise ImageError(f"the dump holds no {size} bytes at {address:#x}")
        return self._data[at : at + size]
