"""``dynamos history``: what the journal tells. It needs no daemon."""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from rich.text import Text

from dynamos_ng import history, journal
from dynamos_ng.cli import tables
from dynamos_ng.errors import UsageError
from dynamos_ng.journal import Entry
from dynamos_ng.printable import clean, cleaned
from dynamos_ng.wire import plain

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the verb's arguments."""
    parser.set_defaults(run=main)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("update", nargs="?", help="only what was done to this update, with what was measured")
    parser.add_argument("--since", type=since, metavar="WHEN",
                        help="30s, 10m, 2h or 3d ago, or a date, or one with a time: 2026-01-31T09:30")  # fmt: skip
    parser.add_argument("--journal", type=Path, default=journal.FOLDER, metavar="DIR",
                        help=f"the daemon's journal (default {journal.FOLDER})")  # fmt: skip


def since(text: str) -> float:
    """Return the moment that a text names, in seconds since 1970; for argparse."""
    if found := re.fullmatch(r"(\d+)([smhd])", text):
        return time.time() - int(found[1]) * UNITS[found[2]]
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text}: neither an age like 10m, 2h or 3d nor a date like 2026-01-31 or 2026-01-31T09:30"
        ) from None


def main(options: argparse.Namespace) -> int:
    """Tell the journal, oldest first."""
    folder: Path = options.journal
    if not folder.is_dir():
        raise UsageError(f"{folder}: there is no journal yet: dynamosd begins it when it starts")
    entries, torn = journal.changes(folder)
    chosen = [
        entry
        for entry in entries
        if entry.time >= (options.since or 0) and (options.update is None or history.concerns(entry, options.update))
    ]
    if options.json:
        print(json.dumps({"entries": plain(chosen), "torn": torn}, indent=2))
    else:
        show(chosen, torn, measured=options.update is not None)
    return 0


def show(entries: Sequence[Entry], torn: int, *, measured: bool) -> None:
    """Print two lines for each entry, and below what a change measured before and after if wanted."""
    for entry in entries:
        when = datetime.fromtimestamp(entry.time).strftime("%Y-%m-%d %H:%M:%S")
        tables.console.print(Text(f"{when}  {clean(history.what(entry))}", style="bold"))
        style = "red" if history.refused(entry) else ""
        outcome, who = clean(history.outcome(entry), "\n"), clean(history.who(entry.who))
        tables.console.print(Text("  ") + Text(outcome, style=style) + f"  by {who}")
        result = (entry.answer or {}).get("result")
        if measured and isinstance(result, dict) and "before" in result:
            tables.measured(cleaned(result))
    if not entries:
        tables.console.print("nothing is noted")
    if torn:
        tables.console.print(f"{torn} lines are torn, for the machine or the daemon died as they were written")
