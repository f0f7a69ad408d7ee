"""What the one who looks has chosen to see, and what each key makes of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from dynamos_ng.dashboard.series import ORIGINAL, Series, statuses
from dynamos_ng.model import FunctionStatus, UpdateStatus

SORTS = ("calls", "in flight", "name", "update")
FUNCTIONS, FUNCTION, CLASSES, EVENTS, HELP = "functions", "function", "classes", "events", "help"
_VIEWS = {"c": CLASSES, "e": EVENTS, "f": FUNCTIONS, "h": HELP, "?": HELP}
_MOVES = {"up": -1, "k": -1, "down": 1, "j": 1}

Row = tuple[UpdateStatus, FunctionStatus]


@dataclass(frozen=True)
class Choice:
    """The view, and how it is sorted, filtered and scrolled.

    `selected` names the function that is marked, and the one that is looked into. `typing` is the filter while it is
    being typed. `top` is the first line shown of what is longer than the screen.
    """

    view: str = FUNCTIONS
    sort: str = SORTS[0]
    backwards: bool = False
    filter: str = ""
    typing: str | None = None
    selected: tuple[str, str] | None = None
    top: int = 0
    paused: bool = False
    sampling: bool = False
    timing: bool = False
    ended: bool = False


def rows(series: Series, choice: Choice) -> list[Row]:
    """Return the functions that pass the filter (part of the function's, module's or update's name), sorted."""
    if series.latest is None:
        return []
    wanted = (choice.filter if choice.typing is None else choice.typing).lower()
    found = [
        (update, status)
        for update, status in statuses(series.latest)
        if wanted in f"{update.name} {status.function.module}:{status.function.name}".lower()
    ]

    def weight(row: Row) -> tuple[float | str, ...]:
        update, status = row
        name = status.function.name
        if choice.sort == "calls":
            return (-calls(series, update, status), name)
        if choice.sort == "in flight":
            return (-sum(use.in_flight for use in status.uses), name)
        return (name, update.name) if choice.sort == "name" else (update.name, name)

    return sorted(found, key=weight, reverse=choice.backwards)


def calls(series: Series, update: UpdateStatus, status: FunctionStatus) -> float:
    """Return a function's calls per second, all editions together; where none is known, 0."""
    name = status.function.name
    known = [series.rate((update.name, name, use.number)) for use in status.uses if use.number != ORIGINAL]
    return sum(rate for rate in known if rate is not None)


def marked(found: list[Row], choice: Choice) -> int:
    """Return the place of the marked function among the rows: the first if it is not there."""
    for place, (update, status) in enumerate(found):
        if (update.name, status.function.name) == choice.selected:
            return place
    return 0


def press(choice: Choice, key: str, series: Series, page: int) -> Choice:
    """Return what a key makes of a choice; `page` is how many lines the screen has for the view."""
    if choice.typing is not None:
        return _type(choice, choice.typing, key)
    if key == "q":
        return replace(choice, ended=True)
    if key == " ":
        return replace(choice, paused=not choice.paused)
    if key in _VIEWS:
        view = FUNCTIONS if _VIEWS[key] == choice.view else _VIEWS[key]
        return replace(choice, view=view, top=0, sampling=False, timing=False)
    if key in ("escape", "backspace"):
        kept = "" if choice.view == FUNCTIONS else choice.filter
        return replace(choice, view=FUNCTIONS, top=0, sampling=False, timing=False, filter=kept)
    if choice.view == FUNCTIONS:
        return _among_functions(choice, key, series, page)
    if choice.view == FUNCTION and key == "s":
        return replace(choice, sampling=not choice.sampling)
    if choice.view == FUNCTION and key == "l":
        return replace(choice, timing=not choice.timing)
    return replace(choice, top=max(0, _moved(choice.top, key, page, 1 << 20)))


def _type(choice: Choice, text: str, key: str) -> Choice:
    if key == "enter":
        return replace(choice, typing=None, filter=text, top=0)
    if key == "escape":
        return replace(choice, typing=None, top=0)
    if key == "backspace":
        return replace(choice, typing=text[:-1])
    return replace(choice, typing=text + key) if len(key) == 1 else choice


def _among_functions(choice: Choice, key: str, series: Series, page: int) -> Choice:
    found = rows(series, choice)
    if key == "/":
        return replace(choice, typing=choice.filter)
    if key == "s":
        following = SORTS[(SORTS.index(choice.sort) + 1) % len(SORTS)]
        return replace(choice, sort=following, backwards=False)
    if key == "r":
        return replace(choice, backwards=not choice.backwards)
    if not found:
        return choice
    place = max(0, min(_moved(marked(found, choice), key, page, len(found) - 1), len(found) - 1))
    update, status = found[place]
    selected = update.name, status.function.name
    if key == "enter":
        return replace(choice, selected=selected, view=FUNCTION, top=0)
    return replace(choice, selected=selected) if _moved(0, key, page, 1) or key == "home" else choice


def _moved(place: int, key: str, page: int, last: int) -> int:
    if key in ("home", "end"):
        return 0 if key == "home" else last
    if key in ("page up", "page down"):
        return place + (page if key == "page down" else -page)
    return place + _MOVES.get(key, 0)
