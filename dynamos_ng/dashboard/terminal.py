"""The terminal: keys, sizes and signals in, whole screens out; it is given back as it was, however this ends."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, ConsoleDimensions
from rich.control import Control
from rich.text import Text

from dynamos_ng.closing import Closing
from dynamos_ng.dashboard import keys
from dynamos_ng.dashboard.lines import cell

_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminal(Closing):
    """Takes a terminal over until it is closed: its other screen, no echo, each key at once.

    `ended` is the signal that asked for the end, 0 as long as there was none. Only the main thread can have one, for
    signals are its matter.
    """

    def __init__(self, console: Console) -> None:
        self.ended = 0
        self._console = console
        self._stdin = sys.stdin.fileno()
        self._suspend = False
        self._undo = contextlib.ExitStack()
        with contextlib.ExitStack() as undo:
            self._wakened, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            undo.callback(os.close, self._wakened)
            undo.callback(os.close, self._wake)
            undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False))
            for number in (*_ENDING, signal.SIGTSTP, signal.SIGWINCH):
                undo.callback(signal.signal, number, signal.signal(number, self._on_signal))
            self._screen = undo.enter_context(self._taken())
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Give the terminal back; closing twice is no error."""
        self._undo.close()

    def _on_signal(self, number: int, _: object) -> None:
        if number == signal.SIGTSTP:
            self._suspend = True
        elif number in _ENDING:
            self.ended = number

    @contextlib.contextmanager
    def _taken(self) -> Iterator[contextlib.ExitStack]:
        """Have each key at once and the other screen; what is given undoes it."""
        with contextlib.ExitStack() as undo:
            self._take(undo)
            yield undo

    def _take(self, undo: contextlib.ExitStack) -> None:
        before = termios.tcgetattr(self._stdin)
        # A terminal that is gone (SIGHUP) takes nothing back.
        undo.callback(_quietly, lambda: termios.tcsetattr(self._stdin, termios.TCSADRAIN, before))
        changed: list[Any] = [*before]
        changed[3] &= ~(termios.ICANON | termios.ECHO)
        termios.tcsetattr(self._stdin, termios.TCSADRAIN, changed)
        undo.callback(_quietly, lambda: self._console.set_alt_screen(False))
        undo.callback(_quietly, lambda: self._console.show_cursor(True))
        self._console.set_alt_screen(True)
        self._console.show_cursor(False)

    def wake(self) -> None:
        """End a `wait`; any thread may call it, even when the terminal has been closed."""
        with contextlib.suppress(OSError):
            os.write(self._wake, b".")

    def wait(self, seconds: float) -> list[str]:
        """Wait for keys, a signal or a `wake`, so long at most; return the keys."""
        ready, _, _ = select.select([self._stdin, self._wakened], [], [], max(0.0, seconds))
        if self._wakened in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakened, 4096)
        if self._suspend:
            self._suspend = False
            self._screen.close()
            os.kill(os.getpid(), signal.SIGSTOP)
            self._take(self._screen)
        if self._stdin not in ready:
            return []
        try:
            data = os.read(self._stdin, 4096)
        except OSError:
            data = b""
        if not data:
            self._gone()
        return keys.names(data)

    def _gone(self) -> None:
        """Take note that nobody is there any more, even if SIGHUP did not say so."""
        self.ended = self.ended or signal.SIGHUP

    @property
    def size(self) -> tuple[int, int]:
        """Return columns and lines as they are now, whatever COLUMNS and LINES say, which do not change."""
        try:
            width, height = os.get_terminal_size(self._stdin)
        except OSError:
            self._gone()
            return self._console.size
        if not (width and height):  # a serial line, which does not know
            return self._console.size
        self._console.size = ConsoleDimensions(width, height)
        return width, height

    def show(self, lines: Sequence[Text]) -> None:
        """Put a whole screen where the last one was."""
        width, _ = self.size
        screen = Text("\n").join(cell(one, width) for one in lines)
        try:
            self._console.control(Control.home())
            self._console.print(screen, end="", no_wrap=True, overflow="crop")
        except OSError:
            self._gone()


def _quietly(undo: Any) -> None:
    with contextlib.suppress(OSError, termios.error):
        undo()
