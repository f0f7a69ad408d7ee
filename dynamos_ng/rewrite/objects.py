"""C editions: compiled objects become assembler text, with the editions' code moved and counted.

Everything else in an object stays byte for byte. An edition's old place keeps its bytes' room, so that no
distance inside a section changes: a jump to the moved edition, then breakpoints. Tables follow the moved
instructions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from dynamos_ng.errors import BuildError, UsageError
from dynamos_ng.rewrite import elf, writer
from dynamos_ng.rewrite.compiled import Compiled, address, unwind_entries
from dynamos_ng.rewrite.elf import Elf, Relocation, Section, Symbol
from dynamos_ng.rewrite.writer import Edition

#: The last tells where functions are padded, which no x86 kernel asks of a module.
_DROPPED = (
    ".discard", ".note", ".modinfo", ".comment", ".debug", ".orc_", ".gnu.", "__patchable_function_entries",
)  # fmt: skip
#: Sections whose entries are about single instructions, not about functions.
_TABLES = frozenset((
    "__bug_table", "__ex_table", "__jump_table", ".altinstructions", ".static_call_sites", ".retpoline_sites",
    ".return_sites", "__mcount_loc", ".smp_locks", ".parainstructions", ".call_sites", ".ibt_endbr_seal",
))  # fmt: skip
_RESERVED = frozenset(("init_module", "cleanup_module"))
_TYPES = {1: "@progbits", 8: "@nobits", 14: "@init_array", 15: "@fini_array", 16: "@preinit_array"}


class Object:
    """A relocatable object as the compiler (or `ld -r`) made it; NAME is for messages. BuildError if it is
    not one."""

    def __init__(self, raw: bytes, name: str) -> None:
        self.elf = Elf(raw, name)
        self.name = name

    def functions(self) -> tuple[str, ...]:
        """Return the names of the functions it defines."""
        return tuple(s.name for s in self.elf.symbols if s.type == elf.FUNCTION and s.section != elf.UNDEFINED)

    def constants(self, prefix: str) -> dict[str, int]:
        """Return the values of its global constants of one word whose names begin with PREFIX."""
        found = {}
        for symbol in self.elf.symbols:
            if symbol.name.startswith(prefix) and symbol.type == elf.OBJECT and symbol.size == self.elf.arch.word:
                raw = self.elf.sections[symbol.section].data[symbol.value : symbol.value + symbol.size]
                found[symbol.name] = int.from_bytes(raw, "little")
        return found

    def static_keys(self) -> frozenset[str]:
        """Return the names of the static keys that its jump labels use and that others define."""
        entry = 8 + self.elf.arch.word
        return frozenset(
            relocation.symbol.name
            for index, relocations in self.elf.relocations.items()
            if self.elf.sections[index].name == "__jump_table"
            for relocation in relocations
            if relocation.offset % entry == 8 and relocation.symbol.section == elf.UNDEFINED
        )


@dataclass
class _Unit:
    """An object within a program."""

    number: int
    elf: Elf
    editions: dict[str, Compiled] = field(default_factory=dict)
    written: dict[str, Edition] = field(default_factory=dict)

    def base(self, section: int) -> str:
        return f".Lo{self.number}s{section}"

    def inside(self, section: int, offset: int) -> Compiled | None:
        for edition in self.editions.values():
            if edition.holds(section, offset):
                return edition
        return None


class Program:
    """All objects of an update, and the functions in them that are editions."""

    def __init__(self, objects: Sequence[Object], editions: set[str]) -> None:
        self._units = [_Unit(i, item.elf) for i, item in enumerate(objects)]
        for item in objects:
            for name in _RESERVED.intersection(item.functions()):
                raise UsageError(f"{item.name}: defines {name}: an update has no module_init or module_exit of its own")
        self._places: dict[str, tuple[_Unit, Compiled]] = {}
        self._names: list[_Names] = []
        for name in sorted(editions):
            homes = [unit for unit in self._units if any(_defines(s, name) for s in unit.elf.symbols)]
            if len(homes) != 1:
                have = sorted({f for item in objects for f in item.functions()})
                raise UsageError(
                    f"{name}: {'defined in several sources' if homes else 'no such function in the sources'}"
                    f" (they define {', '.join(have) or 'none'})"
                )
            compiled = Compiled(homes[0].elf, next(s for s in homes[0].elf.symbols if _defines(s, name)))
            homes[0].editions[name] = compiled
            self._places[name] = homes[0], compiled

    def state(self, name: str) -> bytes | None:
        """Return the unwind entry at an edition's first instruction."""
        return self._places[name][1].state

    def use(self, resolve: Callable[[str], int | None], defined: set[str]) -> None:
        """Say what names mean that no object defines: DEFINED ones are labels of the update."""
        self._names = [_Names(self._units, unit, resolve, defined) for unit in self._units]

    def edition(self, name: str, edition: Edition) -> tuple[list[str], list[str]]:
        """Return the text of a compiled function moved into EDITION: what must stand first, and the rest."""
        unit, compiled = self._places[name]
        unit.written[name] = edition
        return compiled.write(edition, self._names[unit.number].expression)

    def sections(self) -> list[str]:
        """Return the text of everything else; call it when all editions are written."""
        text: list[str] = []
        symbols = self._symbols()
        for unit in self._units:
            for section in unit.elf.sections:
                if section.flags & elf.ALLOC and not section.name.startswith(_DROPPED):
                    text += _dump(unit, section, self._names[unit.number])
            text += _unwind(unit)
        return text + symbols

    def _symbols(self) -> list[str]:
        """Return the objects' own symbols; a local name that occurs twice is told apart by its object's
        number."""
        text: list[str] = []
        locals_: set[str] = set()
        globals_: dict[str, str] = {}
        for unit in self._units:
            for symbol in unit.elf.symbols:
                if symbol.section == elf.COMMON:
                    text.append(f"\t.comm {symbol.name}, {symbol.size}, {symbol.value}")
                if symbol.section in (elf.UNDEFINED, elf.COMMON) or symbol.type not in (
                    0,
                    elf.OBJECT,
                    elf.FUNCTION,
                ):
                    continue
                if symbol.section == elf.ABSOLUTE or not symbol.name or symbol.name in unit.editions:
                    continue
                section = unit.elf.sections[symbol.section]
                if not section.flags & elf.ALLOC or section.name.startswith(_DROPPED):
                    continue
                if unit.inside(symbol.section, symbol.value):
                    continue
                name = symbol.name
                if symbol.bind == elf.LOCAL:
                    if name.startswith(".L"):
                        continue
                    name = name if name not in locals_ else f"{name}.o{unit.number}"
                    locals_.add(name)
                elif name in globals_ and symbol.bind != elf.WEAK:
                    raise BuildError(f"{name}: defined in {globals_[name]} and in {unit.elf.name}")
                else:
                    globals_[name] = unit.elf.name
                    text.append(f"\t.{'weak' if symbol.bind == elf.WEAK else 'globl'} {name}")
                kind = {elf.OBJECT: "@object", elf.FUNCTION: "@function"}.get(symbol.type, "@notype")
                text.append(f"\t.set {name}, {unit.base(symbol.section)} + {symbol.value:#x}")
                text += [f"\t.type {name}, {kind}", f"\t.size {name}, {symbol.size}"]
        return text


def _defines(symbol: Symbol, name: str) -> bool:
    return symbol.name == name and symbol.type == elf.FUNCTION and symbol.section != elf.UNDEFINED


@dataclass(frozen=True)
class _Names:
    """How a reference out of one object is written."""

    units: Sequence[_Unit]
    unit: _Unit
    resolve: Callable[[str], int | None]
    defined: set[str]

    def expression(self, symbol: Symbol, addend: int, exact: bool = False, ahead: int = 0) -> str:
        """Return SYMBOL + ADDEND as gas wants it.

        AHEAD is what the processor adds (4 for a displacement that ends its instruction); EXACT means that
        the first instruction of an edition is meant, not its counted entry.
        """
        if symbol.section == elf.UNDEFINED:
            return _plus(self._undefined(symbol.name), addend)
        if symbol.section == elf.COMMON:
            return _plus(symbol.name, addend)
        if symbol.section == elf.ABSOLUTE:
            return f"{symbol.value + addend:#x}"
        offset = symbol.value + addend + ahead
        edition = self.unit.inside(symbol.section, offset)
        if edition is None:
            return _plus(self.unit.base(symbol.section), symbol.value + addend)
        name = edition.symbol.name
        if offset == edition.symbol.value and symbol.section == edition.symbol.section and not exact:
            return _plus(name, -ahead)
        return _plus(edition.label(self.unit.written[name], symbol.section, offset), -ahead)

    def _undefined(self, name: str) -> str:
        if name in self.defined:
            return name
        for unit in self.units:
            if any(s.name == name and s.section != elf.UNDEFINED and s.bind != elf.LOCAL for s in unit.elf.symbols):
                return name
        address = self.resolve(name)
        return name if address is None else f"{address:#x}"


def _plus(expression: str, addend: int) -> str:
    if not addend:
        return expression
    return f"{expression} {'+' if addend > 0 else '-'} {abs(addend):#x}"


def _dump(unit: _Unit, section: Section, names: _Names) -> list[str]:
    """Return a section's text; what an edition left behind is a jump and breakpoints."""
    if section.flags & elf.TLS:
        raise BuildError(f"{unit.elf.name}: section {section.name} holds thread-local data, which modules cannot have")
    flags = "a"
    for bit, letter in ((elf.WRITE, "w"), (elf.EXECUTE, "x"), (elf.MERGE, "M"), (elf.STRINGS, "S")):
        flags += letter if section.flags & bit else ""
    size = f",{section.entry_size}" if section.flags & elf.MERGE else ""
    text = [
        f'\t.section "{section.name}","{flags}",{_TYPES.get(section.type, "@progbits")}{size}',
        f"\t.balign {section.align}", f"{unit.base(section.index)}:",
    ]  # fmt: skip
    if section.type == elf.NOBITS:
        return [*text, f"\t.zero {section.size}"] if section.size else text
    relocations = list(unit.elf.relocations.get(section.index, ()))
    holes = sorted(
        (start, end, edition)
        for edition in unit.editions.values()
        for index, start, end in edition.ranges
        if index == section.index
    )
    if section.name in (".return_sites", ".retpoline_sites"):
        relocations = [r for r in relocations if not _gone(unit, r)]
        for relocation in relocations:
            text += unit.elf.arch.reference(relocation.type, _target(section, relocation, names))
        return text
    at = 0
    for start, end, edition in holes:
        text += _bytes(section, at, start, relocations, names)
        if start == edition.symbol.value and section.index == edition.symbol.section:
            text += [
                "\t.byte 0xe9",
                f"\t.long {edition.symbol.name} - . - 4",
                f"\t.fill {end - start - 5}, 1, 0xcc",
            ]
        else:
            text.append(f"\t.fill {end - start}, 1, 0xcc")
        at = end
    return text + _bytes(section, at, section.size, relocations, names)


def _gone(unit: _Unit, relocation: Relocation) -> bool:
    """Return whether the instruction that a site names became something else in an edition."""
    symbol = relocation.symbol
    offset = symbol.value + relocation.addend
    edition = unit.inside(symbol.section, offset)
    return edition is not None and address(symbol.section, offset) in edition.moved


def _target(section: Section, relocation: Relocation, names: _Names) -> str:
    ahead = 4 if section.flags & elf.EXECUTE and names.unit.elf.arch.relocations[relocation.type][2] else 0
    return names.expression(relocation.symbol, relocation.addend, section.name in _TABLES, ahead)


def _bytes(section: Section, start: int, end: int, relocations: Sequence[Relocation], names: _Names) -> list[str]:
    """Return a stretch of a section's bytes with its relocations."""
    text: list[str] = []
    at = start
    for relocation in relocations:
        if not start <= relocation.offset < end:
            continue
        arch = names.unit.elf.arch
        text += _lines(section.data[at : relocation.offset])
        text += arch.reference(relocation.type, _target(section, relocation, names))
        at = relocation.offset + arch.relocations[relocation.type][1]
    return text + _lines(section.data[at:end])


def _lines(code: bytes) -> list[str]:
    return [writer.data(code[at : at + 16]) for at in range(0, len(code), 16)]


def _unwind(unit: _Unit) -> list[str]:
    """Return the unwind entries of what stays in place; those of the editions were written with them."""
    places: list[str] = []
    states: list[str] = []
    entries = unwind_entries(unit.elf)
    for place, state in entries:
        section, offset = (place >> 32) - 1, place & 0xFFFFFFFF
        if not unit.inside(section, offset):
            places.append(f"\t.long {unit.base(section)} + {offset:#x} - .")
            states.append(writer.data(state))
    if not entries:
        return []
    for edition in unit.editions.values():
        for section, start, end in edition.ranges:
            last = [state for place, state in entries if address(section, 0) <= place < address(section, end)]
            if edition.state is None or not last:
                continue
            for offset, state in ((start, edition.state), (start + unit.elf.arch.trampoline, last[-1])):
                places.append(f"\t.long {unit.base(section)} + {offset:#x} - .")
                states.append(writer.data(state))
    return [
        '\t.section .orc_unwind_ip,"a",@progbits', "\t.balign 4", *places,
        '\t.section .orc_unwind,"a",@progbits', *states,
    ]  # fmt: skip
