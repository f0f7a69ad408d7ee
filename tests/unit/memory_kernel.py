"""A kernel made of assembler text: the rewriter's `Kernel`, from memory."""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dynamos_ng.arch import Arch, x86_64
from dynamos_ng.errors import ImageError
from dynamos_ng.rewrite import elf
from dynamos_ng.rewrite.kernel import Bug, Fixup, StaticCall, StaticKey, Symbol

TEXT = 0xFFFFFFFF81000000
END = TEXT + 0x10000
MODULE = 0xFFFFFFFFC0000000
ENTRY_STATE = bytes.fromhex("080000000500")


def assemble(text: str) -> elf.Elf:
    """Return the object that gas makes of TEXT."""
    with tempfile.TemporaryDirectory() as name:
        source, output = Path(name) / "a.s", Path(name) / "a.o"
        source.write_text(text + '\n\t.section .note.GNU-stack,"",@progbits\n')
        subprocess.run(["as", "--fatal-warnings", "-o", str(output), str(source)], check=True)
        return elf.Elf(output.read_bytes(), "a.o")


def relative(place: int, target: int) -> bytes:
    """Return what a table of the kernel's holds at PLACE for TARGET."""
    return struct.pack("<i", target - place)


def section(unit: elf.Elf, name: str) -> elf.Section:
    return next(item for item in unit.sections if item.name == name)


class MemoryKernel:
    """Functions by name, as hexadecimal bytes or assembler text, placed 0x100 apart from TEXT on."""

    user = False

    def __init__(
        self,
        functions: Mapping[str, str | bytes],
        *,
        unwind: Sequence[tuple[int, bytes]] = ((TEXT, ENTRY_STATE),),
        fixups: Sequence[Fixup] = (),
        keys: Sequence[StaticKey] = (),
        bugs: Sequence[Bug] = (),
        calls: Sequence[StaticCall] = (),
        locks: Sequence[int] = (),
        thunks: Sequence[str] = (),
        pads: Mapping[str, int] | None = None,
        forbidden: str = "",
        probes: Sequence[int] = (),
        symbols: Mapping[str, int] | None = None,
        data: Mapping[int, bytes] | None = None,
        arch: Arch = x86_64.ARCH,
    ) -> None:
        self.arch = arch
        self.unwind, self._fixups, self.keys, self._bugs = unwind, fixups, keys, bugs
        self.calls, self.locks, self.words, self._probes = calls, locks, forbidden, probes
        self.code: dict[int, bytes] = {}
        self.symbols: dict[str, int] = {}
        for number, (name, code) in enumerate(functions.items()):
            address = TEXT + 0x100 * number
            self.symbols[name] = address
            self.code[address] = code if isinstance(code, bytes) else bytes.fromhex(code)
        self.lengths = {address: len(code) for address, code in self.code.items()}
        self.symbols.update(symbols or {})
        self.data = dict(data or {})
        self.thunks = thunks
        self.pads = pads or {}

    def function(self, name: str, position: int | None = None) -> Symbol:
        address = self.symbols[name]
        return Symbol(name, address, self.lengths.get(address, 0x100))

    def read(self, address: int, size: int) -> bytes:
        for start, code in {**self.code, **self.data}.items():
            if start <= address < start + max(len(code), 0x100):
                return code.ljust(0x100, b"\xcc")[address - start : address - start + size]
        raise ImageError(f"nothing at {address:#x}")

    def containing(self, address: int) -> Symbol | None:
        below = [(start, name) for name, start in self.symbols.items() if start <= address < start + 0x100]
        if not below:
            return None
        start, name = max(below)
        module = "" if start < MODULE else "bpf" if name.startswith("bpf_") else "some_module"
        return Symbol(name, start, self.lengths.get(start, 0x100), module)

    def names(self, address: int) -> tuple[str, ...]:
        return tuple(name for name, start in self.symbols.items() if start == address)

    def in_text(self, address: int) -> bool:
        return TEXT <= address < END

    def forbidden(self, start: int, end: int) -> str:
        return self.words

    def probes(self, start: int, end: int) -> list[int]:
        return [address for address in self._probes if start <= address < end]

    def return_thunks(self) -> frozenset[int]:
        return frozenset(self.symbols[name] for name in self.thunks)

    def branch_pads(self) -> Mapping[str, int]:
        return self.pads

    def orc(self, start: int, end: int) -> list[tuple[int, bytes]]:
        before = [entry for entry in self.unwind if entry[0] <= start]
        return before[-1:] + [entry for entry in self.unwind if start < entry[0] < end]

    def fixups(self, start: int, end: int) -> list[Fixup]:
        return [entry for entry in self._fixups if start <= entry.address < end]

    def static_keys(self, start: int, end: int) -> list[StaticKey]:
        return [entry for entry in self.keys if start <= entry.address < end]

    def bugs(self, start: int, end: int) -> list[Bug]:
        return [entry for entry in self._bugs if start <= entry.address < end]

    def static_calls(self, start: int, end: int) -> list[StaticCall]:
        return [entry for entry in self.calls if start <= entry.address < end]

    def bare_locks(self, start: int, end: int) -> list[int]:
        return [address for address in self.locks if start <= address < end]


NOP5 = x86_64.ARCH.nop5.hex()
