"""Two reports of one benchmark side by side."""

from __future__ import annotations

from dataclasses import dataclass

from rich.text import Text

from bench.picture import number
from bench.report import Figure, Report
from dynamos_ng.cli.tables import console, plain_table
from dynamos_ng.errors import UsageError


@dataclass(frozen=True)
class Pair:
    """A figure before and after; None where a report has not got it."""

    name: str
    before: Figure | None
    after: Figure | None

    @property
    def change(self) -> float | None:
        """Return by which part of the first the second is larger."""
        if self.before is None or self.after is None or not self.before.value:
            return None
        return self.after.value / self.before.value - 1

    @property
    def apart(self) -> bool:
        """Return whether the two differ by more than each varied by itself."""
        one, two = self.before, self.after
        if one is None or two is None:
            return True
        lows = [figure.value if figure.low is None else figure.low for figure in (one, two)]
        highs = [figure.value if figure.high is None else figure.high for figure in (one, two)]
        return max(lows) > min(highs)


def pairs(before: Report, after: Report) -> list[Pair]:
    """Return the figures of both by name, in the order of the first; UsageError for two benchmarks' reports."""
    if before.benchmark != after.benchmark:
        raise UsageError(f"bench compare: {before.benchmark} and {after.benchmark} are not one benchmark")
    ones, twos = ({figure.name: figure for figure in report.figures} for report in (before, after))
    return [Pair(name, ones.get(name), twos.get(name)) for name in {**ones, **twos}]


def lost(before: Report, after: Report) -> list[str]:
    """Return the figures that reached their targets before and do not any more."""
    found = []
    for pair in pairs(before, after):
        met = pair.before and pair.before.met(before.noise.quiet)
        if met and pair.after and pair.after.met(after.noise.quiet) is False:
            found.append(pair.name)
    return found


def show(before: Report, after: Report) -> None:
    """Print both, and what differs by more than each varied."""
    console.print(f"{before.benchmark}: {before.date} and {after.date}", style="bold", markup=False)
    for report in (before, after):
        if not report.noise.quiet:
            console.print(f"  {report.date}: noisy: {'; '.join(report.noise.reasons)}", style="yellow", markup=False)
    for key in {**before.machine, **after.machine}:
        one, two = before.machine.get(key), after.machine.get(key)
        if one != two:
            console.print(f"  {key}: {one} and {two}", markup=False)
    table = plain_table("figure", "unit", "#before", "#after", "#change", "")
    for pair in pairs(before, after):
        figure = pair.after or pair.before
        assert figure is not None
        values = [number(one.value) if one else "-" for one in (pair.before, pair.after)]
        change = "" if pair.change is None else f"{pair.change:+.1%}"
        said = Text("differs", style="yellow") if pair.apart else Text("")
        table.add_row(pair.name, figure.unit, *values, change, said)
    console.print(table)
