"""Sampled kernel stacks: what bpf/stacks.c collects, and which of it lies in given code."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from dynamos_ng import bpf, bpfmaps
from dynamos_ng.engine import Programs, Source

#: How many different stacks there is room for.
ROOM = 16384
#: Samples per second and CPU: not a divisor of timer ticks, so as not to march in step with them.
HERTZ = 99
SOURCE = Source("stacks.c", bpf.PROGRAM_PERF_EVENT, {"stacks": ROOM, "samples": ROOM})
#: The most frames of a stack (PERF_MAX_STACK_DEPTH of include/uapi/linux/perf_event.h).
_DEPTH = 127


@dataclass(frozen=True)
class Stack:
    """A sampled kernel stack, its addresses innermost frame first, and how often it was seen."""

    samples: int
    frames: tuple[int, ...]


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

    def __init__(self, programs: Programs, cpus: int) -> None:
        """Use SOURCE's programs, which the caller closes, on a machine with so many possible CPUs."""
        self._programs = programs
        self._cpus = cpus
        self._attached = ExitStack()
        self._running = False

    def _elements(self, name: str, size: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield keys and values of a map whose keys are numbers."""
        table = self._programs.table(name)
        key = bpf.next_key(table, None, 4)
        while key is not None:
            yield key, bpf.lookup(table, key, size)
            key = bpf.next_key(table, key, 4)

    def start(self) -> None:
        """Sample from now on; earlier samples are forgotten. A no-op when it runs already."""
        if self._running:
            return
        for name in ("samples", "stacks"):
            table = self._programs.table(name)
            while (key := bpf.next_key(table, None, 4)) is not None:
                bpf.delete(table, key)
        bpf.update(self._programs.table("totals"), bytes(4), bytes(24 * self._cpus))
        with ExitStack() as undo:
            for cpu in bpfmaps.cpus("online"):
                perf, link = bpf.attach_to_clock(cpu, HERTZ, self._programs.program("on_sample"))
                undo.callback(os.close, perf)
                undo.callback(os.close, link)
            self._attached = undo.pop_all()
        self._running = True

    def stop(self) -> None:
        """Stop sampling; what was sampled can still be read."""
        self._attached.close()
        self._running = False

    def samples(self, ranges: Sequence[tuple[int, int]]) -> Samples:
        """Return what was sampled, and the stacks with a frame in [start, end) of one of the ranges."""
        raw = bpf.lookup(self._programs.table("totals"), bytes(4), 24 * self._cpus)
        totals = struct.unpack(f"={3 * self._cpus}Q", raw)
        found = [0] * len(ranges)
        inside: list[Stack] = []
        stacks = dict(self._elements("stacks", 8 * _DEPTH))
        for key, value in self._elements("samples", 8):
            stack = Stack(int.from_bytes(value, "little"), _frames(stacks.get(key, b"")))
            hits = [_frame_in(stack.frames, start, end) for start, end in ranges]
            for index, hit in enumerate(hits):
                found[index] += stack.samples if hit else 0
            if any(hits):
                inside.append(stack)
        return Samples(
            kernel=sum(totals[0::3]),
            user=sum(totals[1::3]),
            lost=sum(totals[2::3]),
            found=tuple(found),
            stacks=tuple(sorted(inside, key=lambda stack: stack.samples, reverse=True)),
        )


def _frames(raw: bytes) -> tuple[int, ...]:
    """Return a stack's addresses from the kernel's form: the rest is 0."""
    return tuple(address for (address,) in struct.iter_unpack("=Q", raw) if address)


def _frame_in(frames: Sequence[int], start: int, end: int) -> bool:
    """Return whether a stack has a frame in a range.

    All but the innermost are return addresses: of a call that is the last instruction, just past the end.
    """
    return any(start <= (frame - (1 if index else 0)) < end for index, frame in enumerate(frames))
