"""The kernel's symbols, from /proc/kallsyms or a saved copy of it."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from dynamos_ng.errors import ImageError

KALLSYMS = Path("/proc/kallsyms")


class Named(NamedTuple):
    """A line of kallsyms."""

    name: str
    address: int
    type: str
    module: str


class Symbols:
    """The symbols of a kallsyms text."""

    def __init__(self, text: str) -> None:
        self._text = text if text.endswith("\n") else text + "\n"
        lines = self._text.split("\n")
        lines.pop()
        digits = len(lines[0].partition(" ")[0]) if lines else 0
        if digits not in (8, 16):
            raise ImageError("kallsyms: no symbols of a kernel")
        #: Bytes of an address.
        self.word = digits // 2
        self._digits = digits
        padding = "0" * (16 - digits)
        raw = bytes.fromhex("".join([padding + line[:digits] for line in lines]))
        addresses = array("Q", raw)
        addresses.byteswap()
        if not any(addresses):
            raise ImageError("kallsyms: all addresses are zero: run as root (see kernel.kptr_restrict)")
        order = sorted(range(len(lines)), key=addresses.__getitem__)
        self._lines = lines
        self._order = order
        self._sorted = array("Q", sorted(addresses))

    @classmethod
    def live(cls) -> Symbols:
        """Return the running kernel's symbols."""
        try:
            return cls(KALLSYMS.read_text())
        except OSError as error:
            raise ImageError(f"{KALLSYMS}: {error.strerror}") from None

    def __len__(self) -> int:
        return len(self._lines)

    def _named(self, line: str) -> Named:
        address, kind, rest = line.split(" ", 2)
        name, _, module = rest.partition("\t")
        return Named(name, int(address, 16), kind, module[1:-1])

    @cached_property
    def _hashes(self) -> bytes:
        """Return a word for each line's name: a kernel has a quarter of a million, and a dict of them is large."""
        names = self._digits + 3
        return array("q", [hash(line[names:]) for line in self._lines]).tobytes()

    def find(self, name: str, module: str = "") -> list[Named]:
        """Return the symbols of that name in the kernel proper or in a module, in kallsyms' order."""
        wanted = f"{name}\t[{module}]" if module else name
        word = array("q", [hash(wanted)]).tobytes()
        found = []
        at = self._hashes.find(word)
        while at >= 0:
            if not at % 8 and self._lines[at // 8][self._digits + 3 :] == wanted:
                found.append(self._named(self._lines[at // 8]))
            at = self._hashes.find(word, at + 1)
        return found

    def in_modules(self, name: str) -> list[str]:
        """Return the loaded modules that have a symbol of that name."""
        pattern = rf"^[0-9a-f]{{8,16}} . {re.escape(name)}\t\[(.*)\]$"
        return sorted(set(re.findall(pattern, self._text, re.MULTILINE)))

    def like(self, part: str) -> list[str]:
        """Return the names of code symbols that contain PART, shortest first."""
        kind = self._digits + 1
        named = (self._named(line).name for line in self._lines if part in line and line[kind] in "tTwW")
        return sorted({name for name in named if part in name}, key=lambda name: (len(name), name))

    def address(self, name: str) -> int | None:
        """Return the address of a symbol of the kernel proper that exists once, else None."""
        found = self.find(name)
        return found[0].address if len(found) == 1 else None

    def at(self, address: int) -> list[Named]:
        """Return the symbols that stand exactly at ADDRESS."""
        low, high = bisect_left(self._sorted, address), bisect_right(self._sorted, address)
        return [self._named(self._lines[self._order[i]]) for i in range(low, high)]

    def around(self, address: int) -> tuple[list[Named], int]:
        """Return the symbols at the highest address not above ADDRESS, and the next higher symbol address."""
        after = bisect_right(self._sorted, address)
        if not after or after == len(self._sorted):
            return [], 0
        return self.at(self._sorted[after - 1]), self._sorted[after]

    def after(self, address: int) -> int:
        """Return the next higher symbol address; 0 if there is none."""
        after = bisect_right(self._sorted, address)
        return self._sorted[after] if after < len(self._sorted) else 0

    def label(self, address: int) -> str:
        """Return an address as symbol and offset, with the module's name, as the kernel's own traces write it."""
        found, _ = self.around(address)
        if not found:
            return f"{address:#x}"
        named = found[0]
        return f"{named.name}+{address - named.address:#x}" + (f" [{named.module}]" if named.module else "")

    def code(self) -> list[Named]:
        """Return all symbols of code type in the kernel proper, in order of address."""
        return [
            self._named(line)
            for line in (self._lines[i] for i in self._order)
            if line[self._digits + 1] in "tTwW" and "\t" not in line
        ]
