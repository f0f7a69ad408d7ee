"""The tables that point into code: of the kernel's own code, or of a loaded module's. Entries are alike.

Tables are read when first asked for: a kernel in the lab is emulated, and an update touches few functions.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property

from dynamos_ng.arch import Arch
from dynamos_ng.errors import ImageError
from dynamos_ng.rewrite.kernel import Bug, Fixup, StaticCall, StaticKey

#: Of an entry of a bug table whose members are relative: without a format to print, and with one.
BUG_SIZES = (12, 16)


class Index:
    """Which of a table's entries are about which code: of tens of thousands, few are ever asked for."""

    def __init__(self, places: Sequence[int]) -> None:
        """Take the address of the code of each entry, in the table's order."""
        self._order = array("I", sorted(range(len(places)), key=places.__getitem__))
        self._places = array("Q", sorted(places))

    def __len__(self) -> int:
        return len(self._order)

    def within(self, start: int, end: int) -> Sequence[int]:
        """Return the numbers of the entries about code in the range, in order of that code."""
        return self._order[bisect_left(self._places, start) : bisect_left(self._places, end)]


class CodeTables(ABC):
    """What tables say of code, as the rewriter's `Kernel` protocol wants it."""

    arch: Arch

    @abstractmethod
    def read(self, address: int, size: int) -> bytes:
        """Return SIZE bytes at ADDRESS."""

    @abstractmethod
    def read_only(self, address: int) -> bool:
        """Return whether the data at ADDRESS became read-only when all was set up."""

    @abstractmethod
    def _find(self, section: str) -> tuple[int, bytes]:
        """Return address and bytes of the table that comes of an ELF section, b"" if there is none."""

    @property
    @abstractmethod
    def _orc_entries(self) -> int | None:
        """Return the address of the unwind entries."""

    @abstractmethod
    def _bug_sizes(self) -> Iterable[int]:
        """Return what the size of an entry of the bug table can be."""

    @abstractmethod
    def _has_code(self, index: Index) -> bool:
        """Return whether the entries of the bug table can be about such addresses."""

    @cached_property
    def _orc_ips(self) -> tuple[int, array[int]]:
        start, raw = self._find(".orc_unwind_ip")
        return start, array("i", raw)

    def orc(self, start: int, end: int) -> list[tuple[int, bytes]]:
        """Return unwind entries, the one in force at START first; [] for a kernel without ORC."""
        base, offsets = self._orc_ips
        entries = self._orc_entries
        if not offsets or entries is None:
            return []

        def place(i: int) -> int:
            return base + 4 * i + offsets[i]

        low = bisect_right(range(len(offsets)), start, key=place) - 1
        high = bisect_left(range(len(offsets)), end, key=place)
        if low < 0:
            return []
        raw = self.read(entries + 6 * low, 6 * (high - low))
        return [(place(low + i), raw[6 * i : 6 * i + 6]) for i in range(high - low)]

    @cached_property
    def _fixups(self) -> tuple[Index, int, array[int]]:
        start, raw = self._find("__ex_table")
        words = array("i", raw)
        return Index([start + 4 * i + words[i] for i in range(0, len(words), 3)]), start, words

    def fixups(self, start: int, end: int) -> list[Fixup]:
        """Return exception table entries of instructions in the range."""
        index, table, words = self._fixups
        return [
            Fixup(table + 4 * i + words[i], table + 4 * (i + 1) + words[i + 1], words[i + 2])
            for i in (3 * entry for entry in index.within(start, end))
        ]

    @cached_property
    def _keys(self) -> tuple[Index, int, bytes]:
        start, raw = self._find("__jump_table")
        words = array("i", raw)
        stride = 2 + self.arch.word // 4
        return Index([start + 4 * i + words[i] for i in range(0, len(words), stride)]), start, raw

    def static_keys(self, start: int, end: int) -> list[StaticKey]:
        """Return jump label sites in the range; each key's initial state is read from its own memory.

        Keys that were made read-only after boot are left out: they can change no more, so the code is as good as any
        other, and a module loader that wants to note a new site in such a key faults.
        """
        index, table, raw = self._keys
        word = self.arch.word
        entry = struct.Struct("<iiq" if word == 8 else "<iii")
        found = []
        for at in (entry.size * i for i in index.within(start, end)):
            code, target, key = entry.unpack_from(raw, at)
            address = table + at + 8 + (key & ~3)
            if self.read_only(address):
                continue
            initially = self.read(address + word, 1)[0] & 1
            branch = key & 1
            site, goal = table + at + code, table + at + 4 + target
            found.append(StaticKey(site, goal, address, bool(branch), bool(initially ^ branch)))
        return found

    @cached_property
    def _bugs(self) -> tuple[Index, int, bytes, int]:
        start, raw = self._find("__bug_table")
        if not self.arch.bugs_relative:
            return Index(array("I", raw[: len(raw) // 4 * 4])[::3]), start, raw, BUG_SIZES[0]
        words = array("i", raw)
        for size in self._bug_sizes():
            index = Index([start + at + words[at // 4] for at in range(0, len(raw) // size * size, size)])
            if self._has_code(index):
                return index, start, raw, size
        raise ImageError("the bug table cannot be read: its entries have a size that is not known")

    def bugs(self, start: int, end: int) -> list[Bug]:
        """Return bug table entries in the range."""
        index, table, raw, size = self._bugs
        found = []
        for at in (size * entry for entry in index.within(start, end)):
            if not self.arch.bugs_relative:
                found.append(Bug(*struct.unpack_from("<IIHH", raw, at)))
                continue
            # struct bug_entry: where, what to print if this kernel has that, file, line, flags.
            *near, line, flags = struct.unpack_from(f"<{size // 4 - 1}iHH", raw, at)
            where, *more = (table + at + 4 * i + word for i, word in enumerate(near))
            found.append(Bug(where, more[-1], line, flags, more[0] if len(more) == 2 else 0))
        return found

    @cached_property
    def _calls(self) -> tuple[Index, int, array[int]]:
        start, raw = self._find(".static_call_sites")
        words = array("i", raw)
        return Index([start + 4 * i + words[i] for i in range(0, len(words), 2)]), start, words

    def static_calls(self, start: int, end: int) -> list[StaticCall]:
        """Return static call sites in the range."""
        index, table, words = self._calls
        found = []
        for i in (2 * entry for entry in index.within(start, end)):
            # The flags are in the key's address and not in its distance: a module's entries may lie anywhere.
            key = table + 4 * (i + 1) + words[i + 1]
            found.append(StaticCall(table + 4 * i + words[i], key & ~3, bool(key & 1)))
        return found
