"""``dynamos doctor``: the findings as a table."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from rich.text import Text

from dynamos_ng import doctor
from dynamos_ng.cli import tables

MARKS = {
    doctor.OK: ("✓", "green"),
    doctor.WARNING: ("!", "yellow"),
    doctor.BAD: ("✗", "red"),
    doctor.UNKNOWN: ("?", "cyan"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the verb's arguments."""
    parser.set_defaults(run=main)
    parser.add_argument("--json", action="store_true", help="print JSON")


def main(options: argparse.Namespace) -> int:
    """Look at the running kernel; returns 0 if dynamos can work here, else 1."""
    return doctor.main(options.json, show)


def show(findings: Sequence[doctor.Finding]) -> None:
    """Print one line for each finding, and below it what to do."""
    table = tables.plain_table("", "check", "found")
    table.show_header = False
    for one in findings:
        found = Text(one.found)
        if one.advice:
            found.append(f"\n→ {one.advice}", style="bold")
        table.add_row(Text(*MARKS[one.verdict]), one.name, found)
    tables.console.print(table)
