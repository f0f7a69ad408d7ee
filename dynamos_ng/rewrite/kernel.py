"""What the rewriter asks of a kernel: bytes, symbols, and the tables that point into code.

`dynamos_ng.image` answers from a live kernel or a saved image; tests answer from memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from dynamos_ng.arch import Arch

#: BUGFLAG_WARNING
WARNING = 1


@dataclass(frozen=True)
class Symbol:
    """A code symbol; it reaches to the next higher symbol (`size` bytes). `module` is "" for the kernel
    proper."""

    name: str
    address: int
    size: int
    module: str = ""

    @property
    def end(self) -> int:
        """Return the address of the next symbol."""
        return self.address + self.size


@dataclass(frozen=True)
class Fixup:
    """An exception table entry: a fault at `address` continues at `fixup`; `data` says how (opaque)."""

    address: int
    fixup: int
    data: int


@dataclass(frozen=True)
class StaticKey:
    """A jump label site: nop, or jump to `target`. `branch` is the table's bit, `jumps` its initial form."""

    address: int
    target: int
    key: int
    branch: bool
    jumps: bool


@dataclass(frozen=True)
class Bug:
    """A bug table entry of the `ud2` at `address`: source file (address of its name), line, flags.

    `format` is the address of what to print, 0 where entries have none.
    """

    address: int
    file: int
    line: int
    flags: int
    format: int = 0

    @property
    def warns(self) -> bool:
        """Return whether the code goes on behind it: a WARN, and no BUG."""
        return bool(self.flags & WARNING)


@dataclass(frozen=True)
class StaticCall:
    """A static call site; `key` is the address of its key; a tail call is a jump."""

    address: int
    key: int
    tail: bool


class Kernel(Protocol):
    """A kernel's code and tables; ranges are half open, results are in ascending order of address."""

    @property
    def arch(self) -> Arch:
        """Return what its code is for."""
        ...

    @property
    def user(self) -> bool:
        """Return whether the code is a program's, which may ask a kernel for service, and not a kernel's."""
        ...

    def function(self, name: str, position: int | None = None) -> Symbol:
        """Return the function of that name, the POSITIONth from 1 where there are several."""
        ...

    def read(self, address: int, size: int) -> bytes:
        """Return SIZE bytes at ADDRESS."""
        ...

    def containing(self, address: int) -> Symbol | None:
        """Return the code symbol that ADDRESS lies in; among aliases the first by name order of the
        kernel."""
        ...

    def names(self, address: int) -> tuple[str, ...]:
        """Return all symbols that stand exactly at ADDRESS."""
        ...

    def in_text(self, address: int) -> bool:
        """Return whether ADDRESS lies in the kernel's own text.

        For a module's code, the text of the module and of those whose symbols it uses counts too.
        """
        ...

    def forbidden(self, start: int, end: int) -> str:
        """Return why code in the range must not be redirected ("noinstr", …), or ""."""
        ...

    def probes(self, start: int, end: int) -> list[int]:
        """Return where in the range a kprobe has written over the code."""
        ...

    def return_thunks(self) -> frozenset[int]:
        """Return the addresses that a jump may go to in place of a return; empty if the kernel has none."""
        ...

    def branch_pads(self) -> Mapping[str, int]:
        """Return by register what an indirect branch must go through, {} where it may stand anywhere.

        Some processors can be misled by an indirect branch in the lower half of a cache line (Indirect Target
        Selection); their kernels leave those in the upper half as they are, and a clone lies elsewhere.
        """
        ...

    def orc(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """Return unwind entries (address, 6 bytes), the first being the one in force at START; [] without
        ORC."""
        ...

    def fixups(self, start: int, end: int) -> list[Fixup]:
        """Return exception table entries of instructions in the range."""
        ...

    def static_keys(self, start: int, end: int) -> list[StaticKey]:
        """Return jump label sites in the range."""
        ...

    def bugs(self, start: int, end: int) -> list[Bug]:
        """Return bug table entries in the range."""
        ...

    def static_calls(self, start: int, end: int) -> list[StaticCall]:
        """Return static call sites in the range."""
        ...

    def bare_locks(self, start: int, end: int) -> list[int]:
        """Return addresses in the range where a lock prefix is switched off as long as one CPU runs."""
        ...
