"""The redirection handler: which edition does this process run?

Reached by the trampoline's direct jump. It saves the registers that are not free at the entry of a C function; for a
function that is perhaps not C (it has no ftrace site), all that it changes. Where a BPF program is to choose by the
arguments, these are what it saves, and it calls dynamos.ko (kmod/adapt.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dynamos_ng.rewrite import consistency
from dynamos_ng.rewrite.writer import Edition, Tables, deeper, pushing
from dynamos_ng.uapi import INTERRUPTS


@dataclass(frozen=True)
class Constants:
    """What the running kernel's layout says.

    `current` is the offset of the current task's pointer in a CPU's own memory, `tgid` the offset of the thread
    group's number in struct task_struct. `return_thunk` is the symbol that returns jump to, "" for a kernel with
    plain returns. Consistent groups need `pid` and `cpu` too, the offsets of the thread's number and of its CPU.
    A handler that tells interrupts needs `preempt`, the offset of the preemption count in a CPU's own memory, and
    `interrupt`, the bits of which it then has some.
    """

    current: int
    tgid: int
    return_thunk: str = "__x86_return_thunk"
    pid: int = 0
    cpu: int = 0
    preempt: int = 0
    interrupt: int = 0


def handler(
    label: str,
    editions: Sequence[Edition],
    state: bytes | None,
    preserve: bool,
    constants: Constants,
    tables: Tables,
    adapts: bool = False,
    tells: bool = False,
) -> list[str]:
    """Return the text of LABEL_handler; if it saves nothing, it falls through into the first edition, which must
    follow.

    With ADAPTS the function must be C, which PRESERVE denies. If it TELLS interrupts, calls made in them are of a
    policy class of their own.
    """
    name = f"{label}_handler"
    arch = tables.arch
    others = [edition for edition in editions if edition.number > 1]
    saved = arch.arguments[::-1] if adapts else arch.saved(preserve)
    save = [f"\tpush %{register}" for register in saved] + ["\tpushf"] * preserve
    restore = ["\tpopf"] * preserve + [f"\tpop %{register}" for register in reversed(saved)]
    tables.unwind(name, state)
    lines = ["\t.balign 16, 0xcc", f"\t.globl {name}", f"\t.type {name}, @function", f"{name}:"]
    lines += pushing(f".L{name}.save", save, state, tables)
    task = editions[0].task
    if adapts:
        chosen, select = arch.answer, arch.adapt(f"{label}_adapt")
    else:
        told = arch.in_interrupt(constants.preempt, constants.interrupt, INTERRUPTS) if tells else []
        chosen, select = arch.chosen, arch.select(constants.current, constants.tgid, f"{label}_row", told)
    lines += consistency.kept(arch, task, select) if task else select
    for edition in others:
        to = f".L{name}.to{edition.number}" if save else edition.name
        lines += [f"\tcmp ${edition.number}, %{chosen}", f"\tje {to}"]
    if save:
        for edition in (editions[0], *others):
            to = f".L{name}.to{edition.number}"
            if edition in others:
                lines.append(f"{to}:")
                tables.unwind(to, deeper(state, len(save), arch))
            lines += [*pushing(f"{to}.restore", restore, state, tables, len(save)), f"\tjmp {edition.name}"]
        lines.append("\tint3")
    lines.append(f"\t.size {name}, . - {name}")
    return lines
