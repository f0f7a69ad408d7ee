"""Clones of the lab's kernels: objdump, which knows nothing of the rewriter, finds every instruction in its place."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from linked import Linked

from dynamos_ng import image, survey
from dynamos_ng.errors import Refusal
from dynamos_ng.lab import saved
from dynamos_ng.rewrite import Original, Symbol, examine

SEED = 3
SAMPLE = 600
BATCH = 300


#: What worker processes compare with, and where: they are forked, and inherit it.
_work: tuple[image.Kernel, Path] | None = None


def _take(kernel: image.Kernel, folder: Path) -> None:
    global _work  # noqa: PLW0603
    _work = kernel, folder / str(os.getpid())
    _work[1].mkdir()


def _agreed(functions: Sequence[Symbol]) -> tuple[int, int]:
    """Return how many of the functions have a clone and how many instructions agree; the others' refusals tell
    why."""
    assert _work is not None
    kernel, folder = _work
    originals: list[Original] = []
    for symbol in functions:
        try:
            originals.append(examine(kernel, symbol))
        except Refusal as refusal:
            assert refusal.kind.strip(), symbol.name
            assert refusal.reason.strip(), symbol.name
    return len(originals), Linked(kernel, originals, folder).check() if originals else 0


@pytest.mark.parametrize("name", ["6.1", "6.12", "7.2", "6.1-i386"])
def test_linked_clones_do_what_their_originals_do(name: str, thorough: bool, tmp_path: Path) -> None:
    kernel = image.saved(saved.ensure(name))
    functions = list(survey.census(kernel).functions)
    if not thorough:
        special = [one for one in functions if kernel.fixups(one.address, one.end)]
        ending = ("get_signal", "x64_sys_call", "ia32_sys_call")  # in some of their calls, the task ends
        special += [one for one in functions if one.name in ending]
        functions = random.Random(SEED).sample(functions, SAMPLE) + special
    batches = [functions[at : at + BATCH] for at in range(0, len(functions), BATCH)]
    with multiprocessing.get_context("fork").Pool(min(os.cpu_count() or 1, 2), _take, (kernel, tmp_path)) as pool:
        done = list(pool.imap_unordered(_agreed, batches))
    clones, instructions = (sum(counts) for counts in zip(*done, strict=True))
    print(f"{name}: {clones} clones of {len(functions)} functions, {instructions} instructions agree")
    assert clones > 0.97 * len(functions)


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
        (changed(r"^\tincq .*8\(%r11\)(\n\tcall)", r"\tnop\1"), "leaves uncounted"),
        (changed(r"(__ex_table,.*\n.*\n)(?:.*\n){3}", r"\1"), "__ex_table"),
        (changed(r"(__bug_table,.*\n.*\n.*\n.*\n\t.short \d+)", r"\g<1>1"), "__bug_table"),
        (changed(r"(\.orc_unwind,.*\n.*\n(?:.*\n){4}\t\.byte 0x..,0x)..", r"\g<1>7f"), "unwinding"),
    ],
)
def test_a_wrong_clone_is_found(edit: Callable[[str], str], said: str, tmp_path: Path) -> None:
    kernel = image.saved(saved.ensure())
    names = ("vfs_read", "do_sys_openat2", "strncpy_from_user", "pipe_read", "schedule", "__fput", "get_signal")
    originals = [examine(kernel, kernel.function(name)) for name in names]
    assert Linked(kernel, originals, tmp_path).check() > 500
    with pytest.raises(AssertionError, match=said):
        Linked(kernel, originals, tmp_path, edit).check()
