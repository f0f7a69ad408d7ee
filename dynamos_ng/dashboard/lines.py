"""Lines of a screen: cells of a fixed width, numbers that fit, sparklines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from dynamos_ng.printable import clean

BLOCKS = "▁▂▃▄▅▆▇█"
#: For terminals whose encoding has no blocks.
ASCII_BLOCKS = "_.:-=+*#"
UNKNOWN = "-"


@dataclass(frozen=True)
class Column:
    """A column: its heading, its width in cells, and whether it holds numbers."""

    heading: str
    width: int
    number: bool = False


def cell(text: Text, width: int) -> Text:
    """Return a text as wide as said; what is too long ends in `…`."""
    made = fit(text, width)
    made.pad_right(max(0, width - made.cell_len))
    return made


def padded(text: str, width: int, *, number: bool = False) -> str:
    """Return a plain text as wide as said."""
    text = clean(text)
    length = cell_len(text)
    if length > width:
        text, length = set_cell_size(text, width - 1) + "…", width
    space = " " * (width - length)
    return space + text if number else text + space


def line(columns: Sequence[Column], cells: Sequence[str], mark: str = " ") -> Text:
    """Return a table's line; MARK stands in front of it."""
    made = (padded(text, column.width, number=column.number) for column, text in zip(columns, cells, strict=True))
    return Text(f"{mark} {' '.join(made)}".rstrip(), no_wrap=True)


def heading(columns: Sequence[Column]) -> Text:
    """Return a table's heading."""
    made = line(columns, [column.heading for column in columns])
    made.stylize("bold")
    return made


def fit(text: str | Text, width: int) -> Text:
    """Return a text no wider than a screen."""
    made = text.copy() if isinstance(text, Text) else Text(clean(text))
    made.no_wrap = True
    made.truncate(width, overflow="ellipsis")
    return made


def spread(left: Text, right: str, width: int) -> Text:
    """Return two texts at both ends of a line; if there is no room for both, the left one gives way."""
    room = width - len(right) - 1
    return cell(left, room) + Text(f" {right}") if room > 0 else fit(right, width)


def number(value: float | None) -> str:
    """Return a number in at most 8 characters, `-` for one that is not known."""
    if value is None:
        return UNKNOWN
    for limit, divisor, unit in ((100_000, 1, ""), (1e8, 1e3, "k"), (1e11, 1e6, "M"), (1e14, 1e9, "G")):
        if abs(value) < limit:
            scaled = value / divisor
            return f"{scaled:.1f}{unit}" if 0 < abs(scaled) < 100 and scaled % 1 else f"{scaled:.0f}{unit}"
    return f"{value:.1e}"


def megabytes(size: int) -> str:
    """Return a size of memory."""
    return f"{size / 1e6:.0f} MB"


def percent(share: float | None) -> str:
    """Return a share of a CPU."""
    return "- %" if share is None else f"{share * 100:.1f} %"


def spark(values: Sequence[float | None], width: int, *, ascii_only: bool = False) -> str:
    """Return the last values as blocks, the latest on the right; a space where nothing is known."""
    shown = list(values)[-width:]
    most = max((value for value in shown if value is not None), default=0.0)
    blocks = ASCII_BLOCKS if ascii_only else BLOCKS
    drawn = "".join(
        " " if value is None else blocks[min(7, round(value / most * 7)) if most else 0] for value in shown
    )
    return drawn.rjust(width)
