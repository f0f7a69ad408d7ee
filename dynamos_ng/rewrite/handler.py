"""The redirection handler: which edition does this process run?

Reached by the trampoline's direct jump. `r10` and `r11` are free at the entry of a C function; a function
that is perhaps not C (it has no ftrace site) gets a handler that changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamos_ng.rewrite.writer import Edition, Tables, deeper


@dataclass(frozen=True)
class Constants:
    """What the running kernel's layout says.

    `current` is the offset of the current task's pointer from %gs, `tgid` the offset of the thread group's
    number in struct task_struct. `return_thunk` is the symbol that returns jump to, "" for a kernel with
    plain returns.
    """

    current: int
    tgid: int
    return_thunk: str = "__x86_return_thunk"


def handler(
    label: str,
    editions: Sequence[Edition],
    state: bytes | None,
    preserve: bool,
    constants: Constants,
    tables: Tables,
) -> list[str]:
    """Return the text of LABEL_handler; unless PRESERVE, it falls through into the first edition, which must
    follow."""
    name = f"{label}_handler"
    others = [edition for edition in editions if edition.number > 1]
    tables.unwind(name, state)
    lines = ["\t.balign 16, 0xcc", f"\t.globl {name}", f"\t.type {name}, @function", f"{name}:"]
    if preserve:
        lines += ["\tpush %r10", f".L{name}.a:", "\tpush %r11", f".L{name}.b:", "\tpushfq", f".L{name}.c:"]
        for depth, mark in enumerate("abc", 1):
            tables.unwind(f".L{name}.{mark}", deeper(state, depth))
    lines += [
        f"\tmov %gs:{constants.current:#x}, %r11",
        f"\tmov {constants.tgid:#x}(%r11), %r11d",
        "\tmov dynamos_policy(%rip), %r10",
        "\tmovzbl (%r10,%r11), %r11d",
        f"\tmov {label}_row(%rip), %r10",
        "\tmovzbl (%r10,%r11), %r11d",
    ]
    for edition in others:
        to = f".L{name}.to{edition.number}" if preserve else edition.name
        lines += [f"\tcmp ${edition.number}, %r11b", f"\tje {to}"]
    if preserve:
        lines += [*_restore(name, "", state, tables), f"\tjmp {editions[0].name}"]
        for edition in others:
            tables.unwind(f".L{name}.to{edition.number}", deeper(state, 3))
            lines += [f".L{name}.to{edition.number}:", *_restore(name, str(edition.number), state, tables)]
            lines += [f"\tjmp {edition.name}"]
        lines.append("\tint3")
    lines.append(f"\t.size {name}, . - {name}")
    return lines


def _restore(name: str, mark: str, state: bytes | None, tables: Tables) -> list[str]:
    lines = []
    for left, step in zip((2, 1, 0), ("popfq", "pop %r11", "pop %r10"), strict=True):
        label = f".L{name}.r{left}{mark}"
        tables.unwind(label, deeper(state, left))
        lines += [f"\t{step}", f"{label}:"]
    return lines
