"""``dynamos ab``: the latency of a function's editions, measured side by side, in tables and pictures."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from dynamos_ng import control, latency
from dynamos_ng.cli import tables
from dynamos_ng.errors import UsageError
from dynamos_ng.latency import Comparison, EditionLatency, Latency, Quantile, Report, Share, duration, interval, octaves
from dynamos_ng.wire import plain, restored

STYLES = ("cyan", "magenta", "green", "yellow")
WORDS = {latency.SLOWER: "red", latency.MORE: "red", latency.FASTER: "green", latency.FEWER: "green"}
BAR = 40
#: Of a picture's rows, those with less than this share of an edition's calls are left out at both ends.
SEEN = 0.0005


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the verb's arguments."""
    parser.set_defaults(run=main)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("function")
    parser.add_argument("--editions", type=editions, default=(), metavar="V1,V2",
                        help="only these: v1,v2; the lowest is what the others are held against (default: all)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="how long to measure (10)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw a picture too (needs matplotlib)")


def editions(text: str) -> tuple[int, ...]:
    """Parse a list of editions for argparse."""
    if not re.fullmatch(r"v?\d{1,3}(,v?\d{1,3})*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of editions like v1,v2")
    return tuple(sorted({int(word.lstrip("v")) for word in text.split(",")}))


def main(options: argparse.Namespace) -> int:
    """Measure, and show what was found; returns 0 whatever that is."""
    if options.png:
        tables.pyplot()  # before anything is measured
    measured = control.call(
        "latency", function=options.function, editions=options.editions, seconds=options.seconds
    )
    report = latency.report(restored(Latency, measured))
    if options.json:
        print(json.dumps(plain(report), indent=2))
    else:
        show(report)
    if options.png:
        png(report, options.png)
    return 0


def _quantile(one: Quantile) -> str:
    if one.time is None:
        return "-"
    return f"{duration(one.time)}\n{interval(one.low, one.high)}"


def _share(one: Share, calls: int) -> str:
    return f"{100 * one.share:.3g} %\n{100 * one.low:.2g} to {100 * one.high:.2g}" if calls else "-"


def _factor(one: Comparison) -> str:
    if one.low is None or one.verdict == latency.UNKNOWN:
        return ""
    return f": {one.low:.2f} to {one.high:.2f} times" if one.high is not None else f": at least {one.low:.2f} times"


def show(report: Report) -> None:
    """Print what each edition did, a picture, and what may be said of the difference."""
    console = tables.console
    percent = f"{100 * report.confidence:.0f} %"
    console.print(f"{report.function} for {report.seconds:g} s; the times include the probes' own")
    names = [f"#p{100 * one.share:.0f}" for one in report.editions[0].quantiles]
    table = tables.plain_table("edition", "#calls", *names, "#errors", title=f"below each figure: {percent} confidence")
    for one in report.editions:
        calls = f"{one.calls}\n{one.lost} lost" if one.lost else str(one.calls)
        table.add_row(f"v{one.edition}", calls, *map(_quantile, one.quantiles), _share(one.errors, one.calls))
    console.print(table)
    console.print(*picture(report.histograms), sep="\n")
    for compared in report.comparisons:
        line = Text(f"v{compared.edition} against v{compared.base}, p{100 * compared.share:.0f}: ")
        line.append(compared.verdict, style=WORDS.get(compared.verdict, ""))
        console.print(line.append(_factor(compared)))
    for edition, verdict in report.errors:
        line = Text(f"v{edition} against v{report.editions[0].edition}, errors: ")
        console.print(line.append(verdict, style=WORDS.get(verdict, "")))


def picture(measured: Sequence[EditionLatency]) -> list[Text]:
    """Return a histogram by powers of two: a line for each edition, with its share of calls."""
    shares = [
        {low: count / one.calls for low, count in octaves(one.histogram).items()} if one.calls else {}
        for one in measured
    ]
    seen = [low for found in shares for low, share in found.items() if share >= SEEN]
    most = max((share for found in shares for share in found.values()), default=1.0)
    lines = []
    low = min(seen, default=1)
    while low <= max(seen, default=0):
        label = f"{duration(low):>8}"
        for number, (one, found) in enumerate(zip(measured, shares, strict=True)):
            share = found.get(low, 0.0)
            line = Text(f"{label} v{one.number:<3}")
            line.append(tables.bar(share, most, BAR), style=STYLES[number % len(STYLES)])
            lines.append(line.append(f" {100 * share:.1f} %" if share >= SEEN else ""))
            label = " " * len(label)
        low = max(1, 2 * low)
    return lines


def png(report: Report, path: Path) -> None:
    """Draw each edition's share of calls that took no longer than a time."""
    plot = tables.pyplot()
    drawing, panel = plot.subplots(figsize=(8, 4.5), layout="constrained")
    for one in report.histograms:
        if one.calls:
            ends, sums, total = [], [], 0
            for index, count in one.histogram:
                total += count
                ends.append(latency.bounds(index)[1])
                sums.append(total / one.calls)
            panel.step(ends, sums, where="post", label=f"v{one.number}, {one.calls} calls")
    panel.set(xscale="log", xlabel="nanoseconds, the probes' own included", ylabel="share of calls", ylim=(0, 1.02))
    panel.set_title(f"{report.function} for {report.seconds:g} s", loc="left")
    panel.grid(alpha=0.3)
    panel.legend()
    try:
        drawing.savefig(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None
    finally:
        plot.close(drawing)
