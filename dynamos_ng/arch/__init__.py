"""What differs between architectures, and nothing else.

`Arch` is what the rewriter asks; `x86_64.ARCH` and `i386.ARCH` answer, `known` finds the one that is wanted. `x86` is
what the two share: a decoder driven by bytes.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple


class Kind(Enum):
    """What an instruction does to control flow; SYSTEM asks a kernel for service and comes back."""

    PLAIN = auto()
    NOP = auto()
    CALL = auto()
    JUMP = auto()
    BRANCH = auto()
    LOOP = auto()
    RETURN = auto()
    CALL_INDIRECT = auto()
    JUMP_INDIRECT = auto()
    UNDEFINED = auto()
    BREAKPOINT = auto()
    SYSTEM = auto()
    REFUSED = auto()

    # Members are compared by identity, and often looked up: Enum's own hash is Python code.
    __hash__ = object.__hash__


class Instruction(NamedTuple):
    """One decoded instruction.

    `target` is where a branch goes, or what a RIP-relative operand (`field` is the offset of its 4-byte
    displacement, else 0) refers to. `detail` is the mnemonic of a conditional branch or loop, the register of
    an indirect jump ("" for memory), a return that drops arguments as text, or the reason of a refusal.
    """

    address: int
    size: int
    code: bytes
    kind: Kind
    target: int | None
    field: int
    detail: str
    text: str

    @property
    def end(self) -> int:
        """Return the address just past the instruction."""
        return self.address + self.size


#: Instructions after which the next one is not reached.
ENDING = frozenset((Kind.JUMP, Kind.RETURN, Kind.JUMP_INDIRECT, Kind.UNDEFINED, Kind.BREAKPOINT))
#: Instructions whose target is code.
DIRECT = frozenset((Kind.CALL, Kind.JUMP, Kind.BRANCH, Kind.LOOP))
#: Instructions after which registers may have changed that they do not name.
CALLING = frozenset((Kind.CALL, Kind.CALL_INDIRECT, Kind.SYSTEM))


@dataclass(frozen=True, eq=False)
class Arch(ABC):
    """An architecture: its sizes, its fixed instructions, and the text of what is generated for it.

    `idle` holds the forms of a ftrace site that nobody uses, `endbr` those of an entry of indirect branches.
    `relocations` gives name, width in bytes and whether relative to the place, by ELF type; `return_thunks` says
    whether its kernels may replace returns by jumps. Registers that a C function does not care about come first choice
    first: at its entry, when it returns, when it jumps to another. `select` uses the register `spare`, the second of a
    `pair`, and `chosen` is its lowest byte. `arguments` are those that a C function's arguments come in, in their
    order.
    """

    name: str
    machine: int
    word: int
    pointer: str
    trampoline: int
    nop5: bytes
    idle: frozenset[bytes]
    endbr: tuple[bytes, ...]
    relocations: Mapping[int, tuple[str, int, bool]]
    bugs_relative: bool
    return_thunks: bool
    free_at_entry: tuple[str, ...]
    free_at_return: tuple[str, ...]
    free_at_tail: tuple[str, ...]
    spare: str
    chosen: str
    pair: tuple[str, str]
    arguments: tuple[str, ...]
    answer: str

    @abstractmethod
    def decode(self, code: bytes, address: int) -> tuple[list[Instruction], int]:
        """Decode CODE that stands at ADDRESS; return the instructions and how many bytes they cover.

        Fewer bytes than given means that the next one starts no instruction that is known.
        """

    @abstractmethod
    def increment(
        self, slot: str, offset: int, register: str, rare: list[str], loaded: bool = False
    ) -> list[str]:
        """Return text that adds 1 to the 64-bit per-CPU number OFFSET behind what SLOT holds; changes flags, and
        REGISTER unless that is LOADED with what the slot holds. What is seldom run is appended to RARE."""

    @abstractmethod
    def saved(self, preserve: bool, pair: bool, /) -> tuple[str, ...]:
        """Return the registers that a handler must save: with PRESERVE, all that it changes.

        That is `spare`, or the PAIR.
        """

    @abstractmethod
    def select(self, current: int, tgid: int, row: str, told: Sequence[str] = ()) -> list[str]:
        """Return text that leaves in `spare` where the edition stands that this process runs: a byte of a row.

        CURRENT is the per-CPU offset of the current task's pointer, TGID that of the thread group's number in a task,
        ROW the slot that holds the function's row of editions. TOLD is what `in_interrupt` returned, if that counts.
        `fetch` or `compare` follows.
        """

    @abstractmethod
    def fetch(self, row: str) -> list[str]:
        """Return text that leaves the edition's number in the register `chosen`."""

    @abstractmethod
    def compare(self, row: str, number: int) -> list[str]:
        """Return text that compares it with NUMBER, where it stands."""

    @abstractmethod
    def in_interrupt(self, preempt: int, mask: int, policy_class: int, /) -> list[str]:
        """Return text that puts a policy class in place of the process's if this CPU is in an interrupt.

        PREEMPT is the per-CPU offset of the preemption count, of which it then has some bits of MASK.
        """

    @abstractmethod
    def adapt(self, slot: str, /) -> list[str]:
        """Return text that leaves the edition that dynamos.ko chooses for this call in the register `answer`.

        SLOT holds what that needs; the argument registers have been pushed, the first one last. Changes what any call
        of a C function changes.
        """

    @abstractmethod
    def program_counter(self, read: Callable[[int, int], bytes], function: int, /) -> str:
        """Return the register that a FUNCTION loads with its return address, doing nothing else, or "".

        READ returns bytes at an address.
        """

    @abstractmethod
    def notes_call(self, code: bytes, /) -> bool:
        """Return whether CODE, in the padding before a function, notes how deep calls are and does nothing else."""

    @abstractmethod
    def push(self, address: int, /) -> list[str]:
        """Return text that pushes ADDRESS and changes nothing else; [] if no single instruction does."""

    @abstractmethod
    def reference(self, kind: int, expression: str) -> list[str]:
        """Return text of a field that a relocation of KIND is to fill with EXPRESSION."""

    def count(self, slot: str, offset: int, scratch: str, preserve: bool, rare: list[str]) -> list[str]:
        """Return `increment` with what it changes saved: all with PRESERVE, its register if SCRATCH is ""."""
        register = scratch or self.spare
        lines = self.increment(slot, offset, register, rare)
        if preserve:
            lines = ["\tpushf", *lines, "\tpopf"]
        if preserve or not scratch:
            lines = [f"\tpush %{register}", *lines, f"\tpop %{register}"]
        return lines
