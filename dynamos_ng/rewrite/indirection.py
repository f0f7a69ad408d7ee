"""Indirection tables: what a `switch` or a computed goto jumps through.

A table holds addresses inside the function, or their distances from a base (code that may lie anywhere). The clone
gets a table of its own, that leads to the moved instructions. As in the paper (section 4.2), a table ends where an
entry is no instruction of the function; a comparison in front of the jump that allows more entries than were found
is a reason to refuse.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from dynamos_ng.arch import Arch, Instruction, Kind
from dynamos_ng.arch.x86 import Memory, memory
from dynamos_ng.errors import ImageError, Refusal
from dynamos_ng.rewrite.kernel import Kernel
from dynamos_ng.rewrite.reader import Body

#: How many instructions in front of a jump may belong to it.
_REACH = 12
_LARGEST = 4096
_ABOVE = ("ja", "jbe", "jae", "jb")


@dataclass(frozen=True)
class Table:
    """An indirection table: its place, the size of an entry, what entries count from (0: they are addresses).

    `moved`: entries and uses count from the table itself, wherever it is.
    """

    address: int
    width: int
    base: int
    moved: bool
    targets: tuple[int, ...]


@dataclass(frozen=True)
class Use:
    """An instruction whose 4-byte field at `field` leads to a table."""

    table: Table
    field: int


@dataclass(frozen=True)
class Indirection:
    """The tables of a function: by the instructions that refer to them, and by the jumps through them."""

    uses: Mapping[int, Use]
    jumps: Mapping[int, tuple[Table, ...]]

    @property
    def tables(self) -> tuple[Table, ...]:
        """Return all tables in order of address."""
        return tuple(sorted({use.table for use in self.uses.values()}, key=lambda table: table.address))

    def targets(self, jump: int) -> tuple[int, ...]:
        """Return where the jump at an address may lead."""
        return tuple(target for table in self.jumps.get(jump, ()) for target in table.targets)


NONE = Indirection({}, {})


def find(kernel: Kernel, body: Body, thunks: Mapping[int, str]) -> Indirection:
    """Return the tables that BODY jumps through; Refusal for one that is not understood.

    THUNKS: address of an indirect branch thunk -> its register.
    """
    jumps: list[tuple[Sequence[Instruction], int, str]] = []
    for part in body.parts:
        for instruction in part.special:
            target = instruction.target
            if instruction.kind is Kind.JUMP_INDIRECT:
                register = instruction.detail
            elif instruction.kind is Kind.JUMP and target is not None and target in thunks:
                register = thunks[target]
            else:
                continue
            jumps.append((part.instructions, part.instructions.index(instruction), register))
    if not jumps:
        return NONE
    finder = _Finder(kernel, body)
    for code, at, register in jumps:
        finder.follow(code, at, register)
    return Indirection(finder.uses, finder.jumps)


def lines(table: Table, name: str, label: Callable[[int], str], arch: Arch) -> list[str]:
    """Return the text of a clone's table called NAME; LABEL gives the moved instructions' labels."""
    directive = arch.pointer if table.width == arch.word else ".long"
    origin = f" - {name}" if table.moved else f" - {table.base:#x}" if table.base else ""
    return [f"\t.balign {table.width}", f"{name}:", *(f"\t{directive} {label(to)}{origin}" for to in table.targets)]


class _Finder:
    def __init__(self, kernel: Kernel, body: Body) -> None:
        self.kernel = kernel
        self.body = body
        self.word = kernel.arch.word
        self.mask = (1 << 8 * self.word) - 1
        self.uses: dict[int, Use] = {}
        self.jumps: dict[int, tuple[Table, ...]] = {}

    def follow(self, code: Sequence[Instruction], at: int, register: str) -> None:
        """Find the tables of the jump CODE[AT] through REGISTER ("" for memory)."""
        jump = code[at]
        if not register:
            operand = memory(jump.code, self.word)
            if operand is not None and operand.scaled and not operand.base:
                self._absolute(code, at, jump, operand)
            return
        added = ""
        for before in range(at - 1, max(at - _REACH, -1), -1):
            instruction = code[before]
            if instruction.kind not in (Kind.PLAIN, Kind.NOP):
                break
            if not _writes(instruction, register):
                continue
            operand = memory(instruction.code, self.word)
            if not added and instruction.text.startswith("add") and (added := _source(instruction)):
                continue
            if operand is None or operand.register != register or not operand.scaled:
                break
            if added:
                self._relative(code, at, before, operand, added)
                return
            if not operand.base and operand.scale == self.word:
                self._absolute(code, at, instruction, operand)
                return
            break
        if added:
            raise self._unknown(jump)

    def _absolute(self, code: Sequence[Instruction], at: int, load: Instruction, operand: Memory) -> None:
        """Follow a table of addresses, which LOAD refers to directly."""
        address = operand.displacement & self.mask
        table = self._table(address, self.word, 0, False)
        if table is None:
            return  # functions, say: a tail call
        self._bounded(code, at, table)
        self.uses[load.address] = Use(table, operand.field)
        self.jumps[code[at].address] = (table,)

    def _relative(self, code: Sequence[Instruction], at: int, before: int, operand: Memory, added: str) -> None:
        """Follow tables of distances: the load CODE[BEFORE], then an addition of the register ADDED."""
        jump = code[at]
        if operand.scale != 4 or added not in (operand.base, operand.scaled):
            raise self._unknown(jump)
        if self.word == 4:
            base = self._global_offsets()
            table = self._table(base + operand.displacement & self.mask, 4, base, False) if base else None
            if table is None or not operand.field:
                raise self._unknown(jump)
            self._bounded(code, at, table)
            self.uses[code[before].address] = Use(table, operand.field)
            self.jumps[jump.address] = (table,)
            return
        tables = []
        for instruction in self.body.instructions:
            if instruction.field and instruction.target is not None and instruction.text.startswith("lea"):
                if not instruction.text.endswith(f"%{added}") or operand.displacement:
                    continue
                table = self._table(instruction.target, 4, instruction.target, True)
                if table is not None:
                    self.uses[instruction.address] = Use(table, instruction.field)
                    tables.append(table)
        if not tables:
            raise self._unknown(jump)
        if len(tables) == 1:
            self._bounded(code, at, tables[0])
        self.jumps[jump.address] = tuple(tables)

    def _table(self, address: int, width: int, base: int, moved: bool) -> Table | None:
        """Read a table; None if its first entry is no instruction of the function, or the function's own start."""
        boundaries, start = self.body.boundaries, self.body.address
        targets: list[int] = []
        while len(targets) < _LARGEST:
            try:
                raw = self.kernel.read(address + width * len(targets), width)
            except ImageError:
                break
            target = int.from_bytes(raw, "little", signed=bool(base)) + base & self.mask
            if target not in boundaries or (target == start and not targets):
                break
            targets.append(target)
        return Table(address, width, base, moved, tuple(targets)) if targets else None

    def _bounded(self, code: Sequence[Instruction], at: int, table: Table) -> None:
        """Refuse a table shorter than what a comparison right in front of the jump lets through."""
        for before in range(at - 1, max(at - _REACH, 0), -1):
            branch, compare = code[before], code[before - 1]
            if branch.kind is not Kind.BRANCH or branch.detail not in _ABOVE:
                continue
            if compare.text.startswith("cmp") and (found := compare.text.partition("$")[2]):
                number = int(found.partition(",")[0], 0)
                entries = number + (branch.detail in ("ja", "jbe"))
                if 0 < entries <= _LARGEST and entries > len(table.targets):
                    reason = (
                        f"an indirection table at {table.address:#x} has {len(table.targets)} entries inside the "
                        f"function, and {entries} can be asked for"
                    )
                    raise Refusal(self.body.name, reason, address=code[at].address, kind="an indirection table")
            return

    def _global_offsets(self) -> int:
        """Return what code that may lie anywhere counts from, the program counter plus a constant; 0 if it is not
        known."""
        for part in self.body.parts:
            for call, add in zip(part.instructions, part.instructions[1:], strict=False):
                if call.kind is not Kind.CALL or call.target is None:
                    continue
                opcode = add.code[0]
                known = self.kernel.arch.program_counter(self.kernel.read, call.target)
                if known and add.text.startswith("add") and (opcode in (0x05, 0x81)):
                    return call.end + int.from_bytes(add.code[-4:], "little") & self.mask
        return 0

    def _unknown(self, jump: Instruction) -> Refusal:
        return Refusal(
            self.body.name, f"{jump.text}: the indirection table of this jump was not found",
            address=jump.address, kind="an indirection table",
        )  # fmt: skip


def _writes(instruction: Instruction, register: str) -> bool:
    """Return whether an instruction's last operand is REGISTER, or the lower half of it."""
    last = instruction.text.rpartition("%")[2]
    if instruction.text.startswith(("cmp", "test", "push")):
        return False
    return last in (register, _half(register))


def _half(register: str) -> str:
    return register + "d" if register[1:].isdigit() else "e" + register[1:]


def _source(instruction: Instruction) -> str:
    """Return the register that an addition adds, or ""."""
    operands = instruction.text.split(" ", 1)[-1].split(",")
    first = operands[0].strip()
    return first[1:] if first.startswith("%") and len(operands) == 2 else ""
