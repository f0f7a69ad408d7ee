"""How long calls of an edition take, from counts by bucket; and what may be said of two editions.

Buckets are those of bpf/latency.c: each power of two of nanoseconds has STEPS of them, so a time is known to 6 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

STEPS = 16
BUCKETS = 576
QUANTILES = (0.50, 0.95, 0.99)
#: Of the interval that is told with each figure.
CONFIDENCE = 0.95
#: So many standard deviations to either side hold that share of a normal distribution.
_Z = 1.959964

SLOWER, FASTER, ALIKE, UNKNOWN = "slower", "faster", "no difference seen", "too few calls to tell"
MORE, FEWER = "more errors", "fewer errors"


def bucket(nanoseconds: int) -> int:
    """Return the bucket of a time, as bpf/latency.c does."""
    power = max(nanoseconds.bit_length() - 1, 0)
    shift = power - (STEPS.bit_length() - 1)
    if shift < 0:
        return nanoseconds
    return min((shift + 1) * STEPS + (nanoseconds >> shift) % STEPS, BUCKETS - 1)


def bounds(index: int) -> tuple[int, int]:
    """Return the shortest time of a bucket, and the shortest that is too long for it; nanoseconds."""
    if index < STEPS:
        return index, index + 1
    shift = index // STEPS - 1
    low = (STEPS + index % STEPS) << shift
    return low, low + (1 << shift)


@dataclass(frozen=True)
class EditionLatency:
    """How long the calls of an edition took: counts by bucket, those that are not 0, in order.

    `errors` of the calls returned what, read as an int, is an errno. `lost` ones returned, but nobody saw them begin.
    """

    number: int
    calls: int
    errors: int
    lost: int
    histogram: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Latency:
    """The calls of a function's editions over the same time."""

    function: str
    seconds: float
    editions: tuple[EditionLatency, ...]


@dataclass(frozen=True)
class Quantile:
    """The time within which the share `share` of calls returned, and its interval of confidence; nanoseconds.

    None is what the number of calls does not allow to tell.
    """

    share: float
    time: float | None
    low: int | None
    high: int | None


@dataclass(frozen=True)
class Share:
    """A share of calls, 0 to 1, and its interval of confidence."""

    share: float
    low: float
    high: float


@dataclass(frozen=True)
class Summary:
    """What was measured of one edition."""

    edition: int
    calls: int
    lost: int
    errors: Share
    quantiles: tuple[Quantile, ...]


@dataclass(frozen=True)
class Comparison:
    """An edition against the first of those measured: how the share `share` of calls differs, and by what factor.

    The factor lies between `low` and `high` if both intervals hold; None where nothing can be told.
    """

    edition: int
    base: int
    share: float
    verdict: str
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Report:
    """All of it; `errors` has for each edition but the first how its errors differ."""

    function: str
    seconds: float
    confidence: float
    editions: tuple[Summary, ...]
    comparisons: tuple[Comparison, ...]
    errors: tuple[tuple[int, str], ...]
    histograms: tuple[EditionLatency, ...]


def _at(counts: Sequence[tuple[int, int]], rank: int) -> int | None:
    """Return the bucket of the call that comes RANKth (from 1) by its time; None if there is no such call."""
    if rank < 1:
        return None
    for index, count in counts:
        if rank <= count:
            return index
        rank -= count
    return None


def quantile(counts: Sequence[tuple[int, int]], share: float) -> Quantile:
    """Return a quantile of counts by bucket, which are in order. The interval is that of order statistics."""
    calls = sum(count for _, count in counts)
    middle = _at(counts, math.ceil(calls * share))
    spread = _Z * math.sqrt(calls * share * (1 - share))
    low, high = _at(counts, math.floor(calls * share - spread)), _at(counts, math.ceil(calls * share + spread) + 1)
    return Quantile(
        share,
        None if middle is None else sum(bounds(middle)) / 2,
        None if low is None else bounds(low)[0],
        None if high is None else bounds(high)[1],
    )


def proportion(part: int, whole: int) -> Share:
    """Return a share with Wilson's interval."""
    if not whole:
        return Share(0.0, 0.0, 1.0)
    share, weight = part / whole, _Z * _Z / whole
    centre = (share + weight / 2) / (1 + weight)
    spread = _Z / (1 + weight) * math.sqrt(share * (1 - share) / whole + weight / (4 * whole))
    return Share(share, max(0.0, centre - spread), min(1.0, centre + spread))


def compare(edition: int, one: Quantile, base: int, other: Quantile) -> Comparison:
    """Compare a quantile with that of the base: only intervals that do not meet differ."""
    if one.low is None or one.high is None or other.low is None or other.high is None:
        return Comparison(edition, base, one.share, UNKNOWN, None, None)
    verdict = SLOWER if one.low >= other.high else FASTER if one.high <= other.low else ALIKE
    low = one.low / other.high
    high = one.high / other.low if other.low else None
    return Comparison(edition, base, one.share, verdict, low, high)


def _errors(one: Share, other: Share) -> str:
    return MORE if one.low > other.high else FEWER if one.high < other.low else ALIKE


def report(measured: Latency) -> Report:
    """Return what may be said of a measurement; the first edition is what the others are held against."""
    editions = tuple(
        Summary(
            one.number, one.calls, one.lost, proportion(one.errors, one.calls),
            tuple(quantile(one.histogram, share) for share in QUANTILES),
        )
        for one in measured.editions
    )  # fmt: skip
    base, *others = editions
    comparisons = tuple(
        compare(one.edition, mine, base.edition, its)
        for one in others
        for mine, its in zip(one.quantiles, base.quantiles, strict=True)
    )
    errors = tuple(
        (one.edition, _errors(one.errors, base.errors) if one.calls and base.calls else UNKNOWN) for one in others
    )
    return Report(
        measured.function, measured.seconds, CONFIDENCE, editions, comparisons, errors, measured.editions
    )


def octaves(counts: Iterable[tuple[int, int]]) -> dict[int, int]:
    """Return counts by powers of two: the shortest time of each, and its calls."""
    found: dict[int, int] = {}
    for index, count in counts:
        low = bounds(index)[0]
        power = 1 << (low.bit_length() - 1) if low else 0
        found[power] = found.get(power, 0) + count
    return found


_UNITS = (("s", 1e9), ("ms", 1e6), ("µs", 1e3), ("ns", 1))


def duration(nanoseconds: float) -> str:
    """Return a time with three digits and its unit."""
    unit, size = next((one for one in _UNITS if nanoseconds >= one[1]), _UNITS[-1])
    return f"{nanoseconds / size:.3g} {unit}"


def interval(low: float | None, high: float | None) -> str:
    """Return two times in one unit, ``?`` for what is not known."""
    unit, size = next((one for one in _UNITS if (high or low or 0) >= one[1]), _UNITS[-1])
    return "-".join("?" if bound is None else f"{bound / size:.3g}" for bound in (low, high)) + f" {unit}"
