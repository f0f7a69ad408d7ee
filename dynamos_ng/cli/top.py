"""``dynamos top``: where the dashboard's snapshots come from, the daemon or a recording."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from dynamos_ng import control, history, host, journal
from dynamos_ng.cli import tables
from dynamos_ng.closing import Closing
from dynamos_ng.dashboard import loop, screen
from dynamos_ng.dashboard.loop import Want
from dynamos_ng.dashboard.series import LENGTH, Series
from dynamos_ng.dashboard.terminal import Terminal
from dynamos_ng.errors import DaemonUnreachable, DynamosError, UsageError
from dynamos_ng.model import Event, Latency, Policy, Quiescence, Snapshot
from dynamos_ng.recording import Recording
from dynamos_ng.wire import plain, restored

#: How long stacks are sampled, and calls timed, when somebody asks for it, in seconds.
SAMPLING = 1.0
#: In a recording, a gap is passed over after this long, in seconds.
GAP = 2.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the verb's arguments."""
    parser.set_defaults(run=main)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--once", action="store_true", help="print everything once; so it is without a terminal")
    parser.add_argument("--interval", type=seconds, default=1.0, metavar="S", help="how often to look (1)")
    parser.add_argument("--replay", type=Path, metavar="PATH",
                        help="show a recording: a journal's folder (dynamosd --record), or a file of what --json "
                             "prints")  # fmt: skip


def seconds(text: str) -> float:
    """Parse an interval for argparse."""
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0.1 to 3600")
    return value


def main(options: argparse.Namespace) -> int:
    """Show what happens: live, once, as JSON, or from a recording."""
    replay = Replay(options.replay) if options.replay else None
    if options.json:
        for snapshot in _stream(options.interval, replay, options.once):
            print(json.dumps(plain(snapshot), separators=(",", ":")), flush=True)
        return 0
    console = tables.console
    terminal = console.is_terminal and not console.is_dumb_terminal and sys.stdin.isatty() and sys.stdout.isatty()
    if options.once or not terminal:
        series = replay.end() if replay else _two(options.interval)
        for line in screen.once(series, console.width, ascii_only=console.options.ascii_only):
            console.print(line, no_wrap=True, overflow="crop", crop=False)
        return 0
    return loop.run(console, replay or Live(options.interval))


NOTHING_ELSE = Want()


def look(want: Want = NOTHING_ELSE) -> Snapshot:
    """Return what the daemon says now."""
    snapshot = restored(Snapshot, control.call("status"))
    events = tuple(restored(Event, event) for event in control.call("history"))
    return also(replace(snapshot, events=events, watcher=host.own_cost()), want)


def also(snapshot: Snapshot, want: Want) -> Snapshot:
    """Return a snapshot with what is wanted beside the usual."""
    policy: Policy | None = None
    quiescence: tuple[Quiescence, ...] = ()
    latency: tuple[Latency, ...] = ()
    if want.policy:
        policy = restored(Policy, control.call("policy_show"))
    if want.function:
        with contextlib.suppress(control.Remote):  # it was unloaded, which the next snapshot shows
            asked = control.call(
                "quiescence", function=want.function, seconds=SAMPLING if want.sampling else 0.0, watch=False
            )
            quiescence = (restored(Quiescence, asked),)
            if want.timing:
                latency = (restored(Latency, control.call("latency", function=want.function, seconds=SAMPLING)),)
    return replace(snapshot, policy=policy, quiescence=quiescence, latency=latency)


def _two(interval: float) -> Series:
    """Return two snapshots in a row, for there is no rate in one."""
    series = Series([look()])
    time.sleep(interval)
    series.add(look())
    return series


def _stream(interval: float, replay: Replay | None, once: bool) -> Iterator[Snapshot]:
    if replay:
        yield from (replay.snapshot(n) for n in range(len(replay) - 1 if once else 0, len(replay)))
        return
    while True:
        started = time.monotonic()
        yield look(Want(policy=True))
        if once:
            return
        time.sleep(max(0.0, started + interval - time.monotonic()))


class Live(Closing):
    """Asks the daemon, in a thread of its own: the screen stays alive while an answer takes long."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._lock = threading.Lock()  # of what follows
        self._found: deque[Snapshot] = deque(maxlen=LENGTH)
        self._want = Want()
        self._trouble = ""
        self._seen = time.monotonic()
        self._asked = threading.Event()
        self._ended = False

    def start(self, terminal: Terminal) -> Closing:
        """Begin to ask."""
        self._terminal = terminal
        threading.Thread(target=self._run, daemon=True).start()
        return self

    def close(self) -> None:
        """Ask no more; an answer that is still to come is not waited for."""
        self._ended = True
        self._asked.set()

    def _run(self) -> None:
        due = time.monotonic()
        latest: Snapshot | None = None
        while not self._ended:
            with self._lock:
                want = self._want
            try:
                if latest is None or time.monotonic() >= due:
                    due = time.monotonic() + self._interval
                    latest = look(want)
                else:
                    latest = also(latest, want)
                self._tell(latest, "")
            except (DynamosError, ValueError) as error:
                latest = None
                self._tell(None, _first_line(error))
            if self._asked.wait(max(0.0, due - time.monotonic())):
                self._asked.clear()

    def _tell(self, snapshot: Snapshot | None, trouble: str) -> None:
        with self._lock:
            self._trouble = trouble
            if snapshot:
                self._found.append(snapshot)
                self._seen = time.monotonic()
        if not self._ended:
            self._terminal.wake()

    def due(self) -> float:
        """Return a long time: it wakes the terminal up."""
        return loop.IDLE

    def advance(self, series: Series, want: Want) -> Series:
        """Add what has come."""
        with self._lock:
            if want != self._want:
                self._want = want
                self._asked.set()
            found = list(self._found)
            self._found.clear()
        for snapshot in found:
            series.add(snapshot)
        return series

    def step(self, series: Series, by: int) -> Series:  # noqa: ARG002 there is no way back from now
        """Leave it as it is."""
        return series

    def coming(self) -> str:
        """Say how snapshots come."""
        return f"every {self._interval:g} s"

    def trouble(self) -> str:
        """Say what is wrong with the daemon."""
        with self._lock:
            silent = time.monotonic() - self._seen
            if self._trouble:
                return f"{self._trouble}; {silent:.0f} s old"
            if silent > 3 * self._interval + 2:
                return f"the daemon has not answered for {silent:.0f} s; what is shown is as old"
        return ""


def _first_line(error: Exception) -> str:
    text = str(error).splitlines()[0]
    return text if isinstance(error, DaemonUnreachable) else f"the daemon says: {text}"


class Replay(Closing):
    """Shows a recording at its own pace; left and right step through it."""

    def __init__(self, path: Path) -> None:
        """Open it; UsageError when there is nothing to show."""
        self._recording = Recording(path)
        self._events: list[Event] = []
        if path.is_dir():
            self._events = [history.event(entry) for entry in journal.changes(path)[0]]
        self._at = -1
        self._next = 0.0
        self._wrong = ""

    def __len__(self) -> int:
        return len(self._recording)

    def start(self, terminal: Terminal) -> Closing:  # noqa: ARG002 it needs no thread
        """Begin at the first snapshot."""
        return self

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def snapshot(self, index: int) -> Snapshot:
        """Return a snapshot with what the journal told until then."""
        snapshot = self._recording.snapshot(index)
        if not self._events:
            return snapshot
        return replace(
            snapshot, events=tuple(event for event in self._events if event.time <= snapshot.taken)[-journal.RECENT :]
        )

    def end(self) -> Series:
        """Return the end of the recording."""
        return Series(self.snapshot(n) for n in range(max(0, len(self) - LENGTH), len(self)))

    def due(self) -> float:
        """Return in how many seconds the next snapshot is due."""
        return self._next - time.monotonic() if self._at + 1 < len(self) else loop.IDLE

    def advance(self, series: Series, want: Want) -> Series:  # noqa: ARG002 what was recorded is all there is
        """Add the next snapshot if it is due."""
        if self._at + 1 < len(self) and time.monotonic() >= self._next:
            self._go(series, self._at + 1)
        return series

    def step(self, series: Series, by: int) -> Series:
        """Go on or back, but not past an end; what was before is read again to go back."""
        to = max(0, min(self._at + by, len(self) - 1))
        if to == self._at + 1:
            self._go(series, to)
        elif to < self._at:
            series = Series()
            for index in range(max(0, to - LENGTH // 4), to + 1):
                self._go(series, index)
        return series

    def _go(self, series: Series, index: int) -> None:
        """Show one snapshot, and see when the next is due."""
        self._at, self._wrong, wait = index, "", 0.0
        try:
            snapshot = self.snapshot(index)
            series.add(snapshot)
            with contextlib.suppress(UsageError, IndexError):
                wait = self._recording.snapshot(index + 1).uptime - snapshot.uptime
        except UsageError as error:
            self._wrong = str(error)
        self._next = time.monotonic() + min(max(wait, 0.0), GAP)

    def coming(self) -> str:
        """Say where in the recording this is."""
        end = " (end)" if self._at + 1 == len(self) else ""
        return f"recording {self._at + 1} of {len(self)}{end}"

    def trouble(self) -> str:
        """Say which snapshot cannot be read."""
        torn = self._recording.torn
        return self._wrong or (f"{torn} torn snapshots are passed over" if torn else "")
