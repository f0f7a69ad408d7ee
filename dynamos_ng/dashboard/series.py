"""What follows from snapshots in a row: rates, which are differences of two, and their past."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from dynamos_ng.model import Cost, FunctionStatus, Snapshot, UpdateStatus

#: How many rates are kept of each counter.
LENGTH = 240
#: The original's place among the editions, where probes count it.
ORIGINAL = 0

#: Update, function, edition.
Key = tuple[str, str, int]


@dataclass(frozen=True)
class _Counter:
    """A counter; one of another `identity` is another counter, even under the same key."""

    identity: tuple[int, int]
    value: int


class Series:
    """Snapshots in a row; only the latest is kept whole."""

    def __init__(self, snapshots: Iterable[Snapshot] = ()) -> None:
        self.latest: Snapshot | None = None
        self._counters: dict[Key, _Counter] = {}
        self._rates: dict[Key, deque[float | None]] = {}
        self._shares: dict[str, float | None] = {}
        for snapshot in snapshots:
            self.add(snapshot)

    def add(self, snapshot: Snapshot) -> None:
        """Take the next snapshot; one of the same moment replaces the latest."""
        before, self.latest = self.latest, snapshot
        seconds = snapshot.uptime - before.uptime if before else 0.0
        if before and seconds == 0:
            return
        counters = dict(_counters(snapshot))
        self._rates = {key: self._rates.get(key, deque(maxlen=LENGTH)) for key in counters}
        for key, counter in counters.items():
            old = self._counters.get(key)
            known = old is not None and old.identity == counter.identity and old.value <= counter.value
            self._rates[key].append((counter.value - old.value) / seconds if old and known and seconds > 0 else None)
        self._counters = counters
        for name in ("daemon", "watcher"):
            self._shares[name] = _share(getattr(before, name) if before else None, getattr(snapshot, name), seconds)

    def rate(self, key: Key) -> float | None:
        """Return calls per second between the last two snapshots, None where that is not known."""
        rates = self._rates.get(key)
        return rates[-1] if rates else None

    def past(self, key: Key) -> Sequence[float | None]:
        """Return the rates until now, the latest last."""
        return tuple(self._rates.get(key, ()))

    def share(self, name: str) -> float | None:
        """Return how much of one CPU "daemon" or "watcher" used between the last two snapshots."""
        return self._shares.get(name)


def statuses(snapshot: Snapshot) -> Iterator[tuple[UpdateStatus, FunctionStatus]]:
    """Yield every function with its update."""
    for update in snapshot.updates:
        for status in update.functions:
            yield update, status


def _counters(snapshot: Snapshot) -> Iterator[tuple[Key, _Counter]]:
    for update, status in statuses(snapshot):
        name = status.function.name
        for use in status.uses:
            yield (update.name, name, use.number), _Counter((status.function.id, status.function.handler), use.entered)
        if status.probes:
            yield (update.name, name, ORIGINAL), _Counter((status.function.address, 0), status.probes.entries)


def _share(old: Cost | None, new: Cost | None, seconds: float) -> float | None:
    if old is None or new is None or old.pid != new.pid or seconds <= 0:
        return None
    return max(0.0, new.cpu_seconds - old.cpu_seconds) / seconds
