"""What the benchmarks in guests make of what a guest has written."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest

from bench import calls, install, policy
from bench.picture import group
from bench.report import Figure


def named(figures: Any) -> dict[str, Figure]:
    """Return figures by name; each has one of its own, and those that are drawn together stand together."""
    found = list(figures)
    groups = [group(figure) for figure in found]
    assert len({figure.name for figure in found}) == len(found)
    assert sum(a != b for a, b in pairwise(groups)) == len(set(groups)) - 1
    return {figure.name: figure for figure in found}


def way(before: float, during: float) -> dict[str, Any]:
    return {"before": {"median": before, "low": before}, "during": {"median": during, "low": during}}


def test_what_is_added_to_a_call_has_its_targets() -> None:
    taken = {"nothing": way(300, 300), "one": way(300, 314), "first": way(300, 317), "second": way(300, 314),
             "fentry": way(300, 420)}  # fmt: skip
    figures = named(calls.ways(taken, "x86_64"))
    assert {name: figure.met() for name, figure in figures.items()} == {
        "lseek": None, "added/one": True, "added/first": False, "added/second": True,
        "added/fentry": None,
        "share/one-of-fentry": True, "share/first-of-fentry": False,
        "share/second-of-fentry": True,
    }  # fmt: skip
    assert named(calls.ways(taken, "i686"))["added/first"].met()


def test_counts_of_the_original_that_differ_are_noise() -> None:
    assert calls.noise({"nothing": way(300, 300), "one": way(301, 314)}).quiet
    assert not calls.noise({"nothing": way(300, 300), "one": way(310, 314)}).quiet


@pytest.mark.parametrize(
    ("load", "before", "met"), [("brk", 300, True), ("brk", 250, False), ("clone", 2500, True), ("read", 700, False)]
)
def test_a_function_of_the_table_is_below_the_papers_share_and_our_own(load: str, before: float, met: bool) -> None:
    table = {load: {"function": load, "before": before, "added": 14}}
    assert named(calls.table(table))[f"table3/{load}"].met() is met


def test_installing_grows_linearly_or_not() -> None:
    def row(ns: float) -> dict[str, float]:
        return {"activate-s": 0.1, "activate-ns": ns, "deactivate-s": 0.1, "deactivate-ns": ns, "livepatch-s": 1.0}

    timed = {"functions": {"1": row(5), "9": row(8)}, "tasks": {"1": row(5), "9": row(8)},
             "daemon": {"1": {"memory": 1, "cpu": 0.1}}}  # fmt: skip
    counted = {"functions": {"1": row(10), "5": row(50), "9": row(90)},
               "tasks": {"1": row(90), "5": row(1), "9": row(89)}}  # fmt: skip
    figures = named(install.figures(counted, timed))
    assert figures["growth/functions"].value == 10
    assert figures["linear/functions"].met()
    assert figures["linear/tasks"].met() is False
    assert figures["share/tasks/9"].value == pytest.approx(8e-9), "the stop"
    assert figures["request/functions/9"].value == pytest.approx(0.1)


def test_classification_is_a_difference() -> None:
    lives = {when: {name: {"median": median} for name in policy.LIVES} for when, median in (("off", 100), ("on", 103))}
    figures = named(policy.figures({"lives": lives}, {"rates": dict.fromkeys(policy.RATES, 1.0)}))
    assert (figures["added/clone"].value, figures["share/execve"].value) == (3, 3)
