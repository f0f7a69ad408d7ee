"""A compiled function that becomes an edition: read from an object, moved, its exits counted."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property

from dynamos_ng.arch import Instruction, Kind
from dynamos_ng.arch.x86 import memory
from dynamos_ng.errors import BuildError, Refusal
from dynamos_ng.rewrite import depth, elf, reader, safety, writer
from dynamos_ng.rewrite.elf import Elf, Relocation, Section, Symbol
from dynamos_ng.rewrite.kernel import WARNING
from dynamos_ng.rewrite.reader import Body, Part
from dynamos_ng.rewrite.writer import Edition

#: Writes a reference: symbol, addend, exact, ahead (see objects._Names.expression).
Expression = Callable[[Symbol, int, bool, int], str]
_AUXILIARY = ".altinstr_aux"
_RETURN = "__x86_return_thunk"


def address(section: int, offset: int) -> int:
    """Return the number that stands for a place in an object: sections lie 4 GiB apart."""
    return (section + 1) << 32 | offset


def unwind_entries(unit: Elf) -> list[tuple[int, bytes]]:
    """Return an object's unwind entries in order of `address`; [] if objtool made none."""
    by_name = {section.name: section for section in unit.sections}
    places, states = by_name.get(".orc_unwind_ip"), by_name.get(".orc_unwind")
    if places is None or states is None:
        return []
    found = []
    for entry in unit.relocations.get(places.index, ()):
        at = entry.offset // 4 * 6
        found.append((address(entry.symbol.section, entry.symbol.value + entry.addend), states.data[at : at + 6]))
    return sorted(found)


class Compiled:
    """A function of an object, with its cold part, that is to become an edition."""

    def __init__(self, unit: Elf, symbol: Symbol) -> None:
        self.unit = unit
        self.symbol = symbol
        cold = [s for s in unit.symbols if s.name == f"{symbol.name}.cold" and s.type == elf.FUNCTION]
        if len(cold) > 1:
            raise BuildError(f"{unit.name}: {symbol.name}: its name is not unique among the sources")
        pieces = [symbol, *cold]
        self.ranges = [(piece.section, piece.value, piece.value + piece.size) for piece in pieces]
        if symbol.size < unit.arch.trampoline:
            raise Refusal(symbol.name, f"the edition's code has {symbol.size} bytes, too short to be moved")
        self._at: dict[int, list[Relocation]] = {}
        try:
            self.body = Body(symbol.name, tuple(self._part(piece) for piece in pieces))
            safety.check_instructions(self.body)
        except Refusal as error:
            raise self._refusal(error.reason, error.address) from None
        self._unwind = self._effective()
        self.state = self._unwind.get(self.body.address)
        self._fixed = self._alternatives()
        self._keys = self._sites("__jump_table", 8 + unit.arch.word)
        self._calls = self._sites(".static_call_sites", 8)
        self._traced = self._sites("__mcount_loc", unit.arch.word)
        #: Where instructions that a table lists have gone, if not to their own label; "" if they are no more.
        self.moved: dict[int, str] = {}

    def _refusal(self, reason: str, where: int | None) -> Refusal:
        place = None if where is None else where & 0xFFFFFFFF
        return Refusal(self.symbol.name, f"{self.unit.name}: {reason}", address=place)

    def holds(self, section: int, offset: int) -> bool:
        """Return whether a place in the object belongs to the function."""
        return any(index == section and start <= offset < end for index, start, end in self.ranges)

    def label(self, edition: Edition, section: int, offset: int) -> str:
        """Return the label of the moved instruction that stood at a place."""
        place = address(section, offset)
        if place not in self.body.boundaries:
            raise self._refusal("something refers into the middle of an instruction", place)
        return self.moved.get(place) or edition.label(place)

    # reading

    def _part(self, piece: Symbol) -> Part:
        section = self.unit.sections[piece.section]
        base = address(piece.section, piece.value)
        code = section.data[piece.value : piece.value + piece.size]
        decoded = reader.decode(self.unit.arch, self.symbol.name, code, base)
        relocations = [
            r
            for r in self.unit.relocations.get(piece.section, ())
            if piece.value <= r.offset < piece.value + piece.size
        ]
        starts = [instruction.address & 0xFFFFFFFF for instruction in decoded]
        for relocation in relocations:
            at = bisect_right(starts, relocation.offset) - 1
            self._at.setdefault(decoded[at].address, []).append(relocation)
        return Part(piece.name, base, piece.size, tuple(self._aimed(instruction) for instruction in decoded))

    def _aimed(self, instruction: Instruction) -> Instruction:
        """Return the instruction with the target that its relocation gives; None for one outside the
        object."""
        for relocation in self._at.get(instruction.address, ()):
            if not self.unit.arch.relocations[relocation.type][2]:
                continue
            symbol = relocation.symbol
            ahead = instruction.size - self._field(instruction, relocation)
            if symbol.section in (elf.UNDEFINED, elf.COMMON, elf.ABSOLUTE):
                return instruction._replace(target=None)
            return instruction._replace(target=address(symbol.section, symbol.value + relocation.addend + ahead))
        return instruction

    def _field(self, instruction: Instruction, relocation: Relocation) -> int:
        return relocation.offset - (instruction.address & 0xFFFFFFFF)

    def _effective(self) -> dict[int, bytes]:
        entries = unwind_entries(self.unit)
        places = [place for place, _state in entries]
        changes: dict[int, bytes] = {}
        for part in self.body.parts:
            before = None
            for instruction in part.instructions:
                at = bisect_right(places, instruction.address) - 1
                if at >= 0 and places[at] >> 32 == instruction.address >> 32 and entries[at][1] != before:
                    before = changes[instruction.address] = entries[at][1]
        return changes

    def _table(self, name: str) -> tuple[Section, tuple[Relocation, ...]] | None:
        for section in self.unit.sections:
            if section.name == name and section.index in self.unit.relocations:
                return section, self.unit.relocations[section.index]
        return None

    def _sites(self, name: str, stride: int) -> set[int]:
        found = self._table(name)
        if found is None:
            return set()
        return {address(r.symbol.section, r.symbol.value + r.addend) for r in found[1] if r.offset % stride == 0}

    @cached_property
    def _depths(self) -> dict[int, int | None]:
        """Return the stack's depths, where objtool made no unwind entries."""
        if self.state is not None:
            return {}
        leads: dict[int, tuple[int, ...]] = {}
        for name, stride in (("__jump_table", 8 + self.unit.arch.word), ("__ex_table", 12)):
            for entries in filter(None, (self._table(name),)):
                at = {r.offset: address(r.symbol.section, r.symbol.value + r.addend) for r in entries[1]}
                leads.update((at[o], (at[o + 4],)) for o in at if o % stride == 0 and o + 4 in at)
        return depth.depths(self.body, self.unit.arch, leads, self._warnings())

    def _warnings(self) -> set[int]:
        """Return where code goes on behind an undefined instruction: the flags are an entry's last two bytes."""
        section, relocations = self._table("__bug_table") or (None, ())
        return {
            address(r.symbol.section, r.symbol.value + r.addend)
            for r in relocations
            if section and r.offset % 12 == 0 and section.data[r.offset + 10] & WARNING
        }

    def _alternatives(self) -> list[tuple[int, int]]:
        """Return the ranges of code that the loader may overwrite as a whole: they keep their length."""
        found = self._table(".altinstructions")
        if found is None:
            return []
        section, relocations = found
        stride = relocations[2].offset - relocations[0].offset if len(relocations) > 2 else section.size
        ranges = []
        for relocation in relocations[::2]:
            start = address(relocation.symbol.section, relocation.symbol.value + relocation.addend)
            ranges.append((start, start + section.data[relocation.offset + stride - 2]))
        return ranges

    # writing

    def write(self, edition: Edition, expression: Expression) -> tuple[list[str], list[str]]:
        """Return what must stand first (endbr, ftrace site) and the moved code; EXPRESSION writes references."""
        first: list[str] = []
        lines: list[str] = []
        state = self.state
        ahead = list(self.body.instructions[:2])
        endbr = None
        if ahead[0].code == self.unit.arch.endbr[0]:
            first.append(writer.data(self.unit.arch.endbr[0]))
            endbr = ahead.pop(0).address
            self.moved[endbr] = edition.name
        ftrace = ahead[0].address if ahead and ahead[0].address in self._traced else None
        code = [one for part in self.body.parts for one in part.instructions if one.address != ftrace]
        # What the loader writes over some of it may be a call.
        if not any(start <= one.address < end for start, end in self._fixed for one in code):
            edition.takes(code)
        for part in self.body.parts:
            for instruction in part.instructions:
                label = edition.label(instruction.address)
                lines.append(f"{label}:")
                if instruction.address in self._unwind:
                    state = self._unwind[instruction.address]
                    edition.tables.unwind(label, state)
                if instruction.address == endbr:
                    continue
                if instruction.address == ftrace:
                    self.moved[ftrace] = edition.ftrace
                    first += [f"{edition.ftrace}:", *self._bytes(instruction, expression)]
                    continue
                lines += self._instruction(instruction, edition, expression, state)
            if part.instructions[-1].kind is Kind.CALL:
                lines.append("\tud2")
        return first, lines

    def _instruction(
        self, instruction: Instruction, edition: Edition, expression: Expression, state: bytes | None
    ) -> list[str]:
        kind, target = instruction.kind, instruction.target
        if instruction.address in self._keys:
            return self._static_key(instruction, edition)
        if kind in (Kind.JUMP, Kind.BRANCH, Kind.LOOP):
            if target in self.body.boundaries and target is not None:
                return self._jump(instruction, edition.label(target))
            if target is not None and self.unit.sections[(target >> 32) - 1].name == _AUXILIARY:
                return self._bytes(instruction, expression)
            return self._leave(instruction, edition, expression, state)
        if kind in (Kind.RETURN, Kind.JUMP_INDIRECT):
            return self._leave(instruction, edition, expression, state)
        if kind is Kind.CALL and target is not None and target in self.body.boundaries and target != self.body.address:
            return [f"\tcall {edition.label(target)}"]
        ends = kind is Kind.CALL and any(
            relocation.symbol.name in writer.ENDS_TASK for relocation in self._at.get(instruction.address, ())
        )
        return [*(edition.ending() if ends else []), *self._bytes(instruction, expression)]

    def _jump(self, instruction: Instruction, target: str) -> list[str]:
        kind = instruction.kind
        if any(start <= instruction.address < end for start, end in self._fixed):
            width = 1 if instruction.size <= 3 else 4
            opcode = instruction.code[:-width]
            return [writer.data(opcode), f"\t.{'byte' if width == 1 else 'long'} {target} - . - {width}"]
        if kind is Kind.LOOP:
            here = f"{target}.short.{instruction.address:x}"
            return [
                f"\t{instruction.detail} {here}",
                f"\tjmp {here}.not",
                f"{here}:",
                f"\tjmp {target}",
                f"{here}.not:",
            ]
        return [f"\t{instruction.detail or 'jmp'} {target}"]

    def _leave(
        self, instruction: Instruction, edition: Edition, expression: Expression, state: bytes | None
    ) -> list[str]:
        deep = self._depths.get(instruction.address, 0)
        try:
            safety.check_exit(self.symbol.name, instruction, state, self.state, deep)
        except Refusal as error:
            raise self._refusal(error.reason, error.address) from None
        if any(start <= instruction.address < end for start, end in self._fixed):
            raise self._refusal(
                f"{instruction.text}: leaves the function from within an alternative", instruction.address
            )
        if instruction.kind is Kind.JUMP_INDIRECT:
            if self.state is None:
                reason = "an indirect jump, and no unwind data to tell a tail call from a table"
                raise self._refusal(f"{instruction.text}: {reason}", instruction.address)
            operand = memory(instruction.code, self.unit.arch.word)
            if operand is not None and operand.scaled:
                raise self._refusal(
                    f"{instruction.text}: an indirection table: compile with -fno-jump-tables", instruction.address
                )
            return [f"\tjmp {edition.tail(self._bytes(instruction, expression), instruction.text)}"]
        outside = self._outside(instruction, expression)
        if instruction.kind is Kind.RETURN and instruction.detail:
            dropping = [f"\t{instruction.detail}"]
            return [f"\tjmp {edition.tail(dropping)}"]
        if instruction.kind is Kind.RETURN or outside == _RETURN:
            self.moved[instruction.address] = ""
            if instruction.kind in (Kind.RETURN, Kind.JUMP):
                return edition.leaving(state)
            return [f"\t{instruction.detail} {edition.exit}"]
        if instruction.kind is Kind.LOOP:
            raise self._refusal("a short branch out of the function", instruction.address)
        if instruction.address in self._calls:
            site = f".L{edition.name}.site.{instruction.address:x}"
            self.moved[instruction.address] = site
            jump = [f"{site}:", "\t.byte 0xe9\t# static call", f"\t.long {outside} - . - 4"]
        else:
            self.moved[instruction.address] = ""
            jump = [f"\tjmp {outside}"]
        return [f"\t{instruction.detail or 'jmp'} {edition.tail(jump, writer.taken_by(outside))}"]

    def _outside(self, instruction: Instruction, expression: Expression) -> str:
        """Return the operand of a branch out of the function."""
        target = instruction.target
        for relocation in self._at.get(instruction.address, ()):
            if target is None:
                if relocation.addend != self._field(instruction, relocation) - instruction.size:
                    break
                name = relocation.symbol.name
                return (
                    name if name == _RETURN or writer.registers_of(name) else expression(relocation.symbol, 0, False, 0)
                )
        if target is not None:
            section, offset = (target >> 32) - 1, target & 0xFFFFFFFF
            for symbol in self.unit.symbols:
                if symbol.type == elf.FUNCTION and symbol.section == section and symbol.value == offset:
                    return expression(symbol, 0, False, 0)
        if instruction.kind is Kind.RETURN:
            return _RETURN
        raise self._refusal(
            f"{instruction.text}: branch to something that is not the start of a function",
            instruction.address,
        )

    def _static_key(self, instruction: Instruction, edition: Edition) -> list[str]:
        if instruction.kind is Kind.NOP:
            return [f"{writer.data(self.unit.arch.nop5)}\t# static key"]
        if instruction.kind is Kind.JUMP and instruction.target in self.body.boundaries and instruction.target:
            return ["\t.byte 0xe9\t# static key", f"\t.long {edition.label(instruction.target)} - . - 4"]
        raise self._refusal(f"{instruction.text}: not what a static key's site holds", instruction.address)

    def _bytes(self, instruction: Instruction, expression: Expression) -> list[str]:
        """Return the instruction's bytes, with what they refer to left to relocations."""
        relocations = self._at.get(instruction.address, [])
        if not relocations:
            target = instruction.target
            if target is None:
                return [writer.plain(instruction)]
            section = self.unit.sections[(target >> 32) - 1]
            here = Symbol(section.name, 0, 0, elf.LOCAL, elf.SECTION, section.index)
            width = 4
            field = instruction.field or instruction.size - width
            operand = expression(here, target & 0xFFFFFFFF, False, 0)
            return writer.relative(instruction._replace(field=field), operand)
        lines = []
        at = 0
        for relocation in relocations:
            _name, width, near = self.unit.arch.relocations[relocation.type]
            field = self._field(instruction, relocation)
            ahead = instruction.size - field if near else 0
            if at < field:  # an address may be stored at an address, with nothing between
                lines.append(writer.data(instruction.code[at:field]))
            operand = expression(relocation.symbol, relocation.addend, False, ahead)
            lines += self.unit.arch.reference(relocation.type, operand)
            at = field + width
        if at < instruction.size:
            lines.append(writer.data(instruction.code[at:]))
        lines[0] += f"\t# {instruction.text}"
        return lines
