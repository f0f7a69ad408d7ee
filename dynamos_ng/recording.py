"""Recordings: snapshots that the daemon keeps while it is asked to, or that somebody saved, read back one by one."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from dynamos_ng.closing import Closing
from dynamos_ng.errors import DynamosError, UsageError
from dynamos_ng.jsonlines import Lines, content, numbered
from dynamos_ng.model import Snapshot
from dynamos_ng.wire import plain, restored

log = logging.getLogger("dynamosd")

NAME = "snapshots"
#: How many files are kept; they repeat themselves, and are packed when they are full.
KEPT = 64


class Recorder(Closing):
    """Writes a snapshot each so many seconds until it is closed."""

    def __init__(self, folder: Path, seconds: float, take: Callable[[], Snapshot]) -> None:
        self._lines = Lines(folder, NAME, kept=KEPT, packs=True)
        self._seconds, self._take = seconds, take
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop; what was written stays."""
        self._stop.set()
        self._thread.join()
        self._lines.close()

    def _run(self) -> None:
        failing = False
        while not self._stop.wait(self._seconds):
            try:
                self._lines.append(plain(self._take()), sync=False)
                failing = False
            except (OSError, DynamosError) as error:
                if not failing:
                    log.error("no snapshot is recorded: %s", error)
                failing = True


class Recording:
    """Snapshots in a journal's folder, or in a file of JSON lines; each is read when it is asked for."""

    def __init__(self, path: Path) -> None:
        """Find the lines; UsageError when there are none."""
        self._places: list[tuple[Path, int, int]] = []
        self._read: tuple[Path, bytes] = path, b""
        self.torn = 0
        try:
            for file in numbered(path, NAME) if path.is_dir() else [path]:
                at = 0
                for line in self._bytes(file).splitlines(keepends=True):
                    if line.endswith(b"}\n"):
                        self._places.append((file, at, len(line)))
                    else:
                        self.torn += bool(line.strip())
                    at += len(line)
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from None
        if not self._places:
            raise UsageError(
                f"{path}: there are no snapshots: have the daemon write some (dynamosd --record 10), or save "
                "what 'dynamos top --json' prints"
            )

    def _bytes(self, file: Path) -> bytes:
        """Return what is in a file; the last one is kept, for snapshots are asked for in a row."""
        if file != self._read[0] or not self._read[1]:
            self._read = file, content(file)
        return self._read[1]

    def __len__(self) -> int:
        return len(self._places)

    def snapshot(self, index: int) -> Snapshot:
        """Return one snapshot; UsageError when its line holds something else."""
        file, at, size = self._places[index]
        try:
            return restored(Snapshot, json.loads(self._bytes(file)[at : at + size]))
        except (OSError, ValueError) as error:
            raise UsageError(f"snapshot {index + 1}: {error} ({file})") from None
