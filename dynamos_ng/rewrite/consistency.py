"""Consistency: within a group, a task keeps to one edition from its outermost call until that call has ended.

Each task has a state of four bytes, which lie behind the slot ``dynamos_tasks`` at index PID, and for a CPU's idle task
(PID 0 on all of them) at index -1 - CPU (kmod/group.c):

    depth     2 bytes  how many of the group's calls are under way
    edition   1 byte   the one that the outermost of them runs
    pinned    1 byte   bit 0: the task was inside an original when the group was activated, and stays with edition 1

Only the task itself and interrupts on top of it write depth and edition. An interrupt's calls are over when it returns;
it may at most change an edition that was not yet in force, so that is written once more when the depth says it is.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamos_ng.arch import Arch

#: The slot that the module fills with the table's address.
SLOT = "dynamos_tasks"
_EDITION = 2
#: Bits of a state seen as 4 bytes that keep a task to its edition.
_KEPT = 0x0100FFFF


def state(arch: Arch, current: int, pid: int, cpu: int) -> list[str]:
    """Return text that leaves the address of the running task's state in the first register of ``arch.pair``.

    CURRENT is the per-CPU offset of the current task's pointer, PID and CPU those of the thread's number and of its CPU
    in a task. Changes both registers and the flags.
    """
    base, index = (f"%{register}" for register in arch.pair)
    number = f"{index}d" if arch.word == 8 else index
    segment, slot = ("%gs", f"{SLOT}(%rip)") if arch.word == 8 else ("%fs", SLOT)
    return [
        f"\tmov {segment}:{current:#x}, {base}",
        f"\tmov {pid:#x}({base}), {number}",
        f"\ttest {number}, {number}",
        "\tjne 1f",
        f"\tmov {cpu:#x}({base}), {number}",
        f"\tnot {index}",
        "1:",
        f"\tmov {slot}, {base}",
        f"\tlea ({base},{index},4), {base}",
    ]


def kept(arch: Arch, where: Sequence[str], select: Sequence[str]) -> list[str]:
    """Return text that leaves an edition's number in ``arch.chosen``: the one that the task keeps, or else SELECT's."""
    base, index = arch.pair
    number = f"{index}d" if arch.word == 8 else index
    return [
        *where,
        f"\ttestl ${_KEPT:#x}, (%{base})",
        f"\tmovzbl {_EDITION}(%{base}), %{number}",
        "\tjne 2f",
        *select,
        "2:",
    ]


def enter(arch: Arch, where: Sequence[str], number: int) -> list[str]:
    """Return text that notes the beginning of a call of edition NUMBER."""
    base = arch.pair[0]
    return [
        *where,
        f"\tcmpw $0, (%{base})",
        "\tjne 2f",
        f"\tmovb ${number}, {_EDITION}(%{base})",
        f"\tincw (%{base})",
        f"\tmovb ${number}, {_EDITION}(%{base})",
        "\tjmp 3f",
        "2:",
        f"\tincw (%{base})",
        "3:",
    ]


def leave(arch: Arch, where: Sequence[str]) -> list[str]:
    """Return text that notes the end of a call."""
    return [*where, f"\tdecw (%{arch.pair[0]})"]


def saving(arch: Arch, preserve: bool, lines: Sequence[str]) -> list[str]:
    """Return LINES with both registers saved around them, and the flags with PRESERVE."""
    first = [f"\tpush %{register}" for register in arch.pair] + ["\tpushf"] * preserve
    last = ["\tpopf"] * preserve + [f"\tpop %{register}" for register in reversed(arch.pair)]
    return [*first, *lines, *last]
