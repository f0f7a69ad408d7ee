"""Relocatable ELF objects for x86_64: sections, symbols, relocations; nothing else of the format."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dynamos_ng.errors import BuildError

PROGBITS, SYMTAB, RELA, NOBITS, NOTE = 1, 2, 4, 8, 7
WRITE, ALLOC, EXECUTE, MERGE, STRINGS, TLS = 1, 2, 4, 0x10, 0x20, 0x400
LOCAL, GLOBAL, WEAK = 0, 1, 2
OBJECT, FUNCTION, SECTION = 1, 2, 3
UNDEFINED, ABSOLUTE, COMMON = 0, 0xFFF1, 0xFFF2

#: Relocations: name, width in bytes, relative to their place.
RELOCATIONS = {
    1: ("R_X86_64_64", 8, False),
    2: ("R_X86_64_PC32", 4, True),
    4: ("R_X86_64_PLT32", 4, True),
    10: ("R_X86_64_32", 4, False),
    11: ("R_X86_64_32S", 4, False),
    24: ("R_X86_64_PC64", 8, True),
}


class Symbol(NamedTuple):
    """A symbol; `section` is an index, or UNDEFINED, ABSOLUTE, COMMON."""

    name: str
    value: int
    size: int
    bind: int
    type: int
    section: int


class Relocation(NamedTuple):
    """A relocation of `section`'s bytes at `offset`."""

    offset: int
    type: int
    symbol: Symbol
    addend: int


@dataclass(frozen=True)
class Section:
    """A section and its bytes (b"" for one without)."""

    index: int
    name: str
    type: int
    flags: int
    size: int
    align: int
    entry_size: int
    data: bytes


class Elf:
    """A relocatable object's contents; BuildError for any other file."""

    def __init__(self, raw: bytes, name: str) -> None:
        self.name = name
        if raw[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<HH", raw, 16) != (1, 62):
            raise BuildError(f"{name}: not a relocatable object for x86_64")
        (table,) = struct.unpack_from("<Q", raw, 40)
        size, count, names = struct.unpack_from("<HHH", raw, 58)
        headers = [struct.unpack_from("<IIQQQQIIQQ", raw, table + size * i) for i in range(count)]
        strings = headers[names]
        self.raw = raw
        self._headers = headers
        self.sections = []
        for index, header in enumerate(headers):
            title = _string(raw, strings[4] + header[0])
            data = b"" if header[1] == NOBITS else raw[header[4] : header[4] + header[5]]
            self.sections.append(
                Section(index, title, header[1], header[2], header[5], max(header[8], 1), header[9], data)
            )

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """Return the symbols in the table's order; a section's symbol has the section's name."""
        found: list[Symbol] = []
        for header in self._headers:
            if header[1] != SYMTAB:
                continue
            strings = self._headers[header[6]][4]
            for name, info, _other, section, value, size in struct.iter_unpack(
                "<IBBHQQ", self.raw[header[4] : header[4] + header[5]]
            ):
                kind = info & 15
                title = self.sections[section].name if kind == SECTION else _string(self.raw, strings + name)
                found.append(Symbol(title, value, size, info >> 4, kind, section))
        return tuple(found)

    @cached_property
    def relocations(self) -> dict[int, tuple[Relocation, ...]]:
        """Return each section's relocations in order of offset, by section index."""
        found: dict[int, tuple[Relocation, ...]] = {}
        for header in self._headers:
            if header[1] != RELA:
                continue
            target = self.sections[header[7]]
            if not target.flags & ALLOC:
                continue
            entries = []
            for offset, info, addend in struct.iter_unpack("<QQq", self.raw[header[4] : header[4] + header[5]]):
                kind = info & 0xFFFFFFFF
                if kind == 0:
                    continue
                if kind not in RELOCATIONS:
                    raise BuildError(f"{self.name}: {target.name}+{offset:#x}: relocation of type {kind}")
                entries.append(Relocation(offset, kind, self.symbols[info >> 32], addend))
            found[header[7]] = tuple(sorted(entries, key=lambda entry: entry.offset))
        return found


def _string(raw: bytes, at: int) -> str:
    return raw[at : raw.index(b"\0", at)].decode()
