"""The stack's depth that the rewriter works out by itself is what the kernel's own unwind data say."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from dynamos_ng.errors import Refusal
from dynamos_ng.image import Kernel
from dynamos_ng.lab import saved
from dynamos_ng.memory import Elf
from dynamos_ng.rewrite import Original, examine
from dynamos_ng.rewrite.depth import depths
from dynamos_ng.survey import census

SAMPLE = 1500
#: The base register of an entry whose stack pointer is the base (ORC_REG_SP).
FROM_STACK_POINTER = 5
#: It returns to an address that it has put on the stack itself, and its hint tells of the stack behind that.
HINTED = "ftrace_regs_caller"


def differences(original: Original) -> Counter[str]:
    """Return how many instructions agree, differ, or have a depth that was not found."""
    leads: dict[int, Sequence[int]] = {jump: original.indirection.targets(jump) for jump in original.indirection.jumps}
    leads.update((key.address, (key.target,)) for key in original.keys)
    leads.update((fixup.address, (fixup.fixup,)) for fixup in original.fixups)
    found = depths(original.body, original.arch, leads)
    counts: Counter[str] = Counter()
    for part in original.body.parts:
        state = bytes(6)
        for instruction in part.instructions:
            state = original.unwind.get(instruction.address, state)
            if state[4] & 15 != FROM_STACK_POINTER or instruction.address not in found:
                continue
            depth = found[instruction.address]
            told = int.from_bytes(state[:2], "little", signed=True) - original.arch.word
            counts["unknown" if depth is None else "same" if depth == told else "different"] += 1
    return counts


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    folder: Path = saved.ensure()
    return Kernel.saved(folder / "kallsyms", Elf(folder / "image.elf"), folder / "blacklist")


def test_depths_agree_with_the_kernels_unwind_data(kernel: Kernel, thorough: bool) -> None:
    functions = [symbol for symbol in census(kernel).functions if symbol.name != HINTED]
    random.Random(1).shuffle(functions)
    counts: Counter[str] = Counter()
    for symbol in functions if thorough else functions[:SAMPLE]:
        try:
            counts += differences(examine(kernel, symbol))
        except Refusal:
            continue
    assert counts["different"] == 0
    assert counts["same"] > 20 * SAMPLE
    assert counts["unknown"] * 500 < counts["same"]
