"""The cost of a redirected call in a kernel, in instructions: the same wherever this runs, so it can be a test."""

from __future__ import annotations

from bench import calls, lab
from dynamos_ng.lab import root


def test_a_redirected_call_takes_a_dozen_instructions_more() -> None:
    found = lab.take(calls.NAME, root.DEFAULT, 100, counted=True)
    ways = found["ways"]
    assert calls.noise(ways).quiet, "all is as it was each time"
    assert ways["one"]["during"]["low"] == ways["one"]["during"]["high"], "instructions are counted"
    figures = {figure.name: figure for figure in calls.ways(ways, found["machine"])}
    assert [name for name, figure in figures.items() if figure.met() is False] == []
    assert figures["added/one"].value > 5
    assert figures["added/kprobe"].value > 5 * figures["added/first"].value
