"""i386: `%fs` is the CPU's own memory; eax, edx and ecx carry arguments, so no register is free at an entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dynamos_ng.arch import Arch, Instruction
from dynamos_ng.arch.x86 import REGISTERS, Decoder

_DECODER = Decoder(32)
#: mov (%esp),%REGISTER; ret: how code that may lie anywhere learns where it is.
_PROGRAM_COUNTERS = {
    bytes((0x8B, 0x04 | number << 3, 0x24, 0xC3)): "e" + register[1:]
    for number, register in enumerate(REGISTERS[:8])
    if register != "rsp"
}


def _direct(instruction: str, slot: str, back: int) -> list[str]:
    """Return an instruction to a word of which, BACK bytes before its end, dynamos.ko adds what SLOT holds.

    A word is an address here: that of a counter or a map need not be loaded from the slot by each call.
    """
    return [
        f"\t{{disp32}} {instruction}", "9:", "\t.pushsection .rodata.directs", f"\t.long 9b - {back}, {slot}",
        "\t.popsection",
    ]  # fmt: skip


@dataclass(frozen=True, eq=False)
class _I386(Arch):
    def decode(self, code: bytes, address: int) -> tuple[list[Instruction], int]:
        return _DECODER.decode(code, address)

    def increment(
        self, slot: str, offset: int, register: str, rare: list[str], loaded: bool = False
    ) -> list[str]:
        # The carry of an interrupt in between, or of another CPU, is its own: the sum over all CPUs is right.
        carry = f".L{slot}.carry{len(rare)}"
        rare += [f"{carry}:", f"\tincl %fs:{offset + 4}(%{register})", f"\tjmp {carry}.over", "\tint3"]
        load = [] if loaded else _direct(f"mov $0, %{register}", slot, 4)
        return [*load, f"\taddl $1, %fs:{offset}(%{register})", f"\tjc {carry}", f"{carry}.over:"]

    def saved(self, _preserve: bool, pair: bool) -> tuple[str, ...]:
        return self.pair[not pair :]

    def select(self, current: int, tgid: int, _row: str, told: Sequence[str] = ()) -> list[str]:
        return [
            f"\tmov %fs:{current:#x}, %ecx",
            f"\tmov {tgid:#x}(%ecx), %ecx",
            *_direct("movzbl 0(%ecx), %ecx", "dynamos_policy", 4),
            *told,
        ]

    def fetch(self, row: str) -> list[str]:
        return _direct("movzbl 0(%ecx), %ecx", row, 4)

    def compare(self, row: str, number: int) -> list[str]:
        return _direct(f"cmpb ${number}, 0(%ecx)", row, 5)

    def in_interrupt(self, preempt: int, mask: int, policy_class: int) -> list[str]:
        return [f"\ttestl ${mask:#x}, %fs:{preempt:#x}", "\tje 1f", f"\tmov ${policy_class}, %ecx", "1:"]

    def adapt(self, slot: str) -> list[str]:
        return [f"\tmov {slot}, %eax", "\tmov %esp, %edx", "\tcall dynamos_adapt"]

    def program_counter(self, read: Callable[[int, int], bytes], function: int) -> str:
        return _PROGRAM_COUNTERS.get(read(function, 4), "")

    def notes_call(self, _code: bytes) -> bool:
        return False

    def push(self, address: int) -> list[str]:
        return [f"\tpush ${address:#x}"]

    def reference(self, kind: int, expression: str) -> list[str]:
        # The addend lies in the field itself, and gas's .reloc gets it wrong there.
        return [f"\t.long {expression}{' - .' if self.relocations[kind][2] else ''}"]


_NOP5 = b"\x3e\x8d\x74\x26\x00"
ARCH = _I386(
    name="i386",
    machine=3,
    word=4,
    pointer=".long",
    trampoline=5,
    nop5=_NOP5,
    # The second is what the compiler writes with -mnop-mcount.
    idle=frozenset((_NOP5, b"\x0f\x1f\x44\x00\x00")),
    endbr=(b"\xf3\x0f\x1e\xfb",),
    relocations={
        1: ("R_386_32", 4, False),
        2: ("R_386_PC32", 4, True),
        4: ("R_386_PLT32", 4, True),
    },
    bugs_relative=False,
    return_thunks=False,
    free_at_entry=(),
    free_at_return=("ecx",),
    free_at_tail=(),
    spare="ecx",
    chosen="cl",
    pair=("eax", "ecx"),
    arguments=("eax", "edx", "ecx"),
    answer="al",
)
