"""x86_64: `%gs` is the CPU's own memory; r10 and r11 are free at the entry of a C function and when it leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynamos_ng.arch import Arch, Instruction
from dynamos_ng.arch.x86 import Decoder

_DECODER = Decoder(64)


@dataclass(frozen=True, eq=False)
class _X8664(Arch):
    def decode(self, code: bytes, address: int) -> tuple[list[Instruction], int]:
        return _DECODER.decode(code, address)

    def increment(
        self, slot: str, offset: int, register: str, _rare: list[str], loaded: bool = False
    ) -> list[str]:
        load = [] if loaded else [f"\tmov {slot}(%rip), %{register}"]
        return [*load, f"\tincq %gs:{offset}(%{register})"]

    def saved(self, preserve: bool, pair: bool) -> tuple[str, ...]:
        return self.pair[not pair :] if preserve else ()

    def select(self, current: int, tgid: int, row: str, told: Sequence[str] = ()) -> list[str]:
        return [
            f"\tmov %gs:{current:#x}, %r11",
            f"\tmov {tgid:#x}(%r11), %r11d",
            "\tadd dynamos_policy(%rip), %r11",
            "\tmovzbl (%r11), %r11d",
            *told,
            f"\tadd {row}(%rip), %r11",
        ]

    def fetch(self, _row: str) -> list[str]:
        return ["\tmovzbl (%r11), %r11d"]

    def compare(self, _row: str, number: int) -> list[str]:
        return [f"\tcmpb ${number}, (%r11)"]

    def in_interrupt(self, preempt: int, mask: int, policy_class: int) -> list[str]:
        return [f"\ttestl ${mask:#x}, %gs:{preempt:#x}", "\tje 1f", f"\tmov ${policy_class}, %r11d", "1:"]

    def adapt(self, slot: str) -> list[str]:
        return [f"\tmov {slot}(%rip), %rdi", "\tmov %rsp, %rsi", "\tcall dynamos_adapt"]

    def program_counter(self, _read: Callable[[int, int], bytes], _function: int) -> str:
        return ""

    def notes_call(self, code: bytes) -> bool:
        # sarq $5, a number of this CPU's: with the number's address, or with its distance.
        return len(code) in (9, 10) and code[:4] in (b"\x65\x48\xc1\x3d", b"\x65\x48\xc1\x3c") and code[-1] == 5

    def push(self, _address: int) -> list[str]:
        return []

    def reference(self, kind: int, expression: str) -> list[str]:
        name, width, _near = self.relocations[kind]
        return [f"\t.reloc ., {name}, {expression}", f"\t.zero {width}"]


_NOP5 = b"\x0f\x1f\x44\x00\x00"
ARCH = _X8664(
    name="x86_64",
    machine=62,
    word=8,
    pointer=".quad",
    trampoline=5,
    nop5=_NOP5,
    idle=frozenset((_NOP5,)),
    # The others are what kernels write over an endbr64 that no indirect branch needs.
    endbr=(b"\xf3\x0f\x1e\xfa", b"\x0f\x1f\x40\x00", b"\x66\x0f\x1f\x00", b"\x0f\x1f\x40\xd6"),
    relocations={
        1: ("R_X86_64_64", 8, False),
        2: ("R_X86_64_PC32", 4, True),
        4: ("R_X86_64_PLT32", 4, True),
        10: ("R_X86_64_32", 4, False),
        11: ("R_X86_64_32S", 4, False),
        24: ("R_X86_64_PC64", 8, True),
    },
    bugs_relative=True,
    return_thunks=True,
    free_at_entry=("r10",),
    free_at_return=("r11",),
    free_at_tail=("r11", "r10"),
    spare="r11",
    chosen="r11b",
    pair=("r10", "r11"),
    arguments=("rdi", "rsi", "rdx", "rcx", "r8", "r9"),
    answer="al",
)
