"""The running kernel's image, read only: symbols, bytes, and the tables that point into its code."""

from __future__ import annotations

import os
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from dynamos_ng import cache, kprobes, vmlinuz
from dynamos_ng.arch import DIRECT, known
from dynamos_ng.code_tables import BUG_SIZES, CodeTables, Index
from dynamos_ng.errors import ImageError, Refusal
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.memory import Kcore, Restored, Source
from dynamos_ng.rewrite.kernel import Symbol
from dynamos_ng.vmlinuz import Vmlinux

BLACKLIST = Path("/sys/kernel/debug/kprobes/blacklist")

#: Areas that must not be redirected, by the symbols around them. Code there runs before or after the kernel's
#: per-CPU and RCU state is usable.
_AREAS = (
    ("__noinstr_text_start", "__noinstr_text_end", "noinstr code"),
    ("__entry_text_start", "__entry_text_end", "entry code"),
    ("__kprobes_text_start", "__kprobes_text_end", "code of the kprobes themselves"),
    ("__static_call_text_start", "__static_call_text_end", "a static call trampoline"),
    ("__indirect_thunk_start", "__indirect_thunk_end", "an indirect branch thunk"),
)

#: The symbols around each table, by the section that it comes of.
_BOUNDS = {
    "__ex_table": ("__start___ex_table", "__stop___ex_table"),
    "__jump_table": ("__start___jump_table", "__stop___jump_table"),
    "__bug_table": ("__start___bug_table", "__stop___bug_table"),
    ".static_call_sites": ("__start_static_call_sites", "__stop_static_call_sites"),
    ".orc_unwind_ip": ("__start_orc_unwind_ip", "__stop_orc_unwind_ip"),
    ".smp_locks": ("__smp_locks", "__smp_locks_end"),
}
#: What no section of a vmlinux tells: its name for people, and a function that is there if the table is.
_UNTOLD = {
    "__jump_table": ("jump table", "static_key_slow_inc"),
    ".static_call_sites": ("static calls", "static_call_text_reserved"),
    ".orc_unwind_ip": ("unwind table", "orc_sort_cmp"),
}

#: The prefix, a segment's, that stands for a lock on one CPU.
BARE = b"\x3e"
PARKED = "it runs on CPUs that wait while trampolines are written"


def saved(
    image: Path, kallsyms: Path | None = None, blacklist: Path | None = None, vmlinux: Path | None = None
) -> Kernel:
    """Return a saved kernel: a folder (image.elf, kallsyms, blacklist, vmlinuz), or an image with its kallsyms.

    The image is a vmlinux, a vmlinuz or a copy of /proc/kcore. Without a blacklist none is known; VMLINUX is wanted
    where kallsyms lists no data symbols and IMAGE has no sections. ImageError for files that do not serve.
    """
    if image.is_dir():
        folder, image = image, image / "image.elf"
        kallsyms, vmlinux = kallsyms or folder / "kallsyms", vmlinux or folder / "vmlinuz"
        blacklist = blacklist or folder / "blacklist"
    if kallsyms is None:
        raise ImageError(f"{image}: a saved image needs its kallsyms too, saved by root: --kallsyms FILE")
    try:
        texts = [path.read_text() if path else "" for path in (kallsyms, blacklist)]
    except (OSError, UnicodeDecodeError) as error:
        raise ImageError(f"the saved image's files cannot be read: {error}") from None
    opened = Vmlinux(image)
    return Kernel(Symbols(texts[0]), opened.elf, texts[1], lambda: Vmlinux(vmlinux) if vmlinux else opened)


class Kernel(CodeTables):
    """A kernel's code and tables, as the rewriter's `Kernel` protocol wants them."""

    def __init__(
        self,
        symbols: Symbols,
        source: Source,
        blacklist: str = "",
        vmlinux: Callable[[], Vmlinux] | None = None,
        probes: Sequence[int] = (),
    ) -> None:
        """Take VMLINUX, which is asked for if kallsyms does not list data symbols, to find the kernel's tables.

        PROBES tells in order where kprobes have changed the code.
        """
        self.symbols = symbols
        self._source = source
        self._containing: dict[int, Symbol | None] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        self._open_vmlinux = vmlinux
        self._blacklist_text = blacklist
        self._probes = probes
        arch = known.by_word(symbols.word)
        if arch is None:
            raise ImageError(f"kallsyms: addresses of {symbols.word} bytes: no architecture that is known")
        self.arch = arch
        self.user = False

    @classmethod
    def live(cls, were: Mapping[int, bytes] | None = None) -> Kernel:
        """Return the running kernel; ImageError without root or without /proc/kcore.

        WERE has bytes of the originals, by address, where trampolines stand now.
        """
        try:
            blacklist, listing = BLACKLIST.read_text(), kprobes.LIST.read_text()
        except OSError as error:
            raise ImageError(
                f"{error.filename}: {error.strerror}: the lists of functions that must not be probed, and of probes, "
                "are needed; run as root and mount debugfs: mount -t debugfs debugfs /sys/kernel/debug"
            ) from None
        image = vmlinuz.of_release(os.uname().release)
        probes = kprobes.written_over(listing)
        source = Restored(Kcore(), were or {})
        return cls(Symbols.live(), source, blacklist, lambda: Vmlinux(image, cache.FOLDER), probes)

    @classmethod
    def saved(cls, kallsyms: Path, source: Source, blacklist: Path | None = None, image: Path | None = None) -> Kernel:
        """Return a kernel whose kallsyms text was saved to a file; IMAGE is its vmlinux or vmlinuz, if one is
        needed."""
        vmlinux = (lambda: Vmlinux(image)) if image else None
        return cls(Symbols(kallsyms.read_text()), source, blacklist.read_text() if blacklist else "", vmlinux)

    # symbols

    def function(self, name: str, position: int | None = None, module: str = "") -> Symbol:
        """Return the function of that name, the kernel's own or a module's.

        POSITION counts from 1 in kallsyms' order where a name is ambiguous.
        """
        found = [symbol for symbol in self.symbols.find(name, module) if symbol.type in "tTwW"]
        if not found and not module and (owners := self.symbols.in_modules(name)):
            remedy = f"name it in update.toml: module = \"{owners[0]}\""
            raise Refusal(name, f"it belongs to module {' and '.join(owners)}", remedy=remedy, kind="of a module")
        if not found:
            where = f"module {module}" if module else "/proc/kallsyms"
            raise Refusal(name, f"no such function in {where}", remedy=self._similar(name))
        if position is None:
            if len(found) > 1:
                where = ", ".join(f"{i} = {symbol.address:#x}" for i, symbol in enumerate(found, 1))
                raise Refusal(name, f"{len(found)} functions have this name", remedy=f"give a position: {where}")
            position = 1
        if not 1 <= position <= len(found):
            raise Refusal(name, f"there is no position {position}", remedy=f"positions go from 1 to {len(found)}")
        address = found[position - 1].address
        return Symbol(name, address, self.symbols.after(address) - address, module)

    def function_names(self) -> list[str]:
        """Return the names of all symbols in the kernel's text, in order of address; cold parts are left
        out."""
        return [
            symbol.name for symbol in self.symbols.code() if self.in_text(symbol.address) and ".cold" not in symbol.name
        ]

    def _similar(self, name: str) -> str:
        found = self.symbols.like(name)
        return "similar: " + ", ".join(found[:5]) if found else "it may be inlined everywhere"

    def containing(self, address: int) -> Symbol | None:
        """Return the symbol that ADDRESS lies in, preferring code symbols among aliases."""
        if address not in self._containing:
            found, end = self.symbols.around(address)
            best = next((symbol for symbol in found if symbol.type in "tTwW"), found[0] if found else None)
            self._containing[address] = best and Symbol(best.name, best.address, end - best.address, best.module)
        return self._containing[address]

    def names(self, address: int) -> tuple[str, ...]:
        """Return all symbols that stand exactly at ADDRESS."""
        if address not in self._names:
            self._names[address] = tuple(symbol.name for symbol in self.symbols.at(address))
        return self._names[address]

    def _address(self, name: str) -> int:
        address = self.symbols.address(name)
        if address is None:
            raise ImageError(f"kallsyms: no symbol {name}")
        return address

    def _between(self, first: str, last: str) -> list[tuple[int, int]]:
        """Return the area between two symbols, none if the kernel has not both."""
        start, end = self.symbols.address(first), self.symbols.address(last)
        return [] if start is None or end is None else [(start, end)]

    @cached_property
    def _text(self) -> tuple[int, int]:
        return self._address("_stext"), self._address("_etext")

    def in_text(self, address: int) -> bool:
        """Return whether ADDRESS lies in the kernel's own text (not in freed init code, not in a module)."""
        start, end = self._text
        return start <= address < end

    @cached_property
    def _forbidden(self) -> list[tuple[int, int, int, str]]:
        """Return the areas in order: start, end, the highest end up to this one, why."""
        areas = [(*area, words) for first, last, words in _AREAS for area in self._between(first, last)]
        for line in self._blacklist_text.splitlines():
            bounds = line.split("\t")[0].split("-")
            areas.append((int(bounds[0], 16), int(bounds[1], 16), "on the kernel's list of code not to be probed"))
        areas.sort()
        reach = accumulate((end for _, end, _ in areas), max)
        return [(start, end, far, words) for (start, end, words), far in zip(areas, reach, strict=True)]

    def forbidden(self, start: int, end: int) -> str:
        """Return why code in the range must not be redirected, or ""."""
        if not self.in_text(start):
            return "not in the kernel's text (init code is freed after boot)"
        return self.listed(start, end) or (PARKED if start in self._parked else "")

    def listed(self, start: int, end: int) -> str:
        """Return in which forbidden area code in the range lies, or ""; modules have such areas too."""
        found = ""
        for at in range(bisect_left(self._forbidden, (end,)) - 1, -1, -1):
            _low, high, reach, words = self._forbidden[at]
            if reach <= start:
                break
            if start < high:
                found = words
        return found

    def probes(self, start: int, end: int) -> list[int]:
        """Return where in the range a kprobe has written over the code; none are known of a saved kernel."""
        return list(self._probes[bisect_left(self._probes, start) : bisect_left(self._probes, end)])

    @cached_property
    def _parked(self) -> frozenset[int]:
        """Return what stop_machine's waiting loop calls: other CPUs run it while a trampoline is written."""
        loop = self.symbols.address("multi_cpu_stop")
        found = {loop} if loop is not None else set()
        new = set(found)
        for _ in range(3):
            new = {target for address in new for target in self._callees(address)} - found
            found |= new
        return frozenset(found)

    def _callees(self, address: int) -> list[int]:
        """Return the functions that the one at ADDRESS calls or jumps to directly."""
        end = self.symbols.after(address)
        decoded, _covered = self.arch.decode(self.read(address, end - address), address)
        targets = [i.target for i in decoded if i.kind in DIRECT and i.target is not None]
        return [target for target in targets if self.symbols.at(target)]

    # bytes

    def read(self, address: int, size: int) -> bytes:
        """Return SIZE bytes at ADDRESS."""
        return self._source.read(address, size)

    def return_thunks(self) -> frozenset[int]:
        """Return where a jump counts as a return: the thunks in the kernel's text, and the one it chose."""
        return self._return_thunks

    @cached_property
    def _return_thunks(self) -> frozenset[int]:
        if not self.arch.return_thunks:
            return frozenset()
        found: set[int] = set()
        for name in self.symbols.like("return_thunk"):
            if name.endswith("return_thunk"):
                found.update(symbol.address for symbol in self.symbols.find(name))
        return frozenset(address for address in found if self.in_text(address)).union(self._chosen_thunk)

    @cached_property
    def _chosen_thunk(self) -> list[int]:
        """Return the thunk that returns take since boot; [] for a kernel that has no choice."""
        chosen = self.symbols.address("x86_return_thunk")
        return [] if chosen is None else [int.from_bytes(self.read(chosen, self.arch.word), "little")]

    def branch_pads(self) -> dict[str, int]:
        """Return by register what an indirect branch must go through; {} where its place does not matter."""
        return self._branch_pads

    @cached_property
    def _branch_pads(self) -> dict[str, int]:
        """Return the pads against Indirect Target Selection, if returns show that the kernel defends itself."""
        if not any("its_return_thunk" in self.names(chosen) for chosen in self._chosen_thunk):
            return {}
        prefix = "__x86_indirect_its_thunk_"
        named = {name: self.symbols.address(name) for name in self.symbols.like(prefix)}
        return {name.removeprefix(prefix): place for name, place in named.items() if place and name.startswith(prefix)}

    # tables

    @cached_property
    def _vmlinux(self) -> tuple[Vmlinux, int] | None:
        """Return the kernel's vmlinux and how far from its addresses the kernel runs; None if kallsyms tells
        all."""
        if self.symbols.address("__start___ex_table") is not None:
            return None
        if self._open_vmlinux is None:
            raise ImageError("kallsyms lists no data symbols: the kernel's vmlinux or vmlinuz is needed for its tables")
        vmlinux = self._open_vmlinux()
        moved = self._address("_stext") - vmlinux.text
        vmlinux.check(self._source, moved)
        return vmlinux, moved

    def _find(self, section: str) -> tuple[int, bytes]:
        """Return address and bytes of a table: it lies between two symbols, or where a vmlinux says."""
        if self._vmlinux is None:
            first, last = (self.symbols.address(bound) for bound in _BOUNDS[section])
            if first is None or last is None:
                return 0, b""
            return first, self.read(first, last - first)
        vmlinux, moved = self._vmlinux
        if section == "__jump_table":
            address, size = vmlinux.jump_table(self.arch)
        else:
            address, size = (0, 0) if section in _UNTOLD else vmlinux.section(section)
        what, function = _UNTOLD.get(section, ("", ""))
        if not size and what and self.symbols.address(function) is not None:
            raise ImageError(f"{vmlinux.path}: its {what} cannot be found, and kallsyms lists no data symbols")
        return address + moved, self.read(address + moved, size) if size else b""

    @cached_property
    def _orc_entries(self) -> int | None:
        return self.symbols.address("__start_orc_unwind")

    def _bug_sizes(self) -> Iterable[int]:
        """Return what the size of an entry can be, with all of its code in the kernel."""
        return BUG_SIZES

    def _has_code(self, index: Index) -> bool:
        """Return whether all entries are about code, init code too."""
        return sum(len(index.within(*area)) for area in self._code) == len(index)

    @cached_property
    def _code(self) -> list[tuple[int, int]]:
        return [self._text, *self._between("__init_begin", "__init_end")]

    def read_only(self, address: int) -> bool:
        """Return whether the data at ADDRESS became read-only when the kernel had booted."""
        return self._fixed[0] <= address < self._fixed[1]

    @cached_property
    def _fixed(self) -> tuple[int, int]:
        """Return where the data lie that are read-only once the kernel has booted."""
        if self._vmlinux is not None:
            vmlinux, moved = self._vmlinux
            start, size = vmlinux.section(".rodata")
            return start + moved, start + moved + size
        return self._address("__start_ro_after_init"), self._address("__end_ro_after_init")

    @cached_property
    def _bare(self) -> array[int]:
        if self._vmlinux is not None:
            return self._bare_by_bytes(*self._vmlinux)
        flag = self.symbols.address("uniproc_patched")
        # Where no other CPU can come, locks stay off, and the list of them has been freed.
        if flag is None or not self.read(flag, 1)[0] or self._one_cpu_for_ever:
            return array("Q")
        start, raw = self._find(".smp_locks")
        return array("Q", sorted(start + 4 * i + word for i, word in enumerate(array("i", raw))))

    @cached_property
    def _one_cpu_for_ever(self) -> bool:
        possible = self.symbols.address("__cpu_possible_mask")
        return possible is not None and int.from_bytes(self.read(possible, 8), "little").bit_count() == 1

    def _bare_by_bytes(self, vmlinux: Vmlinux, moved: int) -> array[int]:
        """Return the places of lock prefixes that now hold another; the kernel frees its own list of them."""
        start, size = vmlinux.section(".smp_locks")
        first, last = self._text
        code = self.read(first, last - first)
        places = (start + moved + 4 * i + word for i, word in enumerate(array("i", vmlinux.elf.read(start, size))))
        return array("Q", sorted(place for place in places if self.in_text(place) and code[place - first] == BARE[0]))

    def bare_locks(self, start: int, end: int) -> list[int]:
        """Return lock prefixes in the range that the kernel has switched off while it runs on one CPU."""
        return list(self._bare[bisect_left(self._bare, start) : bisect_left(self._bare, end)])
