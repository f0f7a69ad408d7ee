"""The screen as a whole: what stands on top, the view that was chosen, and the keys at the bottom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from rich.text import Text

from dynamos_ng.dashboard import lines, views
from dynamos_ng.dashboard.choice import CLASSES, EVENTS, FUNCTION, FUNCTIONS, HELP, Choice, rows
from dynamos_ng.dashboard.series import Series
from dynamos_ng.model import Cost, Snapshot
from dynamos_ng.printable import clean

#: Less than this shows nothing that could be used.
LEAST = (40, 8)
_KEYS = {
    FUNCTIONS: "q quit  h help  / filter  s sort:{sort}  r turn  enter open  c class  e events",
    FUNCTION: "q quit  h help  esc back  s stacks  l latency  arrows scroll  space pause",
    CLASSES: "q quit  h help  esc back  arrows scroll  space pause",
    EVENTS: "q quit  h help  esc back  arrows scroll  space pause",
    HELP: "q quit  esc back  arrows scroll",
}


@dataclass(frozen=True)
class Frame:
    """What a screen is made for: its size, how snapshots come ("every 1 s"), and what is wrong with their source."""

    width: int
    height: int
    coming: str = ""
    trouble: str = ""
    ascii_only: bool = False


def draw(series: Series, choice: Choice, frame: Frame) -> tuple[list[Text], Choice]:
    """Return the screen's lines, exactly as many as it has, and the choice as it could be fulfilled."""
    if frame.width < LEAST[0] or frame.height < LEAST[1]:
        said = lines.fit(f"the screen is too small: {LEAST[0]}x{LEAST[1]} at least", frame.width)
        return [said, *[Text("")] * (frame.height - 1)][: frame.height], choice
    head = _head(series, choice, frame)
    foot = _foot(choice, series)
    room = frame.height - len(head) - 1
    snapshot = series.latest
    if choice.view == HELP:
        body, choice = _scrolled(views.manual(), choice, room)
    elif snapshot is None:
        body = [Text("waiting for the first snapshot")]
    elif choice.view == FUNCTIONS:
        body, choice = _overview(series, snapshot, choice, frame, room)
    else:
        body, choice = _scrolled(_view(series, snapshot, choice, frame), choice, room)
    body = body[:room] + [Text("")] * (room - len(body))
    return [lines.fit(one, frame.width) for one in (*head, *body, foot)], choice


def page(frame: Frame) -> int:
    """Return by how many lines a page key moves."""
    return max(1, frame.height - 12)


def once(series: Series, width: int, *, ascii_only: bool = False) -> list[Text]:
    """Return everything as lines without end: for a file, or a terminal that is not to be taken over."""
    snapshot, choice = series.latest, Choice(sort="update")
    if snapshot is None:
        return []
    frame = Frame(width, 0, ascii_only=ascii_only)
    table = views.Functions(series, choice, width, ascii_only=ascii_only)
    found = [*_head(series, choice, frame), *views.updates(snapshot, width), Text(""), table.heading]
    found += table.part(0, table.length, mark=False)
    for update, status in rows(series, choice):
        found += [Text(clean(f"{status.function.name} of {update.name}: {note}")) for note in status.notes]
    if snapshot.events:
        found += [Text(""), Text("last events", "bold"), *views.events(snapshot.events[-10:])]
    found = [lines.fit(one, width) for one in found]
    for one in found:
        one.rstrip()
    return found


def _head(series: Series, choice: Choice, frame: Frame) -> list[Text]:
    snapshot = series.latest
    if snapshot is None:
        found = [lines.spread(Text("dynamos top", "bold"), frame.coming, frame.width)]
    else:
        when = datetime.fromtimestamp(snapshot.taken).strftime("%Y-%m-%d %H:%M:%S")
        title = Text("dynamos top", "bold") + Text(f"  {when}", "not bold")
        coming = f"PAUSED  {frame.coming}" if choice.paused else frame.coming
        found = [lines.spread(title, coming, frame.width), _sums(series, snapshot, frame.width)]
        found += [_costs(series, snapshot)]
    if frame.trouble:
        found.append(Text(clean(f"! {frame.trouble}"), "bold red"))
    return found


def _sums(series: Series, snapshot: Snapshot, width: int) -> Text:
    found = rows(series, Choice())
    total = sum(views.calls(series, update, status) for update, status in found)
    inside = sum(use.in_flight for _, status in found for use in status.uses)
    updates = len(snapshot.updates)
    text = f"{_count(updates, 'update')}, {_count(len(found), 'function')}, {lines.number(total)} calls/s, "
    return lines.fit(f"{text}{lines.number(inside)} in flight, probes by {snapshot.engine}", width)


def _costs(series: Series, snapshot: Snapshot) -> Text:
    """Tell what looking costs: shares of one CPU and memory, of the daemon and of the one who looks."""

    def cost(name: str, key: str, used: Cost | None) -> str:
        return f"{name} {lines.percent(series.share(key))} CPU, {lines.megabytes(used.memory)}" if used else ""

    told = (cost("dynamosd", "daemon", snapshot.daemon), cost("top", "watcher", snapshot.watcher))
    return Text("cost: " + "; ".join(filter(None, told)) if any(told) else "cost: not recorded")


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def _foot(choice: Choice, series: Series) -> Text:
    if choice.typing is not None:
        shown = len(rows(series, choice))
        return Text(f"filter: {choice.typing}_   {_count(shown, 'function')}; enter keeps it, esc leaves it", "bold")
    keys = _KEYS[choice.view].format(sort=choice.sort + (" reversed" if choice.backwards else ""))
    return Text(keys)


def _overview(
    series: Series, snapshot: Snapshot, choice: Choice, frame: Frame, room: int
) -> tuple[list[Text], Choice]:
    """Return updates, functions and the last events; the functions get what the others leave."""
    above = _some(views.updates(snapshot, frame.width), max(1, room // 6))
    told = views.events(snapshot.events)[-max(2, room // 6):] if snapshot.events else []  # fmt: skip
    below = [Text(""), Text("last events", "bold"), *told] if told else []
    table = views.Functions(series, choice, frame.width, ascii_only=frame.ascii_only)
    left = max(1, room - len(above) - len(below) - 2)
    top = min(choice.top, table.marked[0])
    top = max(top, table.marked[1] - left)
    top = max(0, min(top, table.length - left))
    shown = table.part(top, top + left)
    shown += [Text("")] * (left - len(shown))
    passing = f"filter: {choice.filter}   {_count(table.functions, 'function')}" if choice.filter else ""
    return [*above, Text(passing, "bold"), table.heading, *shown, *below], replace(choice, top=top)


def _some(found: list[Text], most: int) -> list[Text]:
    """Return the first of lines, and how many more there are."""
    if len(found) <= most:
        return found
    return [*found[: most - 1], Text(f"and {_count(len(found) - most + 1, 'more update')}")]


def _view(series: Series, snapshot: Snapshot, choice: Choice, frame: Frame) -> Sequence[Text]:
    if choice.view == CLASSES:
        return views.classes(snapshot, frame.width)
    if choice.view == EVENTS:
        return views.events(tuple(reversed(snapshot.events))) or [Text("nothing has happened yet")]
    return views.function(series, choice, frame.width, ascii_only=frame.ascii_only)


def _scrolled(found: Sequence[Text], choice: Choice, room: int) -> tuple[list[Text], Choice]:
    top = max(0, min(choice.top, len(found) - room))
    return list(found[top : top + room]), replace(choice, top=top)
