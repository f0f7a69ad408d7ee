"""The text by which a task of a consistent group keeps to one edition."""

from __future__ import annotations

import pytest
from memory_kernel import NOP5, TEXT, MemoryKernel, assemble
from test_rewrite_clone import preprocessed, symbol
from test_rewrite_i386 import block
from test_rewrite_i386 import kernel as kernel_of_32_bits

from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite import Constants, Redirect, check, generate

CONSTANTS = Constants(current=0x1FB80, tgid=0x974, pid=0x970, cpu=0x1C)
STATE = [
    "mov %gs:0x1fb80, %r10", "mov 0x970(%r10), %r11d", "test %r11d, %r11d", "jne 1f", "mov 0x1c(%r10), %r11d",
    "not %r11", "1:", "mov dynamos_tasks(%rip), %r10", "lea (%r10,%r11,4), %r10",
]  # fmt: skip


def text_of(code: str, consistent: bool = True) -> str:
    memory = MemoryKernel({"f": code}, symbols={"g": TEXT + 0x1000})
    return generate([Redirect(check(memory, "f"))], [], CONSTANTS, consistent=consistent)


def lines(text: str, start: str, end: str) -> list[str]:
    """Return the lines between two labels or lines, without unwind labels."""
    whole = [line.strip() for line in text.splitlines()]
    part = whole[whole.index(start) + 1 :]
    return [line for line in part[: part.index(end)] if not (line.startswith(".L") and line.endswith(":"))]


def test_the_handler_takes_the_kept_edition_before_the_policys() -> None:
    text = text_of(NOP5 + "31c0 c3 cc cc")
    found = lines(text, "f_handler:", ".size f_handler, . - f_handler")
    assert found[:9] == STATE
    assert found[9:12] == ["testl $0x100ffff, (%r10)", "movzbl 2(%r10), %r11d", "jne 2f"]
    assert found[-3:] == ["2:", "jmp .Lf_v1.direct", "int3"]
    assert "add dynamos_policy(%rip), %r11" in found


def test_a_call_notes_its_beginning_and_its_end() -> None:
    text = text_of(NOP5 + "85ff 0f85 f30f0000 31c0 c3")  # a conditional tail call of g
    head = lines(text, ".Lf_v1.ftrace:", f".Lf_v1.{TEXT:x}:")
    enter = head[head.index("push %r10") :]
    assert enter == [
        "push %r10", "push %r11", *STATE, "cmpw $0, (%r10)", "jne 2f", "movb $1, 2(%r10)", "incw (%r10)",
        "movb $1, 2(%r10)", "jmp 3f", "2:", "incw (%r10)", "3:", "pop %r11", "pop %r10",
    ]  # fmt: skip
    leave = ["push %r10", "push %r11", *STATE, "decw (%r10)", "pop %r11", "pop %r10"]
    for stub in (".Lf_v1.exit:", ".Lf_v1.tail0:"):
        assert lines(text, stub, "int3")[: len(leave)] == leave
    assert symbol(assemble(preprocessed(text)), "dynamos_tasks").size == 0


def test_outside_of_groups_nothing_is_noted() -> None:
    assert "dynamos_tasks(" not in text_of(NOP5 + "31c0 c3 cc cc", consistent=False)


def test_a_function_that_may_not_be_c_keeps_its_flags_too() -> None:
    text = text_of("31c0 31c0 31c0 c3")  # no ftrace site
    assert lines(text, ".Lf_v1.exit:", "int3")[:3] == ["push %r10", "push %r11", "pushf"]


def test_32_bits_keep_the_arguments() -> None:
    text = generate(
        [Redirect(check(kernel_of_32_bits(), "f"))], [], Constants(0x40, 0x24, "", 0x20, 0x1C), consistent=True
    )
    found = block(text, ".Lf_v1.exit", "\tint3")
    assert found[:4] == ["push %eax", "push %ecx", "mov %fs:0x40, %eax", "mov 0x20(%eax), %ecx"]
    assert found[found.index("decw (%eax)") + 1 :][:2] == ["pop %ecx", "pop %eax"]


def test_a_function_that_never_returns_is_refused() -> None:
    with pytest.raises(Refusal, match=r"f: refused: v1 never returns.*leave the function out"):
        text_of(NOP5 + "31c0 31c0 31c0 0f0b")
