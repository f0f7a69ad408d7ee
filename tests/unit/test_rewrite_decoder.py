"""What each instruction does to control flow; bytes beside disassembly."""

from __future__ import annotations

import pytest

from dynamos_ng.arch import Kind
from dynamos_ng.arch.x86_64 import ARCH

AT = 0xFFFFFFFF81000000


@pytest.mark.parametrize(
    ("code", "kind", "target"),
    [
        ("e8 00 01 00 00", Kind.CALL, AT + 0x105),  # call
        ("2e e8 00 01 00 00", Kind.CALL, AT + 0x106),  # cs call: padding before a retpoline
        ("e9 fb ff ff ff", Kind.JUMP, AT),  # jmp self
        ("eb 10", Kind.JUMP, AT + 0x12),  # jmp short
        ("f2 e9 00 00 00 00", Kind.JUMP, AT + 6),  # bnd jmp
        ("74 fe", Kind.BRANCH, AT),  # je
        ("0f 85 00 00 00 80", Kind.BRANCH, AT + 6 - 0x80000000),  # jne
        ("3e 75 01", Kind.BRANCH, AT + 4),  # jne,pt
        ("e3 05", Kind.LOOP, AT + 7),  # jrcxz
        ("67 e3 05", Kind.LOOP, AT + 8),  # jecxz
        ("e2 fe", Kind.LOOP, AT),  # loop
        ("c3", Kind.RETURN, None),  # ret
        ("f3 c3", Kind.RETURN, None),  # repz ret
        ("ff d0", Kind.CALL_INDIRECT, None),  # call *%rax
        ("41 ff e3", Kind.JUMP_INDIRECT, None),  # jmp *%r11
        ("ff 60 18", Kind.JUMP_INDIRECT, None),  # jmp *0x18(%rax)
        ("ff 25 10 00 00 00", Kind.JUMP_INDIRECT, AT + 0x16),  # jmp *0x10(%rip)
        ("48 8b 05 10 00 00 00", Kind.PLAIN, AT + 0x17),  # mov 0x10(%rip),%rax
        ("83 3d 10 00 00 00 05", Kind.PLAIN, AT + 0x17),  # cmpl $5,0x10(%rip)
        ("c7 05 10 00 00 00 01 02 03 04", Kind.PLAIN, AT + 0x1A),  # movl $0x4030201,0x10(%rip)
        ("0f b6 05 10 00 00 00", Kind.PLAIN, AT + 0x17),  # movzbl 0x10(%rip),%eax
        ("66 0f 38 00 05 10 00 00 00", Kind.PLAIN, AT + 0x19),  # pshufb 0x10(%rip),%xmm0
        ("c5 f8 28 05 10 00 00 00", Kind.PLAIN, AT + 0x18),  # vmovaps 0x10(%rip),%xmm0
        ("c4 e2 79 00 05 10 00 00 00", Kind.PLAIN, AT + 0x19),  # vpshufb 0x10(%rip),%xmm0,%xmm0
        ("0f 0b", Kind.UNDEFINED, None),  # ud2
        ("cc", Kind.BREAKPOINT, None),  # int3
        ("90", Kind.NOP, None),  # nop
        ("f3 90", Kind.PLAIN, None),  # pause
        ("0f 1f 44 00 00", Kind.NOP, None),  # nopl 0x0(%rax,%rax,1)
        ("2e 2e 2e 31 c0", Kind.PLAIN, None),  # cs cs cs xor %eax,%eax
        ("f3 0f 1e fa", Kind.PLAIN, None),  # endbr64
        ("f2 0f 01 ff", Kind.PLAIN, None),  # pvalidate
        ("0f 01 ee", Kind.PLAIN, None),  # rdpkru
        ("0f 05", Kind.SYSTEM, None),  # syscall
        ("cd 80", Kind.SYSTEM, None),  # int $0x80
    ],
)
def test_kind_and_target(code: str, kind: Kind, target: int | None) -> None:
    raw = bytes.fromhex(code)
    decoded, covered = ARCH.decode(raw, AT)
    assert covered == len(raw)
    assert [(item.kind, item.target) for item in decoded] == [(kind, target)]


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("c2 08 00", "drops arguments"),  # ret $8
        ("cb", "far return"),  # lret
        ("48 cf", "interrupt"),  # iretq
        ("0f 34", "elsewhere"),  # sysenter
        ("0f 07", "elsewhere"),  # sysret
        ("ff 28", "far call or jump"),  # ljmp *(%rax)
        ("c7 f8 00 00 00 00", "transaction"),  # xbegin
        ("67 8b 05 00 00 00 00", "EIP-relative"),  # mov 0x0(%eip),%eax
        ("66 e9 00 00 00 00", "branch"),  # a jump whose size depends on the maker of the processor
    ],
)
def test_refused_with_a_reason(code: str, words: str) -> None:
    decoded, _covered = ARCH.decode(bytes.fromhex(code), AT)
    assert decoded[0].kind is Kind.REFUSED
    assert words in decoded[0].detail


def test_field_is_where_the_displacement_lies() -> None:
    # cmpl $5,0x10(%rip): opcode, modrm, four bytes of displacement, one of immediate
    decoded, _covered = ARCH.decode(bytes.fromhex("83 3d 10 00 00 00 05"), AT)
    assert decoded[0].field == 2


def test_ud1_is_decoded_whole_or_refused() -> None:
    # ud1 %esp,%ecx: capstone 5 leaves the operand's byte to be taken for an int3
    decoded, _covered = ARCH.decode(bytes.fromhex("0f b9 cc"), AT)
    assert (decoded[0].kind, decoded[0].size) in ((Kind.UNDEFINED, 3), (Kind.REFUSED, 2))


def test_bytes_that_are_no_instruction_end_the_decoding() -> None:
    decoded, covered = ARCH.decode(bytes.fromhex("90 06 90"), AT)  # nop; push %es: not in 64-bit code
    assert (len(decoded), covered) == (1, 1)
