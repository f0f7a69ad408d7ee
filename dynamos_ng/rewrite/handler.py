"""The redirection handler: which edition does this process run?

Reached by the trampoline's direct jump. It saves the registers that are not free at the entry of a C function; for a
function that is perhaps not C (it has no ftrace site), all that it changes. Where a BPF program is to choose by the
arguments, these are what it saves, and it calls dynamos.ko (kmod/adapt.c).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from dynamos_ng.rewrite import consistency
from dynamos_ng.rewrite.writer import Edition, Tables, deeper, pushing
from dynamos_ng.uapi import INTERRUPTS

#: Handlers and editions begin with a line of the caches for code, and are jumped to: measured, that is the fastest.
_ALIGN = "\t.balign 64, 0xcc"


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
) -> list[list[str]]:
    """Return the text that stands before each edition; before the first one that is LABEL_handler.

    With ADAPTS the function must be C, which PRESERVE denies. If it TELLS interrupts, calls made in them are of a
    policy class of their own.
    """
    name, row = f"{label}_handler", f"{label}_row"
    arch = tables.arch
    others = [edition for edition in editions if edition.number > 1]
    task = editions[0].task
    chosen, saved, compare = arch.chosen, arch.saved(preserve, bool(task)), list[str]()
    if adapts:
        chosen, choose, saved = arch.answer, arch.adapt(f"{label}_adapt"), arch.arguments[::-1]
    elif others or task:
        told = arch.in_interrupt(constants.preempt, constants.interrupt, INTERRUPTS) if tells else []
        choose = arch.select(constants.current, constants.tgid, row, told)
        if len(others) == 1 and not task:
            compare = arch.compare(row, others[0].number)
        else:
            choose += arch.fetch(row)
        if task:
            choose = consistency.kept(arch, task, choose)
    else:  # there is nothing to choose
        choose, saved, preserve = [], (), False
    save = [f"\tpush %{register}" for register in saved] + ["\tpushf"] * preserve
    restore = ["\tpopf"] * preserve + [f"\tpop %{register}" for register in reversed(saved)]
    tables.unwind(name, state)
    lines = [_ALIGN, f"\t.globl {name}", f"\t.type {name}, @function", f"{name}:"]
    lines += [*pushing(f".L{name}.save", save, state, tables), *choose]
    restored = partial(pushing, lines=restore, state=state, tables=tables, depth=len(save))
    texts = [[_ALIGN] for _ in others]
    if compare and not preserve:  # what restores registers leaves the flags
        lines += [*compare, *restored(f".L{name}.restore"), f"\tjne {editions[0].direct}"]
        lines.append(f"\tjmp {others[0].direct}")
    else:
        for text, edition in zip(texts, others, strict=True):
            to = f".L{name}.to{edition.number}" if save else edition.direct
            lines += [*(compare or [f"\tcmp ${edition.number}, %{chosen}"]), f"\tje {to}"]
            if save:
                tables.unwind(to, deeper(state, len(save), arch))
                text += [f"{to}:", *restored(f"{to}.restore")]
        lines += [*restored(f".L{name}.restore"), f"\tjmp {editions[0].direct}"]
    lines += ["\tint3", f"\t.size {name}, . - {name}", _ALIGN]
    return [lines, *texts]
