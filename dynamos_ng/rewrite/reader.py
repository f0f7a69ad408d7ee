"""Reader: the bytes of a function, all of its parts, as decoded instructions.

A function is its main part, the parts that the compiler moved away (`NAME.cold`), and in assembler code other symbols
of the same image: ones that it runs on into, into whose middle it branches, or where its faults are caught. Parts are
found by following branches. Padding behind the last instruction of a part belongs to nobody and is left out.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from dynamos_ng.arch import DIRECT, ENDING, Arch, Instruction, Kind
from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite.kernel import Kernel, Symbol

_MOST_PARTS = 16
#: What stands behind a section of a module, taken for an instruction.
_ZEROS = b"\0\0"


@dataclass(frozen=True)
class Part:
    """A stretch of a function: `size` is the extent up to the next symbol, `end` is past its last
    instruction."""

    name: str
    address: int
    size: int
    instructions: tuple[Instruction, ...]

    @property
    def end(self) -> int:
        """Return the address past the last instruction; padding may follow."""
        return self.instructions[-1].end if self.instructions else self.address

    @cached_property
    def special(self) -> tuple[Instruction, ...]:
        """Return the instructions that do more than to compute: all that branch, end, pad or trap."""
        return tuple([instruction for instruction in self.instructions if instruction.kind is not Kind.PLAIN])

    @property
    def runs_on(self) -> bool:
        """Return whether its last instruction leads into the next symbol."""
        return bool(self.instructions) and self.instructions[-1].kind not in (*ENDING, Kind.CALL)

    @property
    def limit(self) -> int:
        """Return the address of the next symbol."""
        return self.address + self.size


@dataclass(frozen=True)
class Body:
    """A whole function, main part first."""

    name: str
    parts: tuple[Part, ...]

    @property
    def address(self) -> int:
        """Return the address of the function's first byte."""
        return self.parts[0].address

    @cached_property
    def instructions(self) -> tuple[Instruction, ...]:
        """Return the instructions of all parts, in the order of the clone."""
        return tuple([instruction for part in self.parts for instruction in part.instructions])

    @property
    def special(self) -> Iterator[Instruction]:
        """Yield the special instructions of all parts."""
        for part in self.parts:
            yield from part.special

    @cached_property
    def boundaries(self) -> frozenset[int]:
        """Return the addresses at which an instruction begins."""
        return frozenset([instruction.address for instruction in self.instructions])

    def begins(self, address: int) -> bool:
        """Return whether a part begins at ADDRESS."""
        return any(part.address == address for part in self.parts)

    def part(self, address: int) -> Part | None:
        """Return the part whose instructions cover ADDRESS."""
        for part in self.parts:
            if part.address <= address < part.end:
                return part
        return None

    def covering(self, address: int) -> Instruction:
        """Return the instruction that holds the byte at ADDRESS, which lies in the body."""
        part = self.part(address)
        assert part is not None
        at = bisect_right(part.instructions, address, key=lambda instruction: instruction.address)
        return part.instructions[at - 1]


def read(kernel: Kernel, symbol: Symbol) -> Body:
    """Read the function at SYMBOL with all its parts; Refusal for what cannot be decoded."""
    names = (symbol.name, *kernel.names(symbol.address))
    parts = [_part(symbol.name, kernel, symbol)]
    for part in parts:
        targets = [
            i.target
            for i in part.special
            if i.kind in DIRECT and i.target is not None and not is_noted_call(kernel, i)
        ]
        targets += [key.target for key in kernel.static_keys(part.address, part.end)]
        caught = [fixup.fixup for fixup in kernel.fixups(part.address, part.end)]
        targets += caught
        if part.runs_on:
            targets.append(part.limit)
        for target in dict.fromkeys(targets):
            if any(known.address <= target < known.limit for known in parts):
                continue
            other = kernel.containing(target)
            if other is None or other.module != symbol.module or len(parts) == _MOST_PARTS:
                continue
            inside = target != other.address or target in caught or (part.runs_on and target == part.limit)
            if any(_is_cold(name, names) for name in kernel.names(other.address)):
                parts.append(_part(symbol.name, kernel, other))
            elif inside and kernel.in_text(target):
                joined = _part(symbol.name, kernel, other)
                if not _compiled(parts[0], kernel.arch) and not _compiled(joined, kernel.arch):
                    parts.append(joined)
    return Body(symbol.name, tuple(parts))


def is_noted_call(kernel: Kernel, instruction: Instruction) -> bool:
    """Return whether an instruction calls a function by way of the padding before it, where the call is noted.

    Kernels that track the depth of calls turn all calls into such ones when they boot.
    """
    target = instruction.target
    if instruction.kind is not Kind.CALL or target is None or kernel.names(target):
        return False
    padding = kernel.containing(target)
    return padding is not None and kernel.arch.notes_call(kernel.read(target, padding.end - target))


def _is_cold(name: str, owners: tuple[str, ...]) -> bool:
    """Return whether NAME is that of a part which the compiler moved out of a function called one of OWNERS."""
    for owner in owners:
        if name.startswith(f"{owner}.cold"):
            number = name.removeprefix(f"{owner}.cold")
            return not number or (number[0] == "." and number[1:].isdigit())
    return False


def _compiled(part: Part, arch: Arch) -> bool:
    """Return whether a part begins with a ftrace site: compilers do not branch into other functions."""
    return any(instruction.code in arch.idle for instruction in part.instructions[:2])


def _part(function: str, kernel: Kernel, symbol: Symbol) -> Part:
    code = kernel.read(symbol.address, symbol.size)
    # Megabytes of padding may stand between two symbols; the last instruction may end in bytes that look like it.
    code = code[: len(code.rstrip(b"\xcc\x90\0")) + 16]
    # Behind it there may be another function, which the linker dropped for a stronger one of its name, together with
    # its symbol. Nothing reaches it, so the unwind table says nothing of it.
    unreached = [place for place, state in kernel.orc(symbol.address, symbol.end)[-1:] if not any(state)]
    for known in [code[: place - symbol.address] for place in unreached if place > symbol.address]:
        part = Part(symbol.name, symbol.address, symbol.size, decode(kernel.arch, function, known, symbol.address))
        if not part.runs_on:
            return part
    return Part(symbol.name, symbol.address, symbol.size, decode(kernel.arch, function, code, symbol.address))


def decode(arch: Arch, function: str, code: bytes, address: int) -> tuple[Instruction, ...]:
    """Decode a part's bytes and trim its padding; Refusal at the first byte that starts no known
    instruction."""
    instructions, covered = arch.decode(code, address)
    kept = trim(instructions)
    if covered < len(code) and code[covered:].strip(b"\xcc\x90\0"):
        where = address + covered
        for before, instruction in pairwise(instructions):
            if instruction.kind is Kind.BREAKPOINT and before.kind not in ENDING:
                raise breakpoint_reached(function, instruction.address)  # what follows may be the rest of its victim
        raise Refusal(
            function, f"unknown instruction {code[covered : covered + 8].hex(' ')}", address=where,
            remedy="it may be data, or a processor's extension that this capstone does not know",
            kind="unknown instruction",
        )  # fmt: skip
    return kept


def breakpoint_reached(function: str, address: int) -> Refusal:
    """Return the refusal of a breakpoint in a function's way."""
    return Refusal(
        function, "a breakpoint that can be reached: a kprobe, or padding behind a call that never returns",
        address=address, remedy="if /sys/kernel/debug/kprobes/list shows one there, remove it",
    )  # fmt: skip


def trim(instructions: list[Instruction]) -> tuple[Instruction, ...]:
    """Return the instructions without the padding behind the last one that does something."""
    last = len(instructions)
    while last and _is_padding(instructions[last - 1]):
        last -= 1
    return tuple(instructions[:last])


def _is_padding(instruction: Instruction) -> bool:
    return instruction.kind in (Kind.NOP, Kind.BREAKPOINT) or instruction.code == _ZEROS
