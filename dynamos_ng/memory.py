"""Bytes of a kernel: of the running one (`Kcore`), of a vmlinux file (`Elf`), of a piece of saved memory
(`Dump`)."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple, Protocol

from dynamos_ng.errors import ImageError

KCORE = Path("/proc/kcore")


class Source(Protocol):
    """Where bytes come from."""

    def read(self, address: int, size: int) -> bytes:
        """Return SIZE bytes at virtual ADDRESS; ImageError if they are not all there."""
        ...


class Restored:
    """Another source's bytes, some of them as they were before they were written over."""

    def __init__(self, source: Source, were: Mapping[int, bytes]) -> None:
        self._source = source
        self._were = were

    def read(self, address: int, size: int) -> bytes:
        """Return SIZE bytes at virtual ADDRESS; ImageError if they are not all there."""
        data = bytearray(self._source.read(address, size))
        for place, code in self._were.items():
            first, last = max(place, address), min(place + len(code), address + size)
            if first < last:
                data[first - address : last - address] = code[first - place : last - place]
        return bytes(data)


class _Segment(NamedTuple):
    address: int
    offset: int
    size: int


class _Form(NamedTuple):
    """A class of ELF files: a word, its offset for programs and sections, that of their counts; both structures, and
    the order in which a program header has type, offset, address and size."""

    word: str
    programs: int
    sections: int
    counts: int
    program: str
    members: tuple[int, ...]
    section: str


_FORMS = {
    1: _Form("<I", 28, 32, 42, "<8I", (0, 1, 2, 4), "<10I"),
    2: _Form("<Q", 32, 40, 54, "<IIQQQQQQ", (0, 2, 3, 5), "<IIQQQQIIQQ"),
}


class _ElfFile:
    """Bytes of an ELF file's load segments, by virtual address."""

    def __init__(self, path: Path, missing: str) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise ImageError(f"{path}: {error.strerror}: {missing}") from None
        header = os.pread(self._file, 64, 0).ljust(64, b"\0")
        form = _FORMS.get(header[4])
        if header[:4] != b"\x7fELF" or form is None:
            raise ImageError(f"{path}: not an ELF file: {missing}")
        self._header, self._form = header, form
        (table,) = struct.unpack_from(form.word, header, form.programs)
        entry, count = struct.unpack_from("<HH", header, form.counts)
        raw = os.pread(self._file, entry * count, table)
        self._segments = []
        if len(raw) < entry * count:
            raise ImageError(f"{path}: the file is cut off: {missing}")
        for at in range(0, entry * count, entry):
            fields = struct.unpack_from(form.program, raw, at)
            kind, offset, address, size = (fields[i] for i in form.members)
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
    """The running kernel's memory.

    The kernel passes it on through a buffer of the open file: processes that shared one would read what the other asked
    for. So a forked process opens it anew.
    """

    def __init__(self, path: Path = KCORE) -> None:
        super().__init__(path, "the kernel's memory can be read by root only, and not under lockdown")
        self._owner = os.getpid()

    def read(self, address: int, size: int) -> bytes:
        """Return SIZE bytes at virtual ADDRESS; ImageError if they are not all there."""
        if self._owner != os.getpid():
            os.close(self._file)
            self._file, self._owner = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC), os.getpid()
        return super().read(address, size)


class Elf(_ElfFile):
    """A vmlinux file, as it lies inside vmlinuz."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, "a vmlinux ELF file is wanted")

    @cached_property
    def sections(self) -> dict[str, tuple[int, int]]:
        """Return address and size of each section that has an address, by name; ImageError if the file is cut off."""
        try:
            return self._sections()
        except (struct.error, ValueError, IndexError):
            raise ImageError(f"{self.path}: the file is cut off") from None

    def _sections(self) -> dict[str, tuple[int, int]]:
        (table,) = struct.unpack_from(self._form.word, self._header, self._form.sections)
        size, count, names = struct.unpack_from("<HHH", self._header, self._form.counts + 4)
        raw = os.pread(self._file, size * count, table)
        headers = [struct.unpack_from(self._form.section, raw, size * i) for i in range(count)]
        if names >= count:
            return {}
        strings = os.pread(self._file, headers[names][5], headers[names][4])
        return {
            strings[header[0] : strings.index(b"\0", header[0])].decode(): (header[3], header[5])
            for header in headers
            if header[3]
        }


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
