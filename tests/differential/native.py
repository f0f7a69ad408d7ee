"""Runs kernel-like code in this process: a loader that relocates objects as the kernel's does, and redirects them.

Objects are loaded into the lowest 2 GiB, so that 32-bit sign-extended addresses (-mcmodel=kernel) are right; %gs
points to a little area that stands for a CPU's own memory. A mistake ends in a signal: run it in a child process.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from user_code import UserCode

from dynamos_ng.rewrite import Constants, Object, Redirect, elf, examine, generate
from dynamos_ng.rewrite.kernel import Symbol

CURRENT, TGID, TASK = 0x40, 0x24, 0x100
USE = 0x400
PROCESS = 7
_ARCH_SET_GS = 0x1001
_SYS_ARCH_PRCTL = 158
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]


def memory(size: int) -> int:
    """Return zeroed pages below 2 GiB that can be read, written and run."""
    address = _libc.mmap(None, size, 7, 0x62, -1, 0)  # MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT
    assert address and 0 < address < 1 << 31
    return int(address)


def word(address: int) -> int:
    return int(ctypes.c_uint64.from_address(address).value)


def put(address: int, value: int) -> None:
    ctypes.c_uint64.from_address(address).value = value


class Loaded:
    """A relocatable object in memory."""

    def __init__(self, path: Path, outside: Mapping[str, int]) -> None:
        self.elf = elf.Elf(path.read_bytes(), path.name)
        self.at: dict[int, int] = {}
        size = 0
        for section in self.elf.sections:
            if section.flags & elf.ALLOC:
                size = -(-size // section.align) * section.align
                self.at[section.index] = size
                size += section.size
        base = memory(size + 64)
        for index in self.at:
            self.at[index] += base
            section = self.elf.sections[index]
            ctypes.memmove(self.at[index], section.data, len(section.data))
        self.symbols = {
            symbol.name: self.at[symbol.section] + symbol.value
            for symbol in self.elf.symbols
            if symbol.section in self.at and symbol.name and symbol.type != elf.SECTION
        }
        for index, relocations in self.elf.relocations.items():
            for relocation in relocations:
                self._relocate(self.at[index] + relocation.offset, relocation, outside)

    def _relocate(self, place: int, relocation: elf.Relocation, outside: Mapping[str, int]) -> None:
        symbol = relocation.symbol
        if symbol.section in self.at:
            value = self.at[symbol.section] + symbol.value
        elif symbol.section == elf.ABSOLUTE or not symbol.name:
            value = symbol.value
        else:
            value = outside[symbol.name]
        name, width, near = self.elf.arch.relocations[relocation.type]
        value += relocation.addend - (place if near else 0)
        assert ctypes.string_at(place, width) == bytes(width), f"{name}: bytes are there already"
        signed = near or name.endswith("32S")
        if width == 4:
            assert (-(1 << 31) <= value < 1 << 31) if signed else (0 <= value < 1 << 32), f"{name}: out of reach"
        ctypes.memmove(place, (value & (1 << 8 * width) - 1).to_bytes(width, "little"), width)

    def section(self, name: str) -> tuple[int, int]:
        """Return address and size of a section."""
        found = next(section for section in self.elf.sections if section.name == name)
        return self.at[found.index], found.size


class Process(UserCode):
    """This process as the rewriter's `Kernel`: a loaded object's symbols and live bytes."""

    user = False

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self.arch = loaded.elf.arch
        self._functions = sorted(
            Symbol(s.name, loaded.at[s.section] + s.value, s.size).__dict__["address"]
            for s in loaded.elf.symbols
            if s.section in loaded.at and s.type == elf.FUNCTION
        )
        self._by_address: dict[int, list[str]] = {}
        self._sizes: dict[int, int] = {}
        for s in loaded.elf.symbols:
            if s.section in loaded.at and s.type == elf.FUNCTION:
                address = loaded.at[s.section] + s.value
                self._by_address.setdefault(address, []).append(s.name)
                self._sizes[address] = s.size

    def function(self, name: str, position: int | None = None) -> Symbol:
        address = self._loaded.symbols[name]
        return Symbol(name, address, self._sizes[address])

    def read(self, address: int, size: int) -> bytes:
        return ctypes.string_at(address, size)

    def containing(self, address: int) -> Symbol | None:
        below = [start for start in self._functions if start <= address]
        if not below or address >= below[-1] + self._sizes[below[-1]]:
            return None
        return Symbol(self._by_address[below[-1]][0], below[-1], self._sizes[below[-1]])

    def names(self, address: int) -> tuple[str, ...]:
        return tuple(self._by_address.get(address, ()))

    def in_text(self, address: int) -> bool:
        return self.containing(address) is not None

    def return_thunks(self) -> frozenset[int]:
        return frozenset(a for name, a in self._loaded.symbols.items() if name == "__x86_return_thunk")


def compile_c(source: Path, output: Path, *flags: str) -> Path:
    """Compile a C or assembler file."""
    subprocess.run(["gcc", "-c", "-O2", "-o", str(output), str(source), *flags], check=True)
    return output


@dataclass
class Redirected:
    """A loaded object whose functions are redirected, and the area that counts."""

    process: Process
    update: Loaded
    area: int
    policy: int
    names: Sequence[str]
    uses: dict[tuple[str, int], int]

    def choose(self, name: str, edition: int) -> None:
        """Have the process's class choose an edition of one function."""
        row = word(self.update.symbols[f"{name}_row"])
        ctypes.c_uint8.from_address(row + 3).value = edition

    def use(self, name: str, edition: int) -> tuple[int, int]:
        """Return entered and exited."""
        offset = self.area + self.uses[name, edition]
        return word(offset), word(offset + 8)

    def install(self) -> None:
        """Write the trampolines."""
        table, end = self.update.symbols["dynamos_functions"], self.update.symbols["dynamos_functions_end"]
        assert end - table == 16 * 8 * len(self.names)
        for at in range(table, end, 16 * 8):
            site, handler = word(at + 24), word(at + 40)
            assert ctypes.string_at(site, 5) == ctypes.string_at(at + 32, 5)
            ctypes.memmove(site, b"\xe9" + (handler - site - 5).to_bytes(4, "little", signed=True), 5)


def redirect(
    work: Path, original: Loaded, names: Sequence[str], editions: Sequence[Path] = (), thunk: str = ""
) -> Redirected:
    """Generate, assemble and load an update of NAMES; edition 2 of F is F_v2 if an object of EDITIONS has it."""
    process = Process(original)
    objects = [Object(path.read_bytes(), path.name) for path in editions]
    have = {function for item in objects for function in item.functions()}
    redirects = [
        Redirect(examine(process, process.function(name)), {2: f"{name}_v2"} if f"{name}_v2" in have else {})
        for name in names
    ]
    text = generate(redirects, objects, Constants(CURRENT, TGID, thunk), original.symbols.get)
    source = work / "update.S"
    source.write_text(text)
    path = compile_c(source, work / "update.o", "-DCC_USING_NOP_MCOUNT", "-Wa,--fatal-warnings")
    area = memory(1 << 16)
    policy = memory(1 << 12)
    pointer = memory(8)
    put(pointer, policy)
    put(area + CURRENT, area + TASK)
    put(area + TASK + TGID, PROCESS)
    ctypes.c_uint8.from_address(policy + PROCESS).value = 3
    outside = {"dynamos_policy": pointer, **original.symbols}
    update = Loaded(path, outside)
    uses: dict[tuple[str, int], int] = {}
    next_use = USE
    for item in redirects:
        put(update.symbols[f"{item.stem}_row"], memory(256))
        for number in (1, *item.editions):
            put(update.symbols[f"{item.stem}_v{number}_use"], next_use)
            uses[item.stem, number] = next_use
            next_use += 16
    assert _libc.syscall(_SYS_ARCH_PRCTL, _ARCH_SET_GS, ctypes.c_ulong(area)) == 0
    return Redirected(process, update, area, policy, names, uses)


def call(address: int, *arguments: int) -> int:
    """Call a function that takes and returns 64-bit numbers."""
    kind = ctypes.CFUNCTYPE(ctypes.c_uint64, *[ctypes.c_uint64] * len(arguments))
    return int(kind(address)(*arguments))
