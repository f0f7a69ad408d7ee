"""Statistics of repeated measurements: medians and quartiles, differences within a round, drift."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Spread:
    """A median with its quartiles and the least value seen."""

    low: float
    median: float
    high: float
    least: float

    @property
    def relative(self) -> float:
        """Return how far the quartiles are apart, in parts of the median."""
        return (self.high - self.low) / self.median if self.median else float("inf")


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of at least two values."""
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return Spread(low, middle, high, min(values))


def differences(one: Sequence[float], other: Sequence[float]) -> list[float]:
    """Return what ONE takes more than OTHER in each round: what slows a whole round down is in both."""
    return [a - b for a, b in zip(one, other, strict=True)]


def drift(values: Sequence[float]) -> float:
    """Return how far the medians of the first and the second half are apart, in parts of the smaller one."""
    half = len(values) // 2
    first, second = median(values[:half]), median(values[half:])
    return abs(first - second) / min(first, second)
