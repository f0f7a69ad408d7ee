"""The views: updates, functions with their editions, one function, classes, events. Each is a list of lines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime

from rich.text import Text

from dynamos_ng.dashboard import lines
from dynamos_ng.dashboard.choice import Choice, calls, marked, rows
from dynamos_ng.dashboard.lines import Column
from dynamos_ng.dashboard.series import ORIGINAL, Series
from dynamos_ng.latency import duration, report
from dynamos_ng.model import (
    Event,
    FunctionState,
    FunctionStatus,
    Holder,
    Latency,
    Phase,
    Quiescence,
    Snapshot,
    UpdateStatus,
)
from dynamos_ng.printable import clean

__all__ = ["Functions", "calls", "classes", "events", "function", "manual", "updates"]

STATE_STYLES = {FunctionState.LOADED: "", FunctionState.REDIRECTED: "green", FunctionState.DRAINING: "yellow"}
CLASSES = 256
#: Functions and the edition of each that a class gets.
Given = tuple[tuple[str, int], ...]
#: From this width on there is room for more columns.
WIDE = 120


def updates(snapshot: Snapshot, width: int) -> list[Text]:
    """Return a line for each update: its state, its phase, and what keeps it from getting on."""
    names = [update.name for update in snapshot.updates] + [waiting.name for waiting in snapshot.pending]
    column = min(max(map(len, names), default=0), width // 3)
    found = []
    for update in snapshot.updates:
        style = "yellow" if update.word.endswith("...]") else STATE_STYLES[update.state]
        said = Text("  ") + lines.padded(update.name, column) + " " + lines.cell(Text(update.word, style), 14)
        found.append(said + Text(clean(f" {'; '.join(_standing(update))}")))
    for waiting in snapshot.pending:
        said = Text("  ") + lines.padded(waiting.name, column) + " " + lines.cell(Text("[pending]", "yellow"), 14)
        why = f" waits for module {', '.join(waiting.modules)}"
        found.append(said + Text(clean(why + (f"; last: {waiting.failure}" if waiting.failure else ""))))
    return found or [Text("  no update is loaded")]


def _standing(update: UpdateStatus) -> Iterable[str]:
    yield f"{len(update.functions)} function{'s' * (len(update.functions) != 1)}"
    if one := update.confirmation:
        waiting = one.state == "waiting"
        yield f"taken back in {one.left} s unless confirmed" if waiting else f"not confirmed in time: {one.state}"
    yield from phase(update.phase)
    if changed := sum(variable.now != variable.value for variable in update.variables):
        yield f"{changed} of {len(update.variables)} variables hold another value"
    elif update.variables:
        yield f"{len(update.variables)} variable{'s' * (len(update.variables) != 1)} written"
    if update.shadows:
        yield f"{update.shadows} objects with shadow data"
    if noted := sum(bool(status.notes) for status in update.functions):
        yield f"notes on {noted}"


def phase(value: Phase) -> Iterable[str]:
    """Yield what is to be known of where an update stands that gets on by itself."""
    if value.phased:
        yield f"phase {value.phase}" if value.phase else "synchronised"
        if value.must_update and value.phase in (1, 2):
            yield "phase 3 is wanted"
        if value.delayed:
            yield f"TID {value.delayed.pid} ({value.delayed.comm}) delays it"
    if value.consistent:
        yield "consistent group"
    if value.pinned:
        yield f"{value.pinned} tasks keep to v1"


class Functions:
    """The table of functions, a line for each edition; only the lines that are asked for are made.

    `marked` is the span of lines that belong to the marked function, and `length` how many lines there are.
    """

    def __init__(self, series: Series, choice: Choice, width: int, *, ascii_only: bool = False) -> None:
        found = rows(series, choice)
        self._series, self._width, self._ascii_only = series, width, ascii_only
        self._columns = _columns(width)
        self._lines = [(row, use) for row in found for use in row[1].uses]
        self.length = len(self._lines)
        self.functions = len(found)
        mark = marked(found, choice)
        begin = sum(len(status.uses) for _, status in found[:mark])
        self.marked = (begin, begin + len(found[mark][1].uses)) if found else (0, 0)

    @property
    def heading(self) -> Text:
        """Return the columns' headings."""
        return lines.heading(self._columns)

    def part(self, begin: int, end: int, *, mark: bool = True) -> list[Text]:
        """Return some of the lines; MARK the marked function among them."""
        if not self._lines:
            return [Text("  there is no such function")]
        return [self._line(place, mark) for place in range(begin, min(end, self.length))]

    def _line(self, place: int, mark: bool) -> Text:
        (update, status), use = self._lines[place]
        first = use is status.uses[0]
        key = (update.name, status.function.name, use.number)
        past = lines.spark(self._series.past(key), self._columns[-1].width, ascii_only=self._ascii_only)
        rate = lines.number(self._series.rate(key))
        cells = [_name(status) if first else "", update.name if first else "", f"v{use.number}", rate,
                 lines.number(use.in_flight), past]  # fmt: skip
        if self._width >= WIDE:
            cells[5:5] = [status.function.state.word if first else "", _classes(status.row, use.number),
                          lines.number(use.entered)]  # fmt: skip
        mark = mark and place == self.marked[0]
        made = lines.line(self._columns, cells, ">" if mark else " ")
        if mark:
            made.stylize("reverse")
        return made


def _columns(width: int) -> tuple[Column, ...]:
    """Return the functions' columns: names get most of what is left, the past the rest."""
    fixed = [Column("v", 3), Column("calls/s", 8, number=True), Column("in flight", 9, number=True)]
    if width >= WIDE:
        fixed += [Column("state", 14), Column("classes", 12), Column("entered", 9, number=True)]
    left = width - 2 - sum(column.width + 1 for column in fixed) - 3
    past = max(8, left // 4)
    update = max(8, (left - past) // 3)
    names = Column("function", left - past - update), Column("update", update)
    return (*names, *fixed, Column("until now", past))


def _name(status: FunctionStatus) -> str:
    module = status.function.module
    return f"{module}:{status.function.name}" if module else status.function.name


def _classes(row: bytes, edition: int) -> str:
    """Return the classes that get an edition."""
    return _spans([number for number, value in enumerate(row) if (value or 1) == edition])


def _spans(numbers: Sequence[int]) -> str:
    """Return ascending classes as spans like ``0,2-255``."""
    if len(numbers) == CLASSES:
        return "all"
    spans: list[list[int]] = []
    for number in numbers:
        if spans and spans[-1][-1] == number - 1:
            spans[-1][-1] = number
        else:
            spans.append([number, number])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in spans) or "-"


def function(series: Series, choice: Choice, width: int, *, ascii_only: bool = False) -> list[Text]:
    """Return all that is known of the marked function."""
    found = rows(series, Choice())
    wanted = [row for row in found if (row[0].name, row[1].function.name) == choice.selected]
    if not wanted:
        return [Text("this function is not there any more: its update was unloaded")]
    update, status = wanted[0]
    one = status.function
    top = max((row for row in found if row[1].function.address == one.address), key=_order)[0].name
    asked, times = (series.latest.quiescence, series.latest.latency) if series.latest else ((), ())
    if top != update.name:
        asked = times = ()
    seen = next((value for value in asked if value.function == one.name), None)
    timed = next((value for value in times if value.function == one.name), None)
    title = Text(clean(_name(status)), "bold") + " " + Text(one.state.word, STATE_STYLES[one.state])
    made = [title + Text(clean(f" of update {update.name}; {one.size} bytes at {one.address:#x}")), Text("")]
    made += _editions(series, update, status, seen, width, ascii_only)
    if one.adaptation:
        program = f"BPF program {one.adaptation.program}" if one.adaptation.program else "no BPF program is attached"
        unknown, avoided = one.adaptation.unknown, one.adaptation.avoided
        made += [
            Text(f"adaptation handler: {program}"),
            Text(f"  named an edition that there is not: {unknown}; was passed by: {avoided}"),
        ]
    made += [Text(clean(f"! {note}"), "yellow") for note in status.notes]
    if top != update.name:
        return [*made, Text(clean(f"update {top} is above this one: stacks and times are told there"))]
    made += _latency(timed) if timed else [Text("timing calls …" if choice.timing else "press l to time calls")]
    return made + [Text("")] + (_quiescence(seen, choice) if seen else [Text("nobody has looked at its stacks yet")])


def _order(row: tuple[UpdateStatus, FunctionStatus]) -> tuple[bool, int]:
    """Return what is highest for the update on top, of several that have a function."""
    return row[1].function.state is FunctionState.REDIRECTED, row[1].function.order


def _latency(timed: Latency) -> list[Text]:
    """Return a line for each edition: how long its calls took, without the intervals of confidence that ab tells."""
    found = report(timed)
    made = [Text(f"latency over {timed.seconds:g} s, the probes' own included", "bold")]
    for one in found.editions:
        told = [f"p{100 * each.share:.0f} {duration(each.time)}" for each in one.quantiles if each.time is not None]
        errors = f", {100 * one.errors.share:.3g} % errors" if one.calls else ""
        made.append(Text(f"  calls of v{one.edition}: {lines.number(one.calls)}  {'  '.join(told)}{errors}"))
    return made


def _editions(
    series: Series, update: UpdateStatus, status: FunctionStatus, seen: Quiescence | None, width: int, ascii_only: bool
) -> list[Text]:
    columns = (
        Column("edition", 9), Column("calls/s", 8, number=True), Column("entered", 8, number=True),
        Column("in flight", 9, number=True), Column("stacks", 6, number=True), Column("classes", 12),
        Column("until now", max(8, width - 66)),
    )  # fmt: skip
    made = [lines.heading(columns)]
    inside = Counter(holder.edition for holder in seen.walk.holders) if seen else None

    def add(name: str, number: int, entered: int, in_flight: int | None, chosen: str) -> None:
        key = (update.name, status.function.name, number)
        stacks = lines.UNKNOWN if inside is None else str(inside[number])
        past = lines.spark(series.past(key), columns[-1].width, ascii_only=ascii_only)
        made.append(lines.line(columns, (name, lines.number(series.rate(key)), lines.number(entered),
                                         lines.number(in_flight), stacks, chosen, past)))  # fmt: skip

    if status.probes:
        add("original", ORIGINAL, status.probes.entries, None, "by probes")
    for use in status.uses:
        add(f"v{use.number}", use.number, use.entered, use.in_flight, _classes(status.row, use.number))
    return made


def _quiescence(seen: Quiescence, choice: Choice) -> list[Text]:
    verdict = Text("quiescent", "green") if seen.quiescent else Text("in use", "yellow")
    walk = seen.walk
    made = [Text("quiescence: ") + verdict + f"; {walk.tasks} stacks read, {walk.stop_ns / 1000:.0f} µs in the stop"]
    if walk.holders:
        made.append(Text("     TID  comm             inside    sleeps in", "bold"))
    made += map(_holder, walk.holders)
    if walk.found > len(walk.holders):
        made.append(Text(f"  and {walk.found - len(walk.holders)} more"))
    if seen.samples is None:
        made.append(Text("sampling stacks …" if choice.sampling else "press s to sample stacks"))
        return made
    made.append(Text(f"sampled stacks with a frame inside: {seen.samples}", "bold"))
    return made + [Text(f"{one.samples:8}  {clean(_frames(one.stack))}") for one in seen.sampled]


def _holder(holder: Holder) -> Text:
    edition = f"v{holder.edition}" if holder.edition else "original"
    comm = lines.padded(holder.comm, 16)
    return Text(f"{holder.pid:8}  {comm} {edition:9} {clean(_frames(holder.stack) or 'it can run')}")


def _frames(stack: Sequence[str]) -> str:
    return " < ".join(frame.split("+")[0] for frame in stack)


def classes(snapshot: Snapshot, width: int) -> list[Text]:
    """Return the policy by class: programs, processes, and the editions that it gives."""
    policy = snapshot.policy
    if policy is None:
        return [Text("the policy was not asked for, or not recorded")]
    given = {number: tuple((name, row[number] or 1) for name, row in policy.rows) for number in range(CLASSES)}
    told: dict[tuple[str, Given], list[int]] = {}
    for number in range(CLASSES):
        inside = [f"{name or 'gone'} {pid}" for pid, one, name in policy.processes if one == number]
        who = [f"exec of {comm}" for comm, one in policy.rules if one == number]
        who += [f"{len(inside)} processes: {', '.join(inside)}"] if inside else []
        said = "; ".join(["every other process"] if number == 0 else who) or "nobody"
        told.setdefault((said, given[number]), []).append(number)
    made = [Text("class     who", "bold")]
    for (said, editions), numbers in told.items():
        made += [Text(f"{_spans(numbers):8}  {clean(said)}"), _given(editions)]
    return [lines.fit(one, width) for one in made]


def _given(editions: Given) -> Text:
    other = ", ".join(f"{name} v{number}" for name, number in editions if number != 1)
    return Text(f"          gets {clean(other) or 'v1'}" + (", else v1" if other else " of everything"), "dim")


def events(found: Sequence[Event]) -> list[Text]:
    """Return a line for each entry of the journal."""
    made = []
    for event in found:
        when = datetime.fromtimestamp(event.time).strftime("%m-%d %H:%M:%S")
        outcome = Text(clean(event.outcome), "red" if event.refused else "")
        made.append(Text(clean(f"  {when}  {event.what}: ")) + outcome + Text(clean(f"  by {event.who}")))
    return made


def manual() -> list[Text]:
    """Return what the keys do, and what the columns mean."""
    text = """\
up down pgup pgdn home end   mark a function; scroll (j and k do, too)
enter                        look into the marked function: editions, who is inside, stacks
/                            show only what has this in its function's or update's name
s, r                         sort by calls, in flight, name or update; the other way round
s, l                         in a function: sample stacks, time calls, until it is pressed again
c, e, f                      classes; events; functions
space                        pause, and go on; in a recording, left and right step
esc                          back; among functions, forget the filter
q, ctrl-c                    quit

calls/s    of an edition, between the last two snapshots; - where that is not known
in flight  calls that have entered an edition and not left it
stacks     tasks whose stack holds an address inside
original   as probes counted it, since they came: also calls that an edition then took"""
    return [Text(one) for one in text.splitlines()]
