"""What each instruction does to control flow; bytes beside disassembly."""

from __future__ import annotations

import pytest

from dynamos_ng.arch import Arch, Kind
from dynamos_ng.arch.i386 import ARCH as I386
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


@pytest.mark.parametrize(
    ("arch", "code", "kind"),
    [
        (ARCH, "68 07 00 00 81 48 cf", Kind.PLAIN),  # push $1f; iretq; 1:
        (ARCH, "68 06 00 00 81 48 cf", Kind.REFUSED),  # to elsewhere
        (ARCH, "68 07 00 00 81 90 48 cf", Kind.REFUSED),
        (I386, "68 06 00 00 c1 cf", Kind.PLAIN),
        (I386, "68 00 00 00 c1 cf", Kind.REFUSED),
    ],
)
def test_a_return_from_no_interrupt_leads_to_the_next_instruction(arch: Arch, code: str, kind: Kind) -> None:
    decoded, _covered = arch.decode(bytes.fromhex(code), AT if arch is ARCH else 0xC1000000)
    assert decoded[-1].kind is kind


def test_field_is_where_the_displacement_lies() -> None:
    # cmpl $5,0x10(%rip): opcode, modrm, four bytes of displacement, one of immediate
    decoded, _covered = ARCH.decode(bytes.fromhex("83 3d 10 00 00 00 05"), AT)
    assert decoded[0].field == 2


def test_ud1_is_decoded_whole_or_refused() -> None:
    # ud1 %esp,%ecx: capstone 5 leaves the operand's byte to be taken for an int3
    decoded, _covered = ARCH.decode(bytes.fromhex("0f b9 cc"), AT)
    assert (decoded[0].kind, decoded[0].size) in ((Kind.UNDEFINED, 3), (Kind.REFUSED, 2))


@pytest.mark.parametrize(
    "code",
    [
        "67 48 0f b9 3a",  # ud1 (%edx),%rdi: where a static call to WARN_trap stood
        "67 0f b9 40 10",  # ud1 0x10(%eax),%eax
        "0f b9 84 24 00 01 00 00",  # ud1 0x100(%rsp),%eax
        "0f b9 04 25 00 01 00 00",  # ud1 0x100,%eax
    ],
)
def test_what_follows_a_ud1_in_memory_is_decoded_from_its_own_start(code: str) -> None:
    decoded, _covered = ARCH.decode(bytes.fromhex("90" + code + "c3"), AT)
    assert [(i.kind, i.size) for i in decoded] == [
        (Kind.NOP, 1), (Kind.UNDEFINED, len(bytes.fromhex(code))), (Kind.RETURN, 1)
    ]  # fmt: skip


def test_bytes_that_are_no_instruction_end_the_decoding() -> None:
    decoded, covered = ARCH.decode(bytes.fromhex("90 06 90"), AT)  # nop; push %es: not in 64-bit code
    assert (len(decoded), covered) == (1, 1)


@pytest.mark.parametrize(
    ("code", "kind", "target", "detail"),
    [
        ("e8 00 01 00 00", Kind.CALL, 0xC1000105, ""),  # call
        ("e9 00 00 00 50", Kind.JUMP, 0x11000005, ""),  # jmp: addresses wrap at 4 GiB
        ("e3 05", Kind.LOOP, 0xC1000007, "jecxz"),
        ("67 e3 05", Kind.LOOP, 0xC1000008, "jcxz"),
        ("67 e2 fd", Kind.LOOP, 0xC1000000, "addr16 loop"),
        ("c3", Kind.RETURN, None, ""),  # ret
        ("c2 04 00", Kind.RETURN, None, "ret $4"),
        ("ff e0", Kind.JUMP_INDIRECT, None, "eax"),  # jmp *%eax
        ("ff 25 10 00 00 00", Kind.JUMP_INDIRECT, None, ""),  # jmp *0x10: absolute, not relative
        ("8b 05 10 00 00 00", Kind.PLAIN, None, ""),  # mov 0x10,%eax
        ("40", Kind.PLAIN, None, ""),  # inc %eax: a prefix in 64-bit code
        ("41 e9 00 00 00 00", Kind.PLAIN, None, ""),  # inc %ecx, then a jmp
        ("90", Kind.NOP, None, ""),  # nop
        ("89 f6", Kind.NOP, None, ""),  # mov %esi,%esi
        ("8d 76 00", Kind.NOP, None, ""),  # lea 0x0(%esi),%esi
        ("3e 8d 74 26 00", Kind.NOP, None, ""),  # the kernel's nop of five bytes
        ("8d b4 26 00 00 00 00", Kind.NOP, None, ""),  # lea 0x0(%esi,%eiz,1),%esi
        ("8d 76 04", Kind.PLAIN, None, ""),  # lea 0x4(%esi),%esi
        ("8d 74 0e 00", Kind.PLAIN, None, ""),  # lea 0x0(%esi,%ecx,1),%esi
        ("cd 80", Kind.SYSTEM, None, ""),  # int $0x80
        ("9a 00 00 00 00 90 00", Kind.REFUSED, None, "a far call"),
        ("ea 00 00 00 00 60 00", Kind.REFUSED, None, "a far jump"),
    ],
)
def test_32_bit_kind_and_target(code: str, kind: Kind, target: int | None, detail: str) -> None:
    decoded, _covered = I386.decode(bytes.fromhex(code), 0xC1000000)
    assert (decoded[0].kind, decoded[0].target, decoded[0].detail) == (kind, target, detail)


def test_a_function_that_only_tells_its_return_address() -> None:
    code = {0: bytes.fromhex("8b1c24c3"), 4: bytes.fromhex("8b0424c3"), 8: bytes.fromhex("8b5c24c3")}
    found = [I386.program_counter(lambda address, size: code[address][:size], at) for at in code]
    assert found == ["ebx", "eax", ""]
