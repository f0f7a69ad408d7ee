"""A loaded module's image, read only: its functions, and the tables that point into its code.

dynamos.ko tells where code and tables lie, for struct module says so and nothing else does for certain: sections have
no sizes in sysfs, and the file that the module came from may be another one by now.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from dynamos_ng.code_tables import CodeTables, Index
from dynamos_ng.errors import ImageError
from dynamos_ng.image import BARE, Kernel
from dynamos_ng.model import Module
from dynamos_ng.rewrite.kernel import Symbol

SECTIONS = Path("/sys/module")
#: What names of static call trampolines begin with: one jump each, which the kernel writes.
_STATIC_CALL = "__SCT__"


class ModuleImage(CodeTables):
    """A module's code and tables, as the rewriter's `Kernel` protocol wants them."""

    def __init__(self, kernel: Kernel, module: Module, used: Iterable[str] = ()) -> None:
        """Take the names of the modules that MODULE uses symbols of: it may branch there, as into the kernel."""
        self.arch = kernel.arch
        self.user = False
        self.module = module
        self._kernel = kernel
        self._linked = frozenset((module.name, *used))

    def read(self, address: int, size: int) -> bytes:
        """Return SIZE bytes at ADDRESS."""
        return self._kernel.read(address, size)

    # symbols

    def function(self, name: str, position: int | None = None) -> Symbol:
        """Return the module's function of that name, the POSITIONth from 1 where there are several."""
        return self._kernel.function(name, position, self.module.name)

    def containing(self, address: int) -> Symbol | None:
        """Return the symbol that ADDRESS lies in; the last one of the module's code ends with it."""
        found = self._kernel.containing(address)
        text = self.module.text
        if found is None or found.address not in text or found.end <= text.end:
            return found
        return replace(found, size=text.end - found.address)

    def names(self, address: int) -> tuple[str, ...]:
        """Return all symbols that stand exactly at ADDRESS."""
        return self._kernel.names(address)

    def in_text(self, address: int) -> bool:
        """Return whether ADDRESS lies in the kernel's text, the module's, or that of a module which it uses."""
        if self._kernel.in_text(address) or address in self.module.text:
            return True
        found = self._kernel.containing(address)
        return found is not None and found.module in self._linked

    def forbidden(self, start: int, end: int) -> str:
        """Return why code in the range must not be redirected, or ""."""
        if start not in self.module.text:
            return f"not in the code of module {self.module.name} (init code is freed when it has run)"
        if any(name.startswith(_STATIC_CALL) for name in self.names(start)):
            return "a static call trampoline"
        return self._kernel.listed(start, end)

    def probes(self, start: int, end: int) -> list[int]:
        """Return where in the range a kprobe has written over the code."""
        return self._kernel.probes(start, end)

    # code

    def return_thunks(self) -> frozenset[int]:
        """Return where a jump counts as a return."""
        return self._kernel.return_thunks()

    def branch_pads(self) -> Mapping[str, int]:
        """Return by register what an indirect branch must go through; {} where its place does not matter."""
        return self._kernel.branch_pads()

    # tables

    def _find(self, section: str) -> tuple[int, bytes]:
        area = {
            "__ex_table": self.module.fixups,
            "__jump_table": self.module.keys,
            "__bug_table": self.module.bugs,
            ".static_call_sites": self.module.static_calls,
            ".orc_unwind_ip": self.module.orc_ips,
        }[section]
        return area.start, self.read(area.start, area.size) if area.size else b""

    @property
    def _orc_entries(self) -> int | None:
        return self.module.orc.start if self.module.orc.size else None

    def _bug_sizes(self) -> Iterable[int]:
        return (self.module.bug_size,)

    def _has_code(self, _index: Index) -> bool:
        return True  # the size is known; and where its init code was nothing tells any more

    def read_only(self, address: int) -> bool:
        """Return whether the data at ADDRESS became read-only when the kernel or the module was set up."""
        return address in self.module.ro_after_init or self._kernel.read_only(address)

    @cached_property
    def _bare(self) -> array[int]:
        """Return the places of lock prefixes that now hold another; struct module does not tell where the list is."""
        start, end = _section(self.module.name, ".smp_locks")
        if start == end:
            return array("Q")
        words = array("i", self.read(start, (end - start) // 4 * 4))
        places = (start + 4 * i + word for i, word in enumerate(words))
        mine = (place for place in places if place in self.module.text)
        return array("Q", sorted(place for place in mine if self.read(place, 1) == BARE))

    def bare_locks(self, start: int, end: int) -> list[int]:
        """Return lock prefixes in the range that the kernel has switched off while it runs on one CPU."""
        return list(self._bare[bisect_left(self._bare, start) : bisect_left(self._bare, end)])


def _section(module: str, name: str) -> tuple[int, int]:
    """Return where a section begins and where the next one does; the same where there is none of that name.

    What stands between them is the section, and no more than what aligns the next one.
    """
    folder = SECTIONS / module / "sections"
    try:
        places = {path.name: int(path.read_text(), 16) for path in folder.iterdir()}
    except (OSError, ValueError) as error:
        raise ImageError(f"{folder}: {error}: root is needed to see where a module's sections are") from None
    if name not in places:
        return 0, 0
    start = places[name]
    return start, min((place for place in places.values() if place > start), default=start)
