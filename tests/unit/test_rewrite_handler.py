"""Which instructions a redirection handler is made of, by the number of editions and the architecture."""

from __future__ import annotations

from dynamos_ng.arch import Arch, i386, x86_64
from dynamos_ng.rewrite.handler import Constants, handler
from dynamos_ng.rewrite.writer import Edition, Tables

CONSTANTS = Constants(current=0x1FB80, tgid=0x974)
LOOKS_UP = [
    "mov %gs:0x1fb80, %r11", "mov 0x974(%r11), %r11d", "add dynamos_policy(%rip), %r11", "movzbl (%r11), %r11d",
    "add f_row(%rip), %r11",
]  # fmt: skip


def lines_of(*numbers: int, arch: Arch = x86_64.ARCH, preserve: bool = False) -> list[str]:
    """Return the text of a handler for editions of these numbers, up to its end."""
    tables = Tables(arch)
    editions = [Edition(f"f_v{number}", number, None, preserve, tables) for number in numbers]
    return handler("f", editions, None, preserve, CONSTANTS, tables)[0]


def instructions(lines: list[str]) -> list[str]:
    return [line.strip() for line in lines if line.startswith("\t") and line[1] != "."]


def test_handler_looks_up_class_and_edition() -> None:
    ends = ["jmp .Lf_v1.direct", "int3"]
    two = ["cmpb $2, (%r11)", "jne .Lf_v1.direct", "jmp .Lf_v2.direct", "int3"]
    assert instructions(lines_of(1, 2)) == [*LOOKS_UP, *two]
    more = ["cmp $2, %r11b", "je .Lf_v2.direct", "cmp $7, %r11b", "je .Lf_v7.direct"]
    assert instructions(lines_of(1, 2, 7)) == [*LOOKS_UP, "movzbl (%r11), %r11d", *more, *ends]
    assert instructions(lines_of(1)) == ends, "there is nothing to look up"


def test_what_may_not_be_c_keeps_registers_and_flags() -> None:
    code = instructions(lines_of(1, 2, preserve=True))
    assert code[:2] == ["push %r11", "pushf"]
    assert code[-4:-1] == ["popf", "pop %r11", "jmp .Lf_v1.direct"]


def test_on_i386_the_arguments_are_kept() -> None:
    lines = lines_of(1, 2, arch=i386.ARCH)
    assert instructions(lines) == [
        "push %ecx", "mov %fs:0x1fb80, %ecx", "mov 0x974(%ecx), %ecx", "{disp32} movzbl 0(%ecx), %ecx",
        "{disp32} cmpb $2, 0(%ecx)", "pop %ecx", "jne .Lf_v1.direct", "jmp .Lf_v2.direct", "int3",
    ]  # fmt: skip
    assert [line.strip() for line in lines if ".long" in line] == [
        ".long 9b - 4, dynamos_policy", ".long 9b - 5, f_row"
    ]  # fmt: skip
