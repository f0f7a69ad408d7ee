"""What a service manager and its journal are told, by sd_notify's protocol; without one nothing is said.

The watchdog is fed only as long as the daemon really answers: what feeds it asks over the daemon's own socket.
"""

from __future__ import annotations

import logging
import os
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from dynamos_ng import control
from dynamos_ng.closing import Closing
from dynamos_ng.errors import DynamosError

log = logging.getLogger("dynamosd")

#: Syslog's numbers, which journald takes in front of a line for its priority.
_PRIORITIES = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (logging.DEBUG, 7))


def notify(**fields: object) -> None:
    """Send fields such as READY=1 to the service manager that asked for them."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    text = "\n".join(f"{key}={value}" for key, value in fields.items())
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(text.encode(), "\0" + address[1:] if address.startswith("@") else address)
        except OSError as error:
            log.warning("the service manager does not hear on %s: %s", address, error.strerror)


def reloading() -> None:
    """Say that the daemon reloads; READY=1 is to follow. The time tells the manager that this is not an older one."""
    notify(RELOADING=1, MONOTONIC_USEC=time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000)


class Watchdog(Closing):
    """Feeds the service manager's watchdog twice in its time, while the daemon on PATH answers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True, name="watchdog")
        microseconds = os.environ.get("WATCHDOG_USEC", "")
        if microseconds.isdigit() and os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid()):
            self._seconds = int(microseconds) / 2e6
            self._thread.start()

    def close(self) -> None:
        """Feed it no more."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def _feed(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                with suppress(control.Remote):  # too many connections: that is an answer
                    control.ask("ping", {}, self._path, self._seconds)
                notify(WATCHDOG=1)
            except DynamosError as error:
                log.error("the daemon does not answer itself, and its watchdog is not fed: %s", error)


class Priorities(logging.Formatter):
    """Puts journald's priority in front of each line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's lines."""
        number = next((number for level, number in _PRIORITIES if record.levelno >= level), 7)
        return "\n".join(f"<{number}>{line}" for line in super().format(record).splitlines())


def log_to_stderr() -> None:
    """Log to stderr, as its reader wants it: a journal has the name, the time and the process itself."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Priorities() if _journal_reads() else logging.Formatter("%(name)s: %(message)s"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])


def _journal_reads() -> bool:
    found = os.fstat(sys.stderr.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"
