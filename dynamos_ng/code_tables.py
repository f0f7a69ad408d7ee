"""The tables that point into code: of the kernel's own code, or of a loaded module's. Entries are alike.

Tables are read when first asked for: a kernel in the lab is emulated, and an update touches few functions.
"""

from __future__ import annotations

import struct
from abc import ABC, abstractmethod
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import cached_property
from typing import Generic, Protocol, TypeVar

from dynamos_ng.arch import Arch
from dynamos_ng.errors import ImageError
from dynamos_ng.rewrite.kernel import Bug, Fixup, StaticCall, StaticKey

#: Of an entry of a bug table whose members are relative: without a format to print, and with one.
BUG_SIZES = (12, 16)


class _Placed(Protocol):
    @property
    def address(self) -> int: ...


_T = TypeVar("_T", bound=_Placed)


class _Sorted(Generic[_T]):
    """Table entries in order of their addresses."""

    def __init__(self, entries: Iterable[_T]) -> None:
        self._entries = sorted(entries, key=lambda entry: entry.address)
        self._places = array("Q", [entry.address for entry in self._entries])

    def within(self, start: int, end: int) -> list[_T]:
        return self._entries[bisect_left(self._places, start) : bisect_left(self._places, end)]


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
    def _has_code(self, address: int) -> bool:
        """Return whether an entry of the bug table can be about ADDRESS."""

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
    def _fixups(self) -> _Sorted[Fixup]:
        start, raw = self._find("__ex_table")
        words = array("i", raw)
        return _Sorted(
            Fixup(start + 4 * i + words[i], start + 4 * (i + 1) + words[i + 1], words[i + 2])
            for i in range(0, len(words), 3)
        )

    def fixups(self, start: int, end: int) -> list[Fixup]:
        """Return exception table entries of instructions in the range."""
        return self._fixups.within(start, end)

    @cached_property
    def _keys(self) -> tuple[array[int], array[int], bytes, int]:
        start, raw = self._find("__jump_table")
        size = 8 + self.arch.word
        sites = (word for (word,) in struct.iter_unpack(f"<i{size - 4}x", raw))
        places = array("Q", [start + size * i + site for i, site in enumerate(sites)])
        order = array("I", sorted(range(len(places)), key=places.__getitem__))
        return array("Q", [places[i] for i in order]), order, raw, start

    def static_keys(self, start: int, end: int) -> list[StaticKey]:
        """Return jump label sites in the range; each key's initial state is read from its own memory.

        Keys that were made read-only after boot are left out: they can change no more, so the code is as good as any
        other, and a module loader that wants to note a new site in such a key faults.
        """
        places, order, raw, table = self._keys
        word = self.arch.word
        entry = struct.Struct("<iiq" if word == 8 else "<iii")
        found = []
        for i in range(bisect_left(places, start), bisect_left(places, end)):
            at = entry.size * order[i]
            _code, target, key = entry.unpack_from(raw, at)
            address = table + at + 8 + (key & ~3)
            if self.read_only(address):
                continue
            initially = self.read(address + word, 1)[0] & 1
            branch = key & 1
            found.append(StaticKey(places[i], table + at + 4 + target, address, bool(branch), bool(initially ^ branch)))
        return found

    @cached_property
    def _bugs(self) -> _Sorted[Bug]:
        start, raw = self._find("__bug_table")
        if not self.arch.bugs_relative:
            return _Sorted(Bug(*entry) for entry in struct.iter_unpack("<IIHH", raw[: len(raw) // 12 * 12]))
        for size in self._bug_sizes():
            found = []
            words = size // 4 - 1
            for at in range(0, len(raw) // size * size, size):
                # struct bug_entry: where, what to print if this kernel has that, file, line, flags.
                *near, line, flags = struct.unpack_from(f"<{words}iHH", raw, at)
                where, *more = (start + at + 4 * i + word for i, word in enumerate(near))
                found.append(Bug(where, more[-1], line, flags, more[0] if words == 3 else 0))
            if all(self._has_code(bug.address) for bug in found):
                return _Sorted(found)
        raise ImageError("the bug table cannot be read: its entries have a size that is not known")

    def bugs(self, start: int, end: int) -> list[Bug]:
        """Return bug table entries in the range."""
        return self._bugs.within(start, end)

    @cached_property
    def _calls(self) -> _Sorted[StaticCall]:
        start, raw = self._find(".static_call_sites")
        # The flags are in the key's address and not in its distance: a module's entries may lie anywhere.
        places = ((start + at, start + at + 4) for at in range(0, len(raw), 8))
        found = [
            (site + code, place + key)
            for (site, place), (code, key) in zip(places, struct.iter_unpack("<ii", raw), strict=True)
        ]
        return _Sorted(StaticCall(site, key & ~3, bool(key & 1)) for site, key in found)

    def static_calls(self, start: int, end: int) -> list[StaticCall]:
        """Return static call sites in the range."""
        return self._calls.within(start, end)
