"""Reader: the bytes of a function, all of its parts, as decoded instructions.

A function is its main part and the parts that the compiler moved away (`NAME.cold`); parts are found by
following branches. Padding behind the last instruction of a part belongs to nobody and is left out.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property

from dynamos_ng.arch import DIRECT, Arch, Instruction, Kind
from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite.kernel import Kernel, Symbol


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
        return tuple(instruction for part in self.parts for instruction in part.instructions)

    @cached_property
    def boundaries(self) -> frozenset[int]:
        """Return the addresses at which an instruction begins."""
        return frozenset(instruction.address for instruction in self.instructions)

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
    """Read the function at SYMBOL and the cold parts that it branches into; Refusal for what cannot be
    decoded."""
    names = [symbol.name, *kernel.names(symbol.address)]
    cold = re.compile("|".join(re.escape(name) + r"\.cold(\.\d+)?" for name in names))
    parts = [_part(symbol.name, kernel, symbol)]
    seen = 0
    while seen < len(parts):
        part = parts[seen]
        seen += 1
        targets = [i.target for i in part.instructions if i.kind in DIRECT and i.target is not None]
        targets += [key.target for key in kernel.static_keys(part.address, part.end)]
        targets += [fixup.fixup for fixup in kernel.fixups(part.address, part.end)]
        for target in targets:
            if any(known.address <= target < known.limit for known in parts):
                continue
            other = kernel.containing(target)
            if other is not None and any(cold.fullmatch(name) for name in kernel.names(other.address)):
                parts.append(_part(symbol.name, kernel, other))
    return Body(symbol.name, tuple(parts))


def _part(function: str, kernel: Kernel, symbol: Symbol) -> Part:
    code = kernel.read(symbol.address, symbol.size)
    return Part(symbol.name, symbol.address, symbol.size, decode(kernel.arch, function, code, symbol.address))


def decode(arch: Arch, function: str, code: bytes, address: int) -> tuple[Instruction, ...]:
    """Decode a part's bytes and trim its padding; Refusal at the first byte that starts no known
    instruction."""
    instructions, covered = arch.decode(code, address)
    kept = trim(instructions)
    if covered < len(code) and code[covered:].strip(b"\xcc\x90\0"):
        where = address + covered
        raise Refusal(
            function, f"unknown instruction {code[covered : covered + 8].hex(' ')}", address=where,
            remedy="it may be data, or a processor's extension that this capstone does not know",
            kind="unknown instruction",
        )  # fmt: skip
    return kept


def trim(instructions: list[Instruction]) -> tuple[Instruction, ...]:
    """Return the instructions without the nops and breakpoints behind the last one that does something."""
    last = len(instructions)
    while last and instructions[last - 1].kind in (Kind.NOP, Kind.BREAKPOINT):
        last -= 1
    return tuple(instructions[:last])
