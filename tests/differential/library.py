"""A stripped shared library as the rewriter's `Kernel`, and the image that redirects all of it in a live process.

Functions and their extents come from the unwind table (.eh_frame_hdr) and the dynamic symbols. The library's address
is known to the process alone, so the image leaves it open: it is relocated by sources/agent.c.
"""

from __future__ import annotations

import re
import struct
import subprocess
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from elftools.elf.elffile import ELFFile
from user_code import UserCode

from dynamos_ng.arch import DIRECT, Arch, Kind, known
from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite import Constants, Original, Redirect, elf, examine, generate
from dynamos_ng.rewrite.kernel import Symbol

HERE = Path(__file__).parent
#: Where a library is thought to lie: numbers that its code holds for no other reason.
BASES = {4: 0x5A000000, 8: 0x5A5A5A000000}
#: In the area that stands for a CPU's own memory: pointer to the task, its process's number, first use counter.
CURRENT, TGID, TASK, USE = 0x40, 0x24, 0x100, 0x400
_PAGE = 4096
_PLT = (".plt", ".plt.got", ".plt.sec", ".iplt")
_PADDING = (Kind.NOP, Kind.BREAKPOINT)


@dataclass(frozen=True)
class _Extent:
    start: int
    end: int

    def __contains__(self, address: int) -> bool:
        return self.start <= address < self.end


def section(unit: ELFFile, name: str) -> Any:
    found = unit.get_section_by_name(name)
    assert found is not None, f"no {name}"
    return found


class Library(UserCode):
    """A library's code at an assumed address."""

    user = True

    def __init__(self, path: Path) -> None:
        self.name = path.name
        with path.open("rb") as file:
            unit = ELFFile(file)
            arch = known.by_word(unit.elfclass // 8)
            assert arch is not None
            self.arch: Arch = arch
            self.base = BASES[arch.word]
            loads = [segment for segment in unit.iter_segments() if segment["p_type"] == "PT_LOAD"]
            self._memory = bytearray(max(load["p_vaddr"] + load["p_memsz"] for load in loads))
            for load in loads:
                self._memory[load["p_vaddr"] : load["p_vaddr"] + load["p_filesz"]] = load.data()
            code = [section for section in unit.iter_sections() if section["sh_flags"] & elf.EXECUTE]
            self._plt = [self._extent(section) for section in code if section.name in _PLT]
            self._text = [self._extent(s) for s in code if s.name not in (*_PLT, ".init", ".fini")]
            names: dict[int, list[tuple[str, int]]] = {}
            for symbol in section(unit, ".dynsym").iter_symbols():
                if symbol["st_info"]["type"] in ("STT_FUNC", "STT_LOOS") and symbol["st_value"]:
                    names.setdefault(symbol["st_value"] + self.base, []).append((symbol.name, symbol["st_size"]))
            table = section(unit, ".eh_frame_hdr")["sh_addr"]
        self._lay_out(dict(self._unwound(table)), names)
        self._find_branches()

    def _extent(self, section: Any) -> _Extent:
        start = self.base + section["sh_addr"]
        return _Extent(start, start + section["sh_size"])

    def _unwound(self, table: int) -> Iterator[tuple[int, int]]:
        """Yield start and size of what the unwind table covers; its pointers are signed, relative, 4 bytes."""
        version, eh_frame, count_form, form = self._memory[table : table + 4]
        assert (version, eh_frame, count_form, form) == (1, 0x1B, 0x03, 0x3B)
        (count,) = struct.unpack_from("<I", self._memory, table + 8)
        for start, entry in struct.iter_unpack("<ii", self._memory[table + 12 : table + 12 + 8 * count]):
            (size,) = struct.unpack_from("<I", self._memory, table + entry + 12)
            yield self.base + table + start, size

    def _lay_out(self, sizes: dict[int, int], names: dict[int, list[tuple[str, int]]]) -> None:
        """Find the functions: what is unwound, and exported code that is not; padding belongs to what it follows."""
        starts = sorted(sizes)
        for address, found in names.items():
            at = bisect_right(starts, address) - 1
            if at < 0 or address >= starts[at] + sizes[starts[at]]:
                sizes[address] = max(size for _name, size in found)
        sizes = {start: size for start, size in sizes.items() if size and any(start in part for part in self._text)}
        uses = Counter(name for found in names.values() for name, _size in found)
        self.symbols: dict[int, Symbol] = {}
        self._names: dict[int, tuple[str, ...]] = {}
        starts = sorted(sizes)
        for start, following in zip(starts, [*starts[1:], self._text[-1].end], strict=True):
            size = min(sizes[start], following - start)
            end = start + size
            if end < following < end + 64 and self._is_padding(end, following):
                size = following - start
            known_as = tuple(
                name if uses[name] == 1 else f"{name}_{start - self.base:x}" for name, _size in names.get(start, ())
            ) or (f"sub_{start - self.base:x}",)
            self._names[start] = known_as
            self.symbols[start] = Symbol(known_as[0], start, size)
        self._starts = starts

    def _is_padding(self, start: int, end: int) -> bool:
        instructions, covered = self.arch.decode(self.read(start, end - start), start)
        return covered == end - start and all(instruction.kind in _PADDING for instruction in instructions)

    def _find_branches(self) -> None:
        """Find who branches where, and with it functions that are called and nothing else, and cold parts."""
        self._entered: dict[int, set[int]] = {}
        self._called: set[int] = set()
        self._pointed: set[int] = set()
        for start in self._starts:
            self._follow(start, self.symbols[start].end)
        for start, end in list(self._gaps()):
            before: list[int] = []
            while (called := sorted(target for target in self._called if start <= target < end)) != before:
                for target, following in pairwise((*called, end)):
                    self._follow(target, following)
                before = called
            for target, following in pairwise((*called, end)):
                self._names[target] = (f"sub_{target - self.base:x}",)
                self.symbols[target] = Symbol(self._names[target][0], target, following - target)
        self._starts = sorted(self.symbols)
        for start, end in list(self._gaps()):
            self._follow(start, end, known=False)
        self._find_cold()

    def _gaps(self) -> Iterator[tuple[int, int]]:
        for part in self._text:
            inside = [start for start in self._starts if start in part]
            ends = [part.start, *(self.symbols[start].end for start in inside)]
            yield from (gap for gap in zip(ends, [*inside, part.end], strict=True) if gap[0] < gap[1])

    def _follow(self, start: int, end: int, known: bool = True) -> None:
        """Note where code leads; what is not KNOWN for code may be data, which calls nothing."""
        for instruction in self.arch.decode(self.read(start, end - start), start)[0]:
            target = instruction.target
            if target is None or start < target < end or not self.in_text(target):
                continue
            if instruction.kind in DIRECT and instruction.kind is not Kind.CALL:
                self._entered.setdefault(target, set()).add(start)
            elif known:
                (self._called if instruction.kind is Kind.CALL else self._pointed).add(target)

    def _find_cold(self) -> None:
        """Name the parts that one function branches into, that branch back into it, and that nobody calls."""
        branchers: dict[int, set[int]] = {}
        for target, sources in self._entered.items():
            if part := self._function_at(target):
                branchers.setdefault(part.address, set()).update(sources - {part.address})
        self.cold: set[int] = set()
        for start, sources in branchers.items():
            main = self.symbols.get(min(sources, default=0))
            if len(sources) > 1 or main is None or start in self._called | self._pointed or main.address in self.cold:
                continue
            back = any(main.address < target < main.end and start in by for target, by in self._entered.items())
            if back and self._names[start][0].startswith("sub_"):
                self.cold.add(start)
                self._names[start] = (f"{main.name}.cold",)
                self.symbols[start] = Symbol(f"{main.name}.cold", start, self.symbols[start].size)

    def _function_at(self, address: int) -> Symbol | None:
        at = bisect_right(self._starts, address) - 1
        if at < 0:
            return None
        symbol = self.symbols[self._starts[at]]
        return symbol if address < symbol.end else None

    def functions(self) -> list[Symbol]:
        """Return the functions without their cold parts, in order of address."""
        return [self.symbols[start] for start in self._starts if start not in self.cold]

    @cached_property
    def _by_name(self) -> dict[str, Symbol]:
        return {name: self.symbols[start] for start, names in self._names.items() for name in names}

    def function(self, name: str, position: int | None = None) -> Symbol:
        return self._by_name[name]

    def read(self, address: int, size: int) -> bytes:
        return bytes(self._memory[address - self.base : address - self.base + size])

    def containing(self, address: int) -> Symbol | None:
        for part in self._plt:
            if address in part:
                slot = (address - part.start) // 8 * 8
                return Symbol(f"plt_{address:x}", part.start + slot, 8)
        return self._function_at(address)

    def names(self, address: int) -> tuple[str, ...]:
        return self._names.get(address, ())

    def in_text(self, address: int) -> bool:
        return any(address in part for part in self._text)

    def forbidden(self, start: int, end: int) -> str:
        if start in self.cold:
            return ""
        site = start + 4 if self.read(start, 4) in self.arch.endbr else start
        for target in range(site + 1, site + self.arch.trampoline):
            if self._entered.get(target):
                return "code elsewhere branches into the trampoline's bytes"
        return ""



@dataclass(frozen=True)
class Cloned:
    """What came of a library: its clones, each with its use counter's offset in the area; refusals by reason."""

    name: str
    functions: int
    uses: dict[str, int]
    refused: Counter[str]
    end: int


def clone(path: Path, folder: Path, first: int = USE, step: int = 1) -> Cloned:
    """Clone each STEPth function of a library that can be; write FOLDER/NAME.image. Use counters begin at FIRST."""
    library = Library(path)
    originals: list[Original] = []
    refused: Counter[str] = Counter()
    functions = library.functions()[::step]
    for symbol in functions:
        try:
            originals.append(examine(library, symbol))
        except Refusal as refusal:
            refused[refusal.kind] += 1
    redirects = [Redirect(original) for original in originals]
    uses = {redirect.stem: first + 16 * number for number, redirect in enumerate(redirects)}
    image = _Image(library, redirects, uses, folder)
    (folder / f"{path.name}.image").write_bytes(image.file())
    return Cloned(path.name, len(functions), uses, refused, first + 16 * len(uses))


class _Image:
    """An update's sections in memory: code, then data, at an address that is still open, as is the library's."""

    def __init__(self, library: Library, redirects: Sequence[Redirect], uses: dict[str, int], work: Path) -> None:
        self.library, self.redirects, self.uses = library, redirects, uses
        self.unit = self._assemble(work)
        self.arch = library.arch
        self.places: dict[int, int] = {}
        size = 0
        sections = [section for section in self.unit.sections if section.flags & elf.ALLOC]
        for group in (True, False):
            size = -(-size // _PAGE) * _PAGE
            for section in sections:
                if bool(section.flags & elf.EXECUTE) is group:
                    size = -(-size // section.align) * section.align
                    self.places[section.index] = size
                    size += section.size
            if group:
                self.code = -(-size // _PAGE) * _PAGE
        self.bytes = bytearray(size)
        for index, place in self.places.items():
            self.bytes[place : place + len(self.unit.sections[index].data)] = self.unit.sections[index].data
        self.symbols = {
            symbol.name: self.places[symbol.section] + symbol.value
            for symbol in self.unit.symbols
            if symbol.section in self.places and symbol.type != elf.SECTION
        }
        self.own: list[int] = []
        self.theirs: list[int] = []
        self.near: list[int] = []
        self.far: list[int] = []
        self._relocate()
        for redirect in redirects:
            self._put(self.symbols[f"{redirect.stem}_row"], self.symbols["zeros"], library.arch.word)
            self.own.append(self.symbols[f"{redirect.stem}_row"])
            self._put(self.symbols[f"{redirect.stem}_v1_use"], uses[redirect.stem], library.arch.word)
        for at in range(self.symbols["dynamos_directs"], self.symbols["dynamos_directs_end"], 2 * library.arch.word):
            # With one edition each there is nothing to choose: these are counters, whose place is known.
            field, slot = (self._get(at + i * library.arch.word) for i in range(2))
            self._put(field, self._get(field) + self._get(slot), library.arch.word)

    def _assemble(self, work: Path) -> elf.Elf:
        library = self.library
        # Subtracted, it stays a number: no relocation subtracts a symbol.
        pattern = re.compile(rf"(?<!- )0x({library.base >> 24:x}[0-9a-f]{{6}})\b")
        text = generate(self.redirects, [], Constants(CURRENT, TGID, return_thunk=""))
        text = pattern.sub(lambda found: f"(library+{int(found[1], 16) - library.base:#x})", text)
        text += f"\t.data\ndynamos_policy:\t{library.arch.pointer} zeros\nzeros:\t.zero 256\n"
        source, output = work / f"{library.name}.s", work / f"{library.name}.o"
        source.write_text(text)
        subprocess.run(["gcc", "-c", f"-m{8 * library.arch.word}", "-x", "assembler-with-cpp", "-DCC_USING_NOP_MCOUNT",
                        "-Wa,--fatal-warnings", "-o", str(output), str(source)], check=True)  # fmt: skip
        return elf.Elf(output.read_bytes(), output.name)

    def _relocate(self) -> None:
        for index, relocations in self.unit.relocations.items():
            for relocation in relocations:
                place = self.places[index] + relocation.offset
                symbol = relocation.symbol
                _name, width, near = self.arch.relocations[relocation.type]
                value = relocation.addend - (place if near else 0)
                if symbol.section in self.places:
                    value += self.places[symbol.section] + symbol.value
                    if not near and relocation.addend <= -self.library.base:
                        value += self.library.base
                        self.far.append(place)
                    elif not near:
                        self.own.append(place)
                else:
                    assert symbol.name == "library", symbol.name
                    (self.near if near else self.theirs).append(place)
                assert near or width == self.arch.word
                self._put(place, value, width)

    def _get(self, place: int) -> int:
        return int.from_bytes(self.bytes[place : place + self.arch.word], "little")

    def _put(self, place: int, value: int, width: int) -> None:
        self.bytes[place : place + width] = (value & (1 << 8 * width) - 1).to_bytes(width, "little")

    def file(self) -> bytes:
        """Return the image as the agent reads it."""
        base = self.library.base
        area = -(-max(self.uses.values(), default=USE) // _PAGE) * _PAGE + _PAGE
        lists = (self.own, self.theirs, self.near, self.far)
        header = struct.pack("<8Q", len(self.bytes), self.code, area, *map(len, lists), len(self.redirects))
        trampolines = b"".join(
            struct.pack("<QQ8s", entry.site - base, self.symbols[f"{redirect.stem}_handler"], entry.expected)
            for redirect in self.redirects
            for entry in [redirect.original.entry]
        )
        places = b"".join(struct.pack(f"<{len(places)}I", *places) for places in lists)
        return header + trampolines + places + bytes(self.bytes)


def headers() -> str:
    """Return where the kernel's headers for programs are; they serve both word sizes."""
    asked = subprocess.run(["gcc", "-print-multiarch"], capture_output=True, text=True, check=True)
    return f"/usr/include/{asked.stdout.strip()}"


def agent(folder: Path, bits: int) -> Path:
    """Compile the agent for programs of so many bits."""
    output = folder / "agent.so"
    subprocess.run(
        ["gcc", f"-m{bits}", "-shared", "-fPIC", "-nostdlib", "-O2", "-fno-stack-protector", "-fvisibility=hidden",
         "-isystem", headers(), f"-DCURRENT={CURRENT}", f"-DTGID={TGID}", f"-DTASK={TASK}",
         "-o", str(output), str(HERE / "sources/agent.c")], check=True)  # fmt: skip
    return output


def counted(file: Path, cloned: Cloned) -> dict[str, tuple[int, int, int, int]]:
    """Return entered and exited of each clone, at the first mark and at the last, from a file of the agent's."""
    raw = file.read_bytes()
    half = len(raw) // 2
    return {
        name: (*struct.unpack_from("<QQ", raw, offset), *struct.unpack_from("<QQ", raw, half + offset))
        for name, offset in cloned.uses.items()
    }
