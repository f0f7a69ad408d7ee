"""The live dashboard: snapshots and keys in, screens out, until somebody wants no more."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Protocol

from rich.console import Console

from dynamos_ng.closing import Closing
from dynamos_ng.dashboard import screen
from dynamos_ng.dashboard.choice import CLASSES, FUNCTION, Choice, press
from dynamos_ng.dashboard.screen import Frame
from dynamos_ng.dashboard.series import Series
from dynamos_ng.dashboard.terminal import Terminal

#: A screen is drawn anew after this long even if nothing came, in seconds.
IDLE = 1.0


@dataclass(frozen=True)
class Want:
    """What a snapshot should hold beside the usual: a function's stacks, sampled or not, its latency, the policy."""

    function: str = ""
    sampling: bool = False
    timing: bool = False
    policy: bool = False


class Source(Protocol):
    """Where snapshots come from. All but `start` return at once."""

    def start(self, terminal: Terminal) -> Closing:
        """Begin; what comes later wakes the terminal up. What is returned ends it."""

    def due(self) -> float:
        """Return in how many seconds `advance` has something to do, unless the terminal is woken before."""

    def advance(self, series: Series, want: Want) -> Series:
        """Add what has come to a series and return it, or another one that takes its place."""

    def step(self, series: Series, by: int) -> Series:
        """Go BY snapshots on or back, where that is possible."""

    def coming(self) -> str:
        """Say how snapshots come."""

    def trouble(self) -> str:
        """Say what is wrong with the source; nothing if all is well."""


def run(console: Console, source: Source) -> int:
    """Show a source until the end is asked for; return 0, or 128 and the number of the signal that asked for it."""
    series, choice = Series(), Choice()
    with Terminal(console) as terminal, source.start(terminal):
        while True:
            if not choice.paused:
                series = source.advance(series, want(choice))
            frame = Frame(*terminal.size, source.coming(), source.trouble(), console.options.ascii_only)
            shown, choice = screen.draw(series, choice, frame)
            terminal.show(shown)
            until = time.monotonic() + (IDLE if choice.paused else min(IDLE, source.due()))
            for key in terminal.wait(until - time.monotonic()):
                if choice.typing is None and key in ("left", "right"):
                    choice = replace(choice, paused=True)
                    series = source.step(series, 1 if key == "right" else -1)
                else:
                    choice = press(choice, key, series, screen.page(frame))
            if terminal.ended:
                return 128 + terminal.ended
            if choice.ended:
                return 0


def want(choice: Choice) -> Want:
    """Return what a choice needs to be shown."""
    function = choice.selected[1] if choice.view == FUNCTION and choice.selected else ""
    looked_into = bool(function)
    return Want(function, looked_into and choice.sampling, looked_into and choice.timing, choice.view == CLASSES)
