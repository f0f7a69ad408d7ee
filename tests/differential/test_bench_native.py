"""The native benchmark times the generator's own text, and notices when calls go where they were not to go."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

from bench import native, program
from bench.program import Loop, Program, Run, Subject
from dynamos_ng.arch import Arch, known
from dynamos_ng.errors import DynamosError
from dynamos_ng.rewrite import generate

BOTH = pytest.mark.parametrize("arch", known.ALL, ids=lambda arch: arch.name)
SUBJECTS = (
    Subject("direct"), Subject("again"), Subject("alone", 1), Subject("third", 3, 3), Subject("first", 3),
    Subject("mixed", 3, 0), Subject("saving", 2, 2, c=False), Subject("registers", peer="registers"),
    Subject("retpoline", peer="retpoline"),
)  # fmt: skip
LOOPS = (
    *(Loop(one.name, dependent) for one in SUBJECTS for dependent in (False, True) if one.chosen), Loop(""),
    Loop("mixed", pool=4096),
)  # fmt: skip
ROUNDS, BATCH, WARM = 20, 100, 10


def tiny(arch: Arch, work: Path) -> tuple[Program, Run]:
    built = Program(arch, SUBJECTS, LOOPS, work)
    return built, built.run(min(os.sched_getaffinity(0)), ROUNDS, BATCH, WARM)


@BOTH
def test_each_call_is_counted_in_the_edition_of_the_process_s_class(arch: Arch, tmp_path: Path) -> None:
    _built, run = tiny(arch, tmp_path)
    calls = ROUNDS * (BATCH + WARM) * program.UNROLL
    both = (2 * calls, 2 * calls)
    assert set(run.calls.values()) == {calls}
    assert run.uses["alone", 1] == both
    assert [run.uses["third", number] for number in (1, 2, 3)] == [(0, 0), (0, 0), both]
    assert [run.uses["first", number] for number in (1, 2, 3)] == [both, (0, 0), (0, 0)]
    assert [run.uses["saving", number] for number in (1, 2)] == [(0, 0), both]
    mixed = [run.uses["mixed", number] for number in (1, 2, 3)]
    assert sum(entered for entered, _exited in mixed) == calls
    assert all(calls / 6 < entered == exited for entered, exited in mixed)
    assert run.results[Loop("third")] == 7 * 3 + 3
    assert run.results[Loop("registers")] == 7 * 3 + 2


@BOTH
def test_what_saves_registers_takes_several_times_as_long(arch: Arch, tmp_path: Path) -> None:
    """An order of magnitude lies between them; a factor of two no noise can hide."""
    _built, run = tiny(arch, tmp_path)
    least = {loop.subject: min(ticks) for loop, ticks in run.ticks.items() if not loop.dependent}
    assert least["registers"] - least["direct"] > 2 * (least["alone"] - least["direct"])
    assert all(len(ticks) == ROUNDS and min(ticks) > 0 for ticks in run.ticks.values())


@BOTH
@pytest.mark.parametrize("where", ["first_v1", "third_v3"])
def test_text_that_does_not_count_is_noticed(
    arch: Arch, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_exits(*arguments: Any) -> str:
        text = generate(*arguments)
        at = text.index(f".L{where}.exit:\n")
        # As long as what counts, so that a displacement is where it was.
        compares = {"incq ": "cmpq $0, ", "addl ": "cmpl "}
        return text[:at] + re.sub("incq |addl ", lambda found: compares[found[0]], text[at:], count=1)

    monkeypatch.setattr("bench.program.generate", without_exits)
    with pytest.raises(DynamosError, match=f"{where[:5]}.*its editions count"):
        tiny(arch, tmp_path)


@BOTH
def test_a_wrong_edition_is_noticed(arch: Arch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.program.generate", lambda *a: generate(*a).replace("cmp $3, ", "cmp $4, "))
    with pytest.raises(DynamosError, match=r"third.*its editions count"):
        tiny(arch, tmp_path)


@BOTH
def test_the_benchmark_makes_all_its_figures(arch: Arch) -> None:
    found = native.measure(arch, native.QUICK, min(os.sched_getaffinity(0)))
    names = [figure.name for figure in found.figures]
    assert len(set(names)) == len(names)
    assert {"independent/direct", "independent/last-of-16", "dependent/retpoline", "processes/4096/mixed16",
            "paper/redirected", "independent/last-of-2-of-registers"} <= set(names)  # fmt: skip
    assert [figure for figure in found.figures if figure.target is not None]
    assert found.details["calls"] > 100_000
