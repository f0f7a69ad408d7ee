"""The journal: each change of the kernel as lines of JSON that outlive the daemon.

A change has two lines, written through to the disk: one when it begins, one when it has ended, so a change in which the
machine died is told.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from dynamos_ng.closing import Closing
from dynamos_ng.errors import DynamosError
from dynamos_ng.jsonlines import Lines, read
from dynamos_ng.model import Peer
from dynamos_ng.wire import plain, restored

log = logging.getLogger("dynamosd")

T = TypeVar("T")

FOLDER = Path("/var/lib/dynamos/journal")
NAME = "changes"
#: How many files are kept.
KEPT = 8
#: Of a change that measured more than this, the measurements are left out.
LINE_MAX = 1 << 20
TEXT_MAX = 1000
#: A change of `schedule` finds hundreds of holders; the rest is counted.
HOLDERS_MAX = 8
#: So many entries are kept in memory, for those who ask the daemon.
RECENT = 100


@dataclass(frozen=True)
class Entry:
    """A change: who asked for what, and the answer, or None of one that has not ended.

    `cut_off` says that it will not end any more: the daemon or the machine died in it. `lost` entries before it could
    not be written. `seconds` is how long it took.
    """

    number: int
    time: float
    who: Peer
    verb: str
    arguments: dict[str, Any]
    answer: dict[str, Any] | None = None
    seconds: float = 0.0
    lost: int = 0
    cut_off: bool = False


class Journal(Closing):
    """The daemon's side: writes changes as they begin and end. Methods may be called from several threads.

    What cannot be written (a full disk) stops no change: it is logged, counted, and told with the next entry.
    """

    def __init__(self, folder: Path = FOLDER) -> None:
        self._lines = Lines(folder, NAME, kept=KEPT)
        self._lock = threading.Lock()
        entries, torn = changes(folder)
        if torn:
            log.warning("%s: %d torn lines are passed over", folder, torn)
        self._under_way: dict[int, Entry] = {}
        self._recent = deque((_brief(ended(entry)) for entry in entries), maxlen=RECENT)
        self._last = max((entry.number for entry in entries), default=0)
        self._lost = 0

    def close(self) -> None:
        """Close the file."""
        self._lines.close()

    def begin(self, who: Peer | None, verb: str, arguments: dict[str, Any]) -> int:
        """Note that a change begins, which the daemon makes by itself if WHO is None; return its number for `end`."""
        who = who or Peer(os.geteuid(), os.getpid(), "dynamosd")
        with self._lock:
            self._last += 1
            entry = Entry(self._last, time.time(), who, verb, _short(arguments), lost=self._lost)
            self._under_way[entry.number] = entry
            self._write({"step": "begin", **plain(entry)})
        return entry.number

    def end(self, number: int, answer: dict[str, Any]) -> None:
        """Note how a change ended: the answer is what the one who asked for it was told."""
        with self._lock:
            entry = self._under_way.pop(number)
            short = _condensed(answer)
            if len(json.dumps(short)) > LINE_MAX:
                short = {"result": {}, "left_out": True}
            entry = replace(entry, answer=short, lost=max(entry.lost, self._lost))
            entry = replace(entry, seconds=round(time.time() - entry.time, 6))
            self._recent.append(_brief(entry))
            self._write({"step": "end", **plain(entry)})

    def note(self, verb: str, arguments: dict[str, Any], answer: dict[str, Any]) -> None:
        """Note something that the daemon has done by itself."""
        self.end(self.begin(None, verb, arguments), answer)

    def by_itself(self, verb: str, arguments: dict[str, Any], make: Callable[[], T]) -> T:
        """Make a change that nobody asked for just now, and note it down as the daemon's."""
        number = self.begin(None, verb, arguments)
        answer: dict[str, Any] = {"error": "an internal error; see dynamosd's log", "exit": 1}
        try:
            result = make()
            answer = {"result": plain(result)}
            return result
        except DynamosError as error:
            answer = {"error": str(error), "exit": error.exit_code}
            raise
        finally:
            self.end(number, answer)

    def recent(self) -> tuple[Entry, ...]:
        """Return the last entries, without what was measured, and those that have not ended, oldest first."""
        with self._lock:
            return (*self._recent, *self._under_way.values())

    def _write(self, line: dict[str, Any]) -> None:
        try:
            self._lines.append(line, sync=True)
            self._lost = 0
        except OSError as error:
            self._lost += 1
            log.error("the journal could not be written (%s): %s", error.strerror, line["verb"])


# Reading


def changes(folder: Path = FOLDER) -> tuple[list[Entry], int]:
    """Return all changes, oldest first, and how many lines could not be read."""
    found: dict[int, Entry] = {}
    torn = 0
    try:
        for line in read(folder, NAME):
            try:
                entry = _entry(line)
            except (ValueError, KeyError, TypeError):
                torn += 1
                continue
            if entry.verb == START:
                found = {number: ended(known) for number, known in found.items()}
            found[entry.number] = entry
    except PermissionError:
        raise DynamosError(f"{folder}: permission denied: run as root") from None
    except OSError as error:
        raise DynamosError(f"{folder}: {error.strerror}") from None
    return list(found.values()), torn


#: What the daemon notes when it begins: no change that had begun before will end any more.
START = "dynamosd"


def ended(entry: Entry) -> Entry:
    """Return an entry as one that gets no answer any more."""
    return entry if entry.answer is not None else replace(entry, cut_off=True)


def _entry(line: dict[str, Any] | None) -> Entry:
    if line is None:
        raise ValueError("torn")
    return Entry(
        int(line["number"]), float(line["time"]), restored(Peer, line["who"]), str(line["verb"]),
        dict(line["arguments"]), line["answer"], float(line["seconds"]), int(line["lost"]),
    )  # fmt: skip


# What is kept of an answer


def _short(arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        str(key)[:TEXT_MAX]: value[:TEXT_MAX] if isinstance(value, str) else value for key, value in arguments.items()
    }


def _condensed(value: Any) -> Any:
    """Return an answer without what says nothing later: addresses, code bytes, and the holders past the first."""
    if isinstance(value, list):
        return [_condensed(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "original_bytes" in value:
        return {"name": value["name"], "editions": [edition["number"] for edition in value["editions"]]}
    found = {key: _condensed(item) for key, item in value.items() if key != "frames"}
    if isinstance(holders := found.get("holders"), list):
        found["holders"] = holders[:HOLDERS_MAX]
    return found


def _brief(entry: Entry) -> Entry:
    """Return an entry without what a change measured: that may be a megabyte."""
    result = (entry.answer or {}).get("result")
    if not isinstance(result, dict):
        return entry
    return replace(entry, answer={"result": {key: result[key] for key in result if key not in ("before", "after")}})
