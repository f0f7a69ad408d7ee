"""Pictures of reports: tables and bars in the terminal, by rich; a PNG by matplotlib."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

from rich.text import Text

from bench.report import MOST, Figure, Report
from dynamos_ng.cli.tables import bar, console, plain_table, pyplot

WIDTH = 24
_MET = {True: ("met", "green"), False: ("missed", "red"), None: ("", "")}


def number(value: float | None) -> str:
    """Return a number as people read it."""
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def group(figure: Figure) -> str:
    """Return what figures are drawn together: those whose names begin alike and that have one unit."""
    return f"{figure.name.rpartition('/')[0]}, {figure.unit}" if "/" in figure.name else figure.unit


def show(report: Report) -> None:
    """Print a report: bars for each group of figures, and what is met."""
    console.print(f"{report.benchmark}: {report.claim}", style="bold", markup=False)
    said = "quiet" if report.noise.quiet else "NOISY, nothing is met or missed: " + "; ".join(report.noise.reasons)
    console.print(f"  {report.machine.get('processor', '')}, kernel {report.machine.get('kernel', '')}: {said}",
                  style="" if report.noise.quiet else "yellow", markup=False)  # fmt: skip
    for name, members in groupby(report.figures, group):
        figures = list(members)
        most = max(figure.value for figure in figures)
        table = plain_table(name, f"#{figures[0].unit}", "", "#target", "")
        for figure in figures:
            word, style = _MET[figure.met(report.noise.quiet)]
            sign = "≤ " if figure.bound == MOST else "≥ "
            target = "" if figure.target is None else sign + number(figure.target)
            label = figure.name.rpartition("/")[2]
            table.add_row(label, number(figure.value), bar(figure.value, most, WIDTH), target, Text(word, style=style))
        console.print(table)


def png(report: Report, path: Path) -> None:
    """Draw a report's figures into PATH, a panel for each group; MissingTool without matplotlib."""
    plot = pyplot()
    groups = [(name, list(members)) for name, members in groupby(report.figures, group)]
    heights = [len(figures) + 1 for _name, figures in groups]
    drawing, panels = plot.subplots(
        len(groups), figsize=(9, 0.3 * sum(heights) + 1), squeeze=False, height_ratios=heights, layout="constrained"
    )
    for panel, (name, figures) in zip(panels[:, 0], groups, strict=True):
        labels = [figure.name.rpartition("/")[2] for figure in figures]
        panel.barh(labels, [figure.value for figure in figures])
        panel.invert_yaxis()
        panel.set_title(name, loc="left", fontsize="small")
        for row, figure in enumerate(figures):
            if figure.target is not None:
                panel.plot([figure.target] * 2, [row - 0.5, row + 0.5], color="red")
    drawing.suptitle(report.benchmark)
    drawing.savefig(path)
    plot.close(drawing)
