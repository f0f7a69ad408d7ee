"""How long calls of functions take, measured by probes for a while: bpf/latency.c at their entries and returns."""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack

from dynamos_ng import bpf, bpfmaps, engine, kprobes, uapi
from dynamos_ng.closing import Closing
from dynamos_ng.engine import Programs, Source
from dynamos_ng.errors import KernelRefused
from dynamos_ng.latency import BUCKETS, EditionLatency
from dynamos_ng.probes import attach_pair

#: How many calls may be in progress at one time, of all functions together.
IN_PROGRESS = 16384
SLOTS = uapi.EDITIONS_MAX
#: Of ax in struct pt_regs.
RETURN_VALUE = 80 if struct.calcsize("P") == 8 else 24


class Timer(Closing):
    """Times calls. The programs are compiled at the first measurement and kept; nothing is attached between two."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._cpus = bpfmaps.possible_cpus()
        self._loaded: Programs | None = None
        self._round = 0

    def close(self) -> None:
        """Give the programs back; a measurement that is under way ends first."""
        with self._lock:
            if self._loaded:
                self._loaded.close()
                self._loaded = None

    def measure(self, places: Mapping[int, int], seconds: float) -> tuple[EditionLatency, ...]:
        """Time the calls of functions at these addresses, by edition, for so long; KernelRefused if one has no probe.

        All begin and end together but for the time that it takes to attach a probe. Callers take turns.
        """
        with self._lock:
            programs = self._programs()
            pair = programs.program("on_entry"), programs.program("on_return")
            self._round += 1
            with ExitStack() as attached:
                names = []
                for slot, address in enumerate(places.values()):
                    self._forget(programs, slot)
                    name, cookie = f"latency_{os.getpid()}_{self._round}_{slot}", self._round << 32 | slot
                    try:
                        watch = attach_pair(name, cookie, f"{address:#x}", pair, kprobes.MAXACTIVE_MAX, True)
                    except OSError as error:
                        words = f"a probe at {address:#x}: {kprobes.why(error)}"
                        raise KernelRefused(words, error.errno or 0) from None
                    attached.callback(watch.undo.close)
                    names.append(watch.exit)
                time.sleep(seconds)
                profile = kprobes.profile()
            missed = [profile.get(name, (0, 0))[1] for name in names]
            return tuple(self._read(programs, slot, number, missed[slot]) for slot, number in enumerate(places))

    def _programs(self) -> Programs:
        if self._loaded is None:
            rooms = {"begun": IN_PROGRESS, "calls": SLOTS, "times": SLOTS * BUCKETS}
            offsets = {"RETURN_VALUE": RETURN_VALUE}
            self._loaded = engine.load(Source("latency.c", bpf.PROGRAM_KPROBE, rooms, offsets=offsets))
        return self._loaded

    def _forget(self, programs: Programs, slot: int) -> None:
        bpf.update(programs.table("calls"), struct.pack("=I", slot), bytes(24 * self._cpus))
        for place in range(slot * BUCKETS, (slot + 1) * BUCKETS):
            bpf.update(programs.table("times"), struct.pack("=I", place), bytes(8 * self._cpus))

    def _read(self, programs: Programs, slot: int, number: int, missed: int) -> EditionLatency:
        raw = bpf.lookup(programs.table("calls"), struct.pack("=I", slot), 24 * self._cpus)
        words = struct.unpack(f"={3 * self._cpus}Q", raw)
        returned, errors, lost = (sum(words[place::3]) for place in range(3))
        histogram = []
        for index in range(BUCKETS):
            raw = bpf.lookup(programs.table("times"), struct.pack("=I", slot * BUCKETS + index), 8 * self._cpus)
            if count := sum(struct.unpack(f"={self._cpus}Q", raw)):
                histogram.append((index, count))
        return EditionLatency(number, returned, errors, lost + missed, tuple(histogram))
