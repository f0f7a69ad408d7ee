"""Relocatable ELF objects: sections, symbols, relocations; nothing else of the format."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from dynamos_ng.arch import known
from dynamos_ng.errors import BuildError

PROGBITS, SYMTAB, RELA, NOTE, NOBITS, REL = 1, 2, 4, 7, 8, 9
WRITE, ALLOC, EXECUTE, MERGE, STRINGS, TLS = 1, 2, 4, 0x10, 0x20, 0x400
LOCAL, GLOBAL, WEAK = 0, 1, 2
OBJECT, FUNCTION, SECTION = 1, 2, 3
UNDEFINED, ABSOLUTE, COMMON = 0, 0xFFF1, 0xFFF2


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


class _Form(NamedTuple):
    """Where a class of ELF files keeps things: offsets in the file header, and structures.

    `members` says in which order a symbol has name, info, other, section, value and size; a relocation's type has
    `shift` bits.
    """

    word: str
    table: int
    counts: int
    section: str
    symbol: str
    members: tuple[int, ...]
    rel: str
    rela: str
    shift: int


_FORMS = {
    4: _Form("<I", 32, 46, "<10I", "<IIIBBH", (0, 3, 4, 5, 1, 2), "<II", "<IIi", 8),
    8: _Form("<Q", 40, 58, "<IIQQQQIIQQ", "<IBBHQQ", (0, 1, 2, 3, 4, 5), "<QQ", "<QQq", 32),
}


class Elf:
    """A relocatable object's contents; BuildError for any other file."""

    def __init__(self, raw: bytes, name: str) -> None:
        self.name = name
        kind, machine = struct.unpack_from("<HH", raw, 16) if len(raw) > 20 else (0, 0)
        arch = known.by_machine(machine)
        if raw[:4] != b"\x7fELF" or raw[5:6] != b"\x01" or kind != 1 or arch is None:
            raise BuildError(f"{name}: not a relocatable object for {' or '.join(a.name for a in known.ALL)}")
        self.arch = arch
        self._form = _FORMS[arch.word]
        (table,) = struct.unpack_from(self._form.word, raw, self._form.table)
        size, count, names = struct.unpack_from("<HHH", raw, self._form.counts)
        headers = [struct.unpack_from(self._form.section, raw, table + size * i) for i in range(count)]
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
            for entry in struct.iter_unpack(self._form.symbol, self.raw[header[4] : header[4] + header[5]]):
                name, info, _other, section, value, size = (entry[i] for i in self._form.members)
                kind = info & 15
                title = self.sections[section].name if kind == SECTION else _string(self.raw, strings + name)
                found.append(Symbol(title, value, size, info >> 4, kind, section))
        return tuple(found)

    @cached_property
    def relocations(self) -> dict[int, tuple[Relocation, ...]]:
        """Return each section's relocations in order of offset, by section index."""
        found: dict[int, tuple[Relocation, ...]] = {}
        for header in self._headers:
            if header[1] not in (REL, RELA):
                continue
            target = self.sections[header[7]]
            if not target.flags & ALLOC:
                continue
            entries = []
            form = self._form.rela if header[1] == RELA else self._form.rel
            for offset, info, *addend in struct.iter_unpack(form, self.raw[header[4] : header[4] + header[5]]):
                kind = info & ((1 << self._form.shift) - 1)
                if kind == 0:
                    continue
                if kind not in self.arch.relocations:
                    raise BuildError(f"{self.name}: {target.name}+{offset:#x}: relocation of type {kind}")
                symbol = self.symbols[info >> self._form.shift]
                entries.append(Relocation(offset, kind, symbol, addend[0] if addend else self._stored(target, offset)))
            found[header[7]] = tuple(sorted(entries, key=lambda entry: entry.offset))
        return found

    def _stored(self, section: Section, offset: int) -> int:
        """Return the addend of a relocation that has none of its own: it is in the place that is to change."""
        return int.from_bytes(section.data[offset : offset + self.arch.word], "little", signed=True)


def _string(raw: bytes, at: int) -> str:
    return raw[at : raw.index(b"\0", at)].decode()
