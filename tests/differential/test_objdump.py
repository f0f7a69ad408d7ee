"""Clones of the lab's kernels: objdump, which knows nothing of the rewriter, finds every instruction in its place."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from linked import Linked

from dynamos_ng import image, survey
from dynamos_ng.errors import Refusal
from dynamos_ng.lab import saved
from dynamos_ng.rewrite import Original, examine

SEED = 3
SAMPLE = 600
BATCH = 300


@pytest.mark.parametrize("arch", ["x86_64", "i386"])
def test_linked_clones_do_what_their_originals_do(arch: str, thorough: bool, tmp_path: Path) -> None:
    kernel = image.saved(saved.ensure(arch))
    functions = list(survey.census(kernel).functions)
    if not thorough:
        special = [one for one in functions if kernel.fixups(one.address, one.end)]
        functions = random.Random(SEED).sample(functions, SAMPLE) + special
    originals: dict[int, Original] = {}
    compared = instructions = 0
    while functions or originals:
        while functions and len(originals) < BATCH:
            symbol = functions.pop()
            try:
                originals[symbol.address] = examine(kernel, symbol)
            except Refusal:
                continue
        if originals:
            instructions += Linked(kernel, list(originals.values()), tmp_path).check()
        compared += len(originals)
        originals.clear()
    print(f"{arch}: {compared} clones, {instructions} instructions agree")
    assert compared > SAMPLE * 0.9


def changed(pattern: str, to: str, which: int = 0) -> Callable[[str], str]:
    """Return an edit of the first text that matches, or of a later one."""

    def edit(text: str) -> str:
        found = list(re.finditer(pattern, text, re.MULTILINE))[which]
        return text[: found.start()] + found.expand(to) + text[found.end() :]

    return edit


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (changed(r"^\tcall 0x(\w+)\w$", r"\tcall 0x\g<1>f"), "calls"),
        (changed(r"^\tj(\w+) (\.Lf0_v1\.[0-9a-f]+)$", r"\tj\1 \2 + 1"), "is elsewhere"),
        (changed(r"^\tjne ", "\tje "), "differs"),
        (changed(r"^(\t\.byte 0x48,0x)(?!ff)..", r"\g<1>ff"), "differs"),
        (changed(r"^\t(incq|addl) .*8\(%r11\)$", "\tnop", 0), "leaves"),
        (changed(r"(__ex_table,.*\n.*\n)(?:.*\n){3}", r"\1"), "__ex_table"),
        (changed(r"(__bug_table,.*\n.*\n.*\n.*\n\t.short \d+)", r"\g<1>1"), "__bug_table"),
        (changed(r"(\.orc_unwind,.*\n.*\n(?:.*\n){4}\t\.byte 0x..,0x)..", r"\g<1>7f"), "unwinding"),
    ],
)
def test_a_wrong_clone_is_found(edit: Callable[[str], str], said: str, tmp_path: Path) -> None:
    kernel = image.saved(saved.ensure())
    names = ("vfs_read", "do_sys_openat2", "strncpy_from_user", "pipe_read", "schedule", "__fput")
    originals = [examine(kernel, kernel.function(name)) for name in names]
    assert Linked(kernel, originals, tmp_path).check() > 500
    with pytest.raises(AssertionError, match=said):
        Linked(kernel, originals, tmp_path, edit).check()
