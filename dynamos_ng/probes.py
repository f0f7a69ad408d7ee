"""BPF: classification in the kernel, calls of functions, sampled stacks, forks and execs.

`engine` compiles and loads the programs. Compiling is what costs (seconds), so each family of probes is compiled when
it is first asked for, and the classification only when no working one is pinned.
"""

from __future__ import annotations

import hashlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from dynamos_ng import bpf, bpfmaps, engine, kprobes, stacks
from dynamos_ng.closing import Closing
from dynamos_ng.device import Device
from dynamos_ng.engine import Programs, Source
from dynamos_ng.errors import KernelRefused, MissingTool
from dynamos_ng.model import CallCounts
from dynamos_ng.stacks import Sampler, Samples, Stack

#: How many functions one Probes can watch at one time.
SLOTS = 1024
_FORK, _EXEC, _EXIT = "sched_process_fork", "sched_process_exec", "sched_process_exit"
#: Program and the pinned maps that it must use, by tracepoint.
_CLASSIFIERS = {
    _EXIT: ("on_exit", ("policy", "decisions", "judgements", "undecided")),
    _FORK: ("on_fork", ("policy", "policy_state", "decisions", "judgements", "undecided")),
    _EXEC: ("on_exec", ("policy", "rules", "policy_state", "policy_rules", "decisions", "undecided", "cgroup_rules")),
}


def _offsets() -> dict[str, int]:
    """Return where the programs find things in a task, which dynamos.ko knows: it was compiled for this kernel."""
    with Device() as device:
        info = device.info()
    found = info.pid_offset, info.tgid_offset, info.signal_offset, info.live_offset
    return dict(zip(engine.OFFSETS, found, strict=False))


# Classification


def _digest() -> str:
    return hashlib.sha256((engine.SOURCES / "classify.c").read_bytes()).hexdigest()[:12]


def ensure_classification(directory: Path = bpfmaps.PIN_DIR) -> bool:
    """See to it that fork, exec and exit keep up the policy map; return whether that was so already.

    The programs' links are pinned beside the maps, under a name made of their source: a restarted daemon takes
    them over as they are; one with other programs attaches its own before it takes the old ones away.
    dynamos.ko must be loaded.
    """
    try:
        return _ensure(directory, directory / f"classify-{_digest()}")
    except OSError as error:
        raise KernelRefused(f"classification in {directory}: {error.strerror}", error.errno or 0) from None


def _ensure(directory: Path, links: Path) -> bool:
    names = {name for _, used in _CLASSIFIERS.values() for name in used}
    maps = {name: _map_id(directory / name) for name in sorted(names)}
    missing = [
        tracepoint
        for tracepoint, (_, used) in _CLASSIFIERS.items()
        if not _answers(links / tracepoint, tracepoint, {maps[name] for name in used})
    ]
    if missing:
        links.mkdir(mode=0o700, exist_ok=True)
        pins = {name: directory / name for name in maps}
        source = Source("classify.c", bpf.PROGRAM_RAW_TRACEPOINT, pins=pins, offsets=_offsets())
        with engine.load(source) as programs:
            for tracepoint in missing:
                _attach_pinned(programs, tracepoint, links / tracepoint)
    for old in directory.glob("classify-*"):
        if old != links:
            for link in old.iterdir():
                link.unlink()
            old.rmdir()
    return not missing


def _map_id(path: Path) -> int:
    fd = bpf.open_pin(path)
    try:
        return bpf.map_info(fd).id
    finally:
        os.close(fd)


def _answers(path: Path, tracepoint: str, maps: set[int]) -> bool:
    """Return whether a pinned link runs a program at this tracepoint that uses these maps."""
    with ExitStack() as undo:
        try:
            link = bpf.open_pin(path)
        except FileNotFoundError:
            return False
        undo.callback(os.close, link)
        info = bpf.link_info(link) if bpf.is_link(link) else None
        if info is None or info.tracepoint != tracepoint:
            return False
        program = bpf.program_by_id(info.program)
        undo.callback(os.close, program)
        return maps <= bpf.program_maps(program)


def _attach_pinned(programs: Programs, tracepoint: str, path: Path) -> None:
    link = bpf.raw_tracepoint_open(tracepoint, programs.program(_CLASSIFIERS[tracepoint][0]))
    try:  # attached from here on: the pin of a link that does not answer can go
        path.unlink(missing_ok=True)
        bpf.pin(link, path)
    finally:
        os.close(link)


# Values


@dataclass(frozen=True)
class Unwatchable:
    """A function that cannot be probed, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ProcessEvent:
    """A process that forked (kind "fork": `pid` is the new one, `parent` its creator), "exec" or "exit"."""

    kind: str
    pid: int
    parent: int
    comm: str


#: struct event of bpf/events.c, and its kinds.
_EVENT = struct.Struct("=III16s")
_KINDS = ("fork", "exec", "exit")


@dataclass(frozen=True)
class Watch:
    """A function with programs at its entry and returns: their cookie, the names of the two events, and their undo."""

    cookie: int
    entry: str
    exit: str
    undo: ExitStack


def attach_pair(
    name: str, cookie: int, place: str, programs: tuple[int, int], maxactive: int, breakpoints: bool
) -> Watch:
    """Have programs run at a function's entry and at its returns, with this cookie. OSError, _Breakpoint.

    NAME ends as kprobes.sweep wants it.
    """
    entry, back = f"entry_{name}", f"return_{name}"
    with ExitStack() as undo:
        entry_id = kprobes.define_entry(entry, place)
        undo.callback(kprobes.remove, entry)
        if not breakpoints and kprobes.uses_breakpoint(place):
            raise _Breakpoint
        back_id = kprobes.define_return(back, place, maxactive)
        undo.callback(kprobes.remove, back)
        # Entries first: a call that begins between the two is then taken for one in progress for good;
        # the other way round it would hide one that is.
        for event_id, program in zip((entry_id, back_id), programs, strict=True):
            perf, link = bpf.attach_to_trace_event(event_id, program, cookie)
            undo.callback(os.close, perf)
            undo.callback(os.close, link)
        return Watch(cookie, entry, back, undo.pop_all())


# Measuring


class Probes(Closing):
    """What this process measures with. Everything it attached is detached by `close`, or by its end.

    Methods may be called from several threads.
    """

    _serial = 0

    def __init__(self, maxactive: int = kprobes.MAXACTIVE_MAX) -> None:
        """Attach nothing yet. `maxactive` calls in progress per function are followed to their return."""
        self._lock = threading.RLock()
        self._maxactive = maxactive
        Probes._serial += 1
        self._prefix = f"calls_{os.getpid()}_{Probes._serial}"
        self._cpus = bpfmaps.possible_cpus()
        self._undo = ExitStack()
        self._watched: dict[str, Watch] = {}
        self._attached = count()
        self._calls = -1
        self._programs = (-1, -1)
        self._sampler: Sampler | None = None
        self._sampling = threading.Lock()  # taken before _lock
        self._stream: Programs | None = None
        self._fetch: Callable[[], object] = lambda: None
        self._received: list[ProcessEvent] = []
        kprobes.sweep()

    def close(self) -> None:
        """Detach everything."""
        with self._lock:
            self.unwatch(list(self._watched))
            self.stop_sampler()
            self._undo.close()
            self._calls = -1
            self._sampler = self._stream = None

    @property
    def engine(self) -> str:
        """Return what runs the programs: "bcc" or "libbpf"."""
        return engine.name()

    def _load(self, source: Source) -> Programs:
        return self._undo.enter_context(engine.load(source))

    # Calls

    def watch(
        self, functions: Iterable[str] | Mapping[str, int], *, breakpoints: bool = False
    ) -> tuple[Unwatchable, ...]:
        """Count entries and returns of functions from now on; return those where that cannot be done.

        Give names, or addresses by name where a name is ambiguous. Watching a watched one again is a no-op.
        A probe that cannot use an ftrace site is a breakpoint in the code itself, and in an original just where
        the trampoline goes: it is turned down unless `breakpoints` allows it (as for clones, which get no
        trampoline).
        """
        refused = []
        with self._lock:
            if self._calls < 0:
                programs = self._load(Source("calls.c", bpf.PROGRAM_KPROBE, {"calls": SLOTS}))
                self._programs = programs.program("on_entry"), programs.program("on_return")
                self._calls = programs.table("calls")
            for name in functions:
                if name in self._watched:
                    continue
                place = f"{functions[name]:#x}" if isinstance(functions, Mapping) else name
                try:
                    self._watched[name] = self._attach(place, breakpoints)
                except OSError as error:
                    refused.append(Unwatchable(name, kprobes.why(error)))
                except MissingTool as error:
                    refused.append(Unwatchable(name, str(error)))
                except _Breakpoint:
                    reason = "no ftrace site is there: a probe would be a breakpoint, where the trampoline goes"
                    refused.append(Unwatchable(name, reason))
        return tuple(refused)

    def _attach(self, place: str, breakpoints: bool) -> Watch:
        used = {watch.cookie for watch in self._watched.values()}
        slot = next((slot for slot in range(SLOTS) if slot not in used), None)
        if slot is None:
            raise KernelRefused(f"probes: {SLOTS} functions are watched already; unwatch one first")
        bpf.update(self._calls, struct.pack("=I", slot), bytes(16 * self._cpus))
        # No name is used twice: a definition that somebody else had enabled may still be there.
        name = f"{self._prefix}_{next(self._attached)}"
        return attach_pair(name, slot, place, self._programs, self._maxactive, breakpoints)

    def watches(self, name: str) -> bool:
        """Return whether a function is watched."""
        with self._lock:
            return name in self._watched

    def unwatch(self, names: Iterable[str]) -> None:
        """Detach from these functions and forget their counts; unknown names are passed over."""
        with self._lock:
            for name in names:
                watch = self._watched.pop(name, None)
                if watch is not None:
                    watch.undo.close()

    def counts(self) -> dict[str, CallCounts]:
        """Return entries and returns of each watched function since it was watched.

        A call that was in progress then is not seen at all, neither its entry nor its return. `missed` counts
        entries and returns that were not seen: more calls in progress than `maxactive`, a probe hit inside
        another one, or a program skipped because another one ran on that CPU. It may lag while calls go on.
        """
        with self._lock:
            if not self._watched:
                return {}
            # The kernel's own hits are read before the programs' counts, which so can only be too high: what
            # is left over was skipped.
            profile = kprobes.profile()
            found = {}
            for name, watch in self._watched.items():
                entries, exits = bpfmaps.pair_sums(self._calls, watch.cookie, self._cpus)
                missed = 0
                for event, seen in ((watch.entry, entries), (watch.exit, exits)):
                    hits, lost = profile.get(event, (0, 0))
                    missed += lost + max(0, hits - seen)
                found[name] = CallCounts(entries, exits, missed)
            return found

    # Stacks

    def start_sampler(self) -> None:
        """Sample the kernel stacks of all CPUs from now on, 99 times a second; earlier samples are forgotten."""
        with self._lock:
            if self._sampler is None:
                self._sampler = Sampler(self._load(stacks.SOURCE), self._cpus)
            self._sampler.start()

    def stop_sampler(self) -> None:
        """Stop sampling; what was sampled can still be read."""
        with self._lock:
            if self._sampler is not None:
                self._sampler.stop()

    def samples(self, ranges: Sequence[tuple[int, int]]) -> Samples:
        """Return what was sampled, and the stacks with a frame in [start, end) of one of the ranges."""
        with self._lock:
            if self._sampler is None:
                return Samples(0, 0, 0, (0,) * len(ranges), ())
            return self._sampler.samples(ranges)

    def sample(self, ranges: Sequence[tuple[int, int]], seconds: float) -> tuple[Stack, ...]:
        """Sample for so many seconds and return the stacks that had a frame in any of the ranges, most frequent first.

        Callers take turns.
        """
        with self._sampling:
            self.start_sampler()
            try:
                time.sleep(seconds)
            finally:
                self.stop_sampler()
            return self.samples(ranges).stacks

    # Events

    def start_events(self, pages: int = 64) -> None:
        """Receive forks, execs and exits of all processes from now on; fetch them with `events`.

        There is room for about 100 events per page (a power of two) until they are fetched.
        """
        with self._lock:
            if self._stream is not None:
                return
            source = Source("events.c", bpf.PROGRAM_RAW_TRACEPOINT, {"events": pages}, offsets=_offsets())
            programs = self._load(source)

            def receive(data: bytes) -> None:
                kind, pid, parent, comm = _EVENT.unpack_from(data)
                name = os.fsdecode(comm.split(b"\0", 1)[0])
                self._received.append(ProcessEvent(_KINDS[kind], pid, parent, name))

            self._fetch = programs.receive("events", receive)
            for tracepoint, (program, _) in _CLASSIFIERS.items():
                link = bpf.raw_tracepoint_open(tracepoint, programs.program(program))
                self._undo.callback(os.close, link)
            self._stream = programs

    def events(self) -> tuple[ProcessEvent, ...]:
        """Return the events since the last call, in order."""
        with self._lock:
            if self._stream is None:
                return ()
            self._fetch()
            received, self._received = self._received, []
            return tuple(received)

    def events_lost(self) -> int:
        """Return how many events found no room because they were not fetched in time."""
        with self._lock:
            if self._stream is None:
                return 0
            raw = bpf.lookup(self._stream.table("lost"), bytes(4), 8 * self._cpus)
            return sum(struct.unpack(f"={self._cpus}Q", raw))


class _Breakpoint(Exception):
    """A probe at this place would be a breakpoint; never leaves this file."""
