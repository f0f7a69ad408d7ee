"""How long calls of functions take, measured by probes for a while: bpf/latency.c at their entries and returns."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Mapping
from contextlib import ExitStack

from dynamos_ng import bpf, bpfmaps, engine, kprobes
from dynamos_ng.engine import Source
from dynamos_ng.errors import KernelRefused
from dynamos_ng.latency import BUCKETS, EditionLatency
from dynamos_ng.probes import attach_pair

#: How many calls may be in progress at one time, of all functions together.
IN_PROGRESS = 16384
#: Of ax in struct pt_regs.
RETURN_VALUE = 80 if struct.calcsize("P") == 8 else 24


def measure(places: Mapping[int, int], seconds: float) -> tuple[EditionLatency, ...]:
    """Time the calls of functions at these addresses, by edition, for so long; KernelRefused if one has no probe.

    All begin and end together but for the time that it takes to attach a probe.
    """
    cpus = bpfmaps.possible_cpus()
    rooms = {"begun": IN_PROGRESS, "calls": len(places), "times": len(places) * BUCKETS}
    source = Source("latency.c", bpf.PROGRAM_KPROBE, rooms, offsets={"RETURN_VALUE": RETURN_VALUE})
    with engine.load(source) as programs:
        pair = programs.program("on_entry"), programs.program("on_return")
        with ExitStack() as attached:
            names = []
            for slot, address in enumerate(places.values()):
                name = f"latency_{os.getpid()}_{time.monotonic_ns()}_{slot}"
                try:
                    watch = attach_pair(name, slot, f"{address:#x}", pair, kprobes.MAXACTIVE_MAX, breakpoints=True)
                except OSError as error:
                    raise KernelRefused(f"a probe at {address:#x}: {kprobes.why(error)}", error.errno or 0) from None
                attached.callback(watch.undo.close)
                names.append(watch.exit)
            time.sleep(seconds)
            profile = kprobes.profile()
        missed = [profile.get(name, (0, 0))[1] for name in names]
        counts = programs.table("calls"), programs.table("times")
        return tuple(
            _read(number, slot, missed[slot], *counts, cpus) for slot, number in enumerate(places)
        )


def _read(number: int, slot: int, missed: int, calls: int, times: int, cpus: int) -> EditionLatency:
    words = struct.unpack(f"={3 * cpus}Q", bpf.lookup(calls, struct.pack("=I", slot), 24 * cpus))
    returned, errors, lost = (sum(words[place::3]) for place in range(3))
    histogram = []
    for index in range(BUCKETS):
        raw = bpf.lookup(times, struct.pack("=I", slot * BUCKETS + index), 8 * cpus)
        if count := sum(struct.unpack(f"={cpus}Q", raw)):
            histogram.append((index, count))
    return EditionLatency(number, returned, errors, lost + missed, tuple(histogram))
