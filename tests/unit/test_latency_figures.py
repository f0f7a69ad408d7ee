"""What is said of measured latencies: no more than the counts allow."""

from __future__ import annotations

import argparse
import random
from collections import Counter
from collections.abc import Iterable
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from dynamos_ng import latency
from dynamos_ng.cli import ab, tables
from dynamos_ng.latency import (
    ALIKE,
    FASTER,
    FEWER,
    MORE,
    SLOWER,
    UNKNOWN,
    EditionLatency,
    Latency,
    bounds,
    bucket,
    quantile,
    report,
)


def measured(number: int, times: Iterable[int], errors: int = 0, lost: int = 0) -> EditionLatency:
    counts = Counter(map(bucket, times))
    return EditionLatency(number, counts.total(), errors, lost, tuple(sorted(counts.items())))


def both(first: EditionLatency, second: EditionLatency) -> latency.Report:
    return report(Latency("f", 10.0, (first, second)))


def normal(middle: float, count: int, seed: int = 1) -> list[int]:
    chance = random.Random(seed)
    return [max(1, int(chance.gauss(middle, middle / 10))) for _ in range(count)]


@given(st.integers(0, (1 << 39) - 1))
def test_a_time_is_in_its_bucket_which_is_narrow(time: int) -> None:
    low, high = bounds(bucket(time))
    assert low <= time < high
    assert high - low <= max(1, low / 16)


@given(st.integers(0, 1 << 62), st.integers(0, 1 << 62))
def test_longer_times_are_in_no_earlier_bucket(one: int, other: int) -> None:
    assert (bucket(one) <= bucket(other)) == (one <= other) or bucket(one) == bucket(other)
    assert bucket(one) < latency.BUCKETS


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=300), st.sampled_from(latency.QUANTILES))
def test_a_quantile_is_that_of_the_sorted_times(times: list[int], share: float) -> None:
    found = quantile(measured(1, times).histogram, share)
    ordered = sorted(times)
    true = ordered[min(len(times), -(-len(times) * int(100 * share) // 100)) - 1]
    assert found.time == sum(bounds(bucket(true))) / 2
    assert found.low is None or found.low <= found.time
    assert found.high is None or found.high >= found.time


def test_the_interval_holds_the_true_quantile_as_often_as_it_says() -> None:
    """The median of an exponential distribution is known; 95 % of 400 samples are 380."""
    chance, mean = random.Random(7), 1e6
    held = 0
    for _ in range(400):
        found = quantile(measured(1, [int(chance.expovariate(1 / mean)) for _ in range(500)]).histogram, 0.5)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0.693147 * mean < found.high
    assert held >= 376


def test_a_slower_edition_is_called_so_and_by_how_much() -> None:
    found = both(measured(1, normal(10_000, 2000)), measured(2, normal(15_000, 2000, 2)))
    assert [one.verdict for one in found.comparisons] == [SLOWER] * 3
    median = found.comparisons[0]
    assert median.low is not None
    assert median.high is not None
    assert median.low < 1.5 < median.high
    assert median.high - median.low < 0.3
    back = both(measured(1, normal(15_000, 2000)), measured(2, normal(10_000, 2000)))
    assert [one.verdict for one in back.comparisons] == [FASTER] * 3


def test_the_same_is_called_no_difference() -> None:
    found = both(measured(1, normal(10_000, 2000)), measured(2, normal(10_000, 2000, 2)))
    assert {one.verdict for one in found.comparisons} == {ALIKE}


@pytest.mark.parametrize("calls", [0, 1, 5, 40])
def test_few_calls_allow_no_verdict_on_the_tail(calls: int) -> None:
    found = both(measured(1, normal(10_000, 2000)), measured(2, normal(90_000, calls)))
    assert found.comparisons[-1].verdict == UNKNOWN
    assert found.comparisons[0].verdict == (SLOWER if calls == 40 else UNKNOWN)


def test_errors_are_compared_as_shares() -> None:
    times = normal(10_000, 1000)
    assert both(measured(1, times), measured(2, times, 300)).errors == ((2, MORE),)
    assert both(measured(1, times, 300), measured(2, times)).errors == ((2, FEWER),)
    assert both(measured(1, times, 10), measured(2, times, 12)).errors == ((2, ALIKE),)
    assert both(measured(1, times), measured(2, [])).errors == ((2, UNKNOWN),)


def shown(found: latency.Report, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    output = StringIO()
    monkeypatch.setattr(tables, "console", Console(width=80, file=output, highlight=False))
    ab.show(found)
    lines = output.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    return [line.rstrip() for line in lines]


def test_what_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(both(measured(1, normal(10_000, 2000)), measured(2, normal(30_000, 900, 2), 450, 3)), monkeypatch)
    text = "\n".join(lines)
    assert lines[0] == "f for 10 s; the times include the probes' own"
    assert "v2 against v1, p50: slower: 2." in text
    assert "v2 against v1, errors: more errors" in text
    assert "3 lost" in text
    assert "50 %" in text
    assert "8.19 µs v1" in text


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (7680, 8704, "7.68-8.7 µs"), (900, 1100, "0.9-1.1 µs"), (None, 5e6, "?-5 ms"), (12, None, "12-? ns"),
        (0, 1, "0-1 ns"),
    ],
)
def test_an_interval_has_one_unit(low: float | None, high: float | None, said: str) -> None:
    assert latency.interval(low, high) == said


def test_nothing_measured_is_shown_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(both(measured(1, []), measured(2, [])), monkeypatch)
    assert lines[-1] == f"v2 against v1, errors: {UNKNOWN}"


@pytest.mark.parametrize("text", ["", "v", "1,", "v1;v2", "one", "1000"])
def test_what_is_no_list_of_editions(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is no list of editions like v1,v2"):
        ab.editions(text)


def test_editions_are_given_either_way() -> None:
    assert ab.editions("v2,1") == (1, 2)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    ab.png(both(measured(1, normal(10_000, 200)), measured(2, [])), tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
