"""Sampled kernel stacks: what bpf/stacks.c collects, and which of it lies in given code."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from dynamos_ng import bpf

#: How many different stacks there is room for.
ROOM = 16384
#: Samples per second and CPU: not a divisor of timer ticks, so as not to march in step with them.
HERTZ = 99

_PERF_SOFTWARE, _PERF_CPU_CLOCK = 1, 0


@dataclass(frozen=True)
class Stack:
    """A sampled kernel stack, innermost frame first, and how often it was seen."""

    samples: int
    frames: tuple[str, ...]


@dataclass(frozen=True)
class Samples:
    """Sampled kernel stacks since the sampler's start.

    `found` counts those with a frame in the given ranges, by range; `stacks` are these, most frequent first.
    `kernel`, `user` and `lost` count samples taken in kernel code, in user space, and not kept.
    """

    kernel: int
    user: int
    lost: int
    found: tuple[int, ...]
    stacks: tuple[Stack, ...]


class Sampler:
    """Samples the kernel stacks of all CPUs; the caller sees to it that one thread at a time uses it."""

    def __init__(self, bcc: Any, module: Any, cpus: int) -> None:
        """Use a compiled bpf/stacks.c, which the caller releases."""
        self._bcc = bcc
        self._module = module
        self._cpus = cpus
        self._running = False

    def _table(self, name: str) -> int:
        return int(self._module[name.encode()].map_fd)

    def start(self) -> None:
        """Sample from now on; earlier samples are forgotten. A no-op when it runs already."""
        if self._running:
            return
        for name in ("samples", "stacks"):  # bcc's own clear() passes over stack maps
            table = self._table(name)
            while (key := bpf.next_key(table, None, 4)) is not None:
                bpf.delete(table, key)
        bpf.update(self._table("totals"), bytes(4), bytes(24 * self._cpus))
        self._module.attach_perf_event(
            ev_type=_PERF_SOFTWARE, ev_config=_PERF_CPU_CLOCK, fn_name=b"on_sample", sample_freq=HERTZ
        )
        self._running = True

    def stop(self) -> None:
        """Stop sampling; what was sampled can still be read."""
        if self._running:
            self._module.detach_perf_event(ev_type=_PERF_SOFTWARE, ev_config=_PERF_CPU_CLOCK)
            self._running = False

    def samples(self, ranges: Sequence[tuple[int, int]]) -> Samples:
        """Return what was sampled, and the stacks with a frame in [start, end) of one of the ranges."""
        raw = bpf.lookup(self._table("totals"), bytes(4), 24 * self._cpus)
        totals = struct.unpack(f"={3 * self._cpus}Q", raw)
        found = [0] * len(ranges)
        inside: list[tuple[int, tuple[int, ...]]] = []
        table = self._module[b"stacks"]
        for key, value in self._module[b"samples"].items():
            frames = tuple(table.walk(key.value))
            hits = [_frame_in(frames, start, end) for start, end in ranges]
            for index, hit in enumerate(hits):
                found[index] += value.value if hit else 0
            if any(hits):
                inside.append((int(value.value), frames))
        return Samples(
            kernel=sum(totals[0::3]),
            user=sum(totals[1::3]),
            lost=sum(totals[2::3]),
            found=tuple(found),
            stacks=tuple(self._named(sorted(inside, reverse=True))),
        )

    def _named(self, stacks: Iterable[tuple[int, tuple[int, ...]]]) -> Iterator[Stack]:
        """Give frames their names, from a fresh reading of the symbols: updates come and go."""
        symbols: Any = None
        for samples, frames in stacks:
            if symbols is None:
                symbols = self._bcc.SymbolCache(-1)
            named = []
            for address in frames:
                name, offset, _ = symbols.resolve(address, False)
                named.append(f"{name.decode(errors='replace')}+{offset:#x}" if name else f"{address:#x}")
            yield Stack(samples, tuple(named))
        if symbols is not None:
            self._bcc.lib.bcc_free_symcache(ctypes.c_void_p(symbols.cache), -1)


def _frame_in(frames: Sequence[int], start: int, end: int) -> bool:
    """Return whether a stack has a frame in a range.

    All but the innermost are return addresses: of a call that is the last instruction, just past the end.
    """
    return any(start <= (frame - (1 if index else 0)) < end for index, frame in enumerate(frames))
