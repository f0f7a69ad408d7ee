"""What is to be seen of a kernel that is being changed: updates, counters, stacks. Looking changes nothing.

The kernel's own state is the truth. Who starts where another died finds everything there: the updates and their
functions in dynamos.ko, the policy in the pinned maps, the classification in pinned BPF links.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from dynamos_ng import adaptation, bpfmaps, holders, neighbours, probes, uapi
from dynamos_ng.build import dynamos_ko
from dynamos_ng.build.description import module_name, update_name
from dynamos_ng.device import Device
from dynamos_ng.errors import UsageError
from dynamos_ng.image import Kernel
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.latency import Latency
from dynamos_ng.model import (
    EditionUse,
    Function,
    FunctionState,
    FunctionStatus,
    Quiescence,
    SampledStack,
    Snapshot,
    StackWalk,
    Update,
    UpdateStatus,
)
from dynamos_ng.neighbours import Kprobe
from dynamos_ng.timing import Timer

#: Nobody else can time calls meanwhile, and the probes cost time: seconds.
LATENCY_MAX = 600.0
#: Of the stacks that were sampled, so many are told.
SAMPLED_SHOWN = 20


class View:
    """Owns the device, the maps and the probes of one kernel. Methods may be called from several threads."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._symbols_of: tuple[str, Symbols | None] = "", None
        self._unwatched: dict[str, str] = {}
        self._undo = ExitStack()
        with ExitStack() as undo:
            dynamos_ko.ensure_loaded()
            self._device = undo.enter_context(Device())
            info = self._device.info()
            self._maps = undo.enter_context(bpfmaps.open_maps(info.map_ids))
            self._device.set_maps(*self._maps.fds)
            probes.ensure_classification()
            adaptation.sweep(function.update for function in self._device.functions())
            self._probes = undo.enter_context(probes.Probes())
            self._timer = undo.enter_context(Timer())
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Detach what this process measures with. Redirections, policy and classification stay in force."""
        self._undo.close()

    @property
    def maps(self) -> bpfmaps.Maps:
        """Return the open maps."""
        return self._maps

    @property
    def lock(self) -> threading.RLock:
        """Return the lock that every change holds; it may be taken again by who has it."""
        return self._lock

    def functions(self) -> tuple[Function, ...]:
        """Return every function that a loaded update has registered."""
        return self._device.functions()

    def updates(self) -> tuple[Update, ...]:
        """Return every loaded update."""
        by_module: dict[str, list[Function]] = {}
        for function in self.functions():
            by_module.setdefault(function.update, []).append(function)
        return tuple(
            replace(update, name=update_name(update.module), functions=tuple(by_module.get(update.module, ())))
            for update in self._device.updates()
        )

    def update(self, name: str) -> Update:
        """Return a loaded update by its name, its module's name or its file's name."""
        module = module_name(Path(name).name.removesuffix(".ko"))
        for update in self.updates():
            if update.module == module:
                return update
        known = ", ".join(update.name for update in self.updates()) or "none"
        raise UsageError(f"{name}: no such update is loaded; loaded: {known}")

    def function(self, name: str) -> Function:
        """Return a registered function by its name, or MODULE:NAME; the one on top where several updates have it."""
        found = [function for function in self.functions() if name in (function.name, function.label)]
        if not found:
            raise UsageError(f"{name}: no loaded update has this function; see 'dynamos status'")
        return max(found, key=lambda function: (function.state is FunctionState.REDIRECTED, function.order))

    def uses(self, function: Function) -> tuple[EditionUse, ...]:
        """Return the use counters of each edition."""
        return tuple(
            EditionUse(edition.number, *self._maps.use(function.id, edition.number))
            for edition in function.editions
        )

    def status(self) -> Snapshot:
        """Return everything that a table or a dashboard shows."""
        counts = self._probes.counts()
        try:
            others: Sequence[Kprobe] | None = neighbours.kprobes()
        except OSError:
            others = None
        return Snapshot(
            updates=tuple(
                UpdateStatus(
                    update.name,
                    update.state,
                    self._device.phase(update.module),
                    tuple(
                        FunctionStatus(
                            function,
                            self.uses(function),
                            self._maps.row(function.id),
                            counts.get(_probed(function)),
                            self._notes(function, others),
                        )
                        for function in update.functions
                    ),
                    update.variables,
                    update.shadows,
                    update.confirmation,
                )
                for update in self.updates()
            ),
            engine=self._probes.engine,
        )

    def _notes(self, function: Function, others: Iterable[Kprobe] | None) -> tuple[str, ...]:
        """Return what one must know of a function beside its counts: why it is not watched, and who is in the way."""
        notes = [*adaptation.notes(function)]
        notes += [f"livepatch {name} replaces it: its calls reach no edition" for name in self._livepatches(function)]
        if others is None:
            notes.append("whether others have kprobes in it is not known: mount -t debugfs debugfs /sys/kernel/debug")
        elif function.state is FunctionState.REDIRECTED:
            behind = neighbours.within(others, function.site + 1, function.address + function.size)
            notes += [f"{probe} is silent: calls leave before it" for probe in behind]
        if function.interrupts:
            notes.append(f"calls in interrupts run v{self._maps.row(function.id)[uapi.INTERRUPTS] or 1}")
        if reason := self._unwatched.get(_probed(function)):
            notes.append(f"probes do not count the original: {reason}")
        return tuple(notes)

    def _livepatches(self, function: Function) -> tuple[str, ...]:
        """Return the names of the live patches that replace a function."""
        found = neighbours.livepatches(function.name, module=function.module)
        if not found:
            return ()
        named = [symbol.address for symbol in self._symbols().find(function.name, function.module)]
        return tuple(patch for patch, position in found if named[position - 1 : position] == [function.address])

    def walk(self, functions: Iterable[Function], *, originals: bool = False) -> StackWalk:
        """Walk all stacks for addresses inside the functions' editions; edition 0 is the original's own image.

        A task is told once, with the innermost of its addresses.
        """
        walk = self._walk(functions, originals)
        return holders.once_each(walk, walk.holders)

    def _walk(self, functions: Iterable[Function], originals: bool) -> StackWalk:
        ranges: list[tuple[int, int, str, int]] = []
        for function in functions:
            if originals:
                # No call returns to a function's first byte; its address on a stack is a pointer to it.
                ranges.append((function.address + 1, function.address + function.size, function.name, 0))
            low = function.handler
            for edition in sorted(function.editions, key=lambda edition: edition.start):
                ranges.append((low, edition.end, function.name, edition.number))
                low = edition.end
        if not ranges:
            return StackWalk((), 0, 0, 0, 0)
        ranges.sort()
        code = list(holders.disjoint((start, end) for start, end, _, _ in ranges))
        walks = [self._device.stacks(code[at : at + uapi.RANGES_MAX]) for at in range(0, len(code), uapi.RANGES_MAX)]
        found = [holder for walk in walks for holder in walk.holders]
        symbols = self._symbols() if found else None
        return StackWalk(
            tuple(holders.placed(holder, ranges, symbols) for holder in found), sum(walk.found for walk in walks),
            walks[0].tasks, walks[0].words, sum(walk.stop_ns for walk in walks),
        )  # fmt: skip

    def _symbols(self) -> Symbols:
        """Return the kernel's symbols, read anew when modules have come or gone."""
        modules_now = Path("/proc/modules").read_text()
        with self._lock:
            known, symbols = self._symbols_of
            if symbols is None or known != modules_now:
                symbols = Symbols.live()
                self._symbols_of = modules_now, symbols
            return symbols

    def quiescence(self, function: str, seconds: float = 0.0, *, watch: bool = True) -> Quiescence:
        """Ask all three sources about a function; with `seconds`, sample stacks for so long.

        Without `watch` no probe is attached that is not there. A function that no update has is measured in its
        original image alone, and watched no longer than that; one of a module is MODULE:FUNCTION.
        """
        if not 0 <= seconds <= LATENCY_MAX:
            raise UsageError(f"{function}: {seconds:g} s; stacks are sampled for up to {LATENCY_MAX:g} s")
        try:
            found = self.function(function)
        except UsageError:
            module, _, name = function.rpartition(":")
            symbol = Kernel.live().function(name, module=module)
            found = Function(
                -1, name, "", FunctionState.LOADED, symbol.address, symbol.size, 0, 0, 0, b"", b"", (),
                module=module,
            )
        with ExitStack() as undo:
            if watch:
                if not found.update and not self._probes.watches(_probed(found)):
                    undo.callback(self._unwatch, [found])
                self.watch([found])
            return self._sampled(found, seconds)

    def _sampled(self, found: Function, seconds: float) -> Quiescence:
        samples: int | None = None
        sampled: tuple[SampledStack, ...] = ()
        if seconds > 0:
            ranges = [(found.address, found.address + found.size)]
            if found.editions:
                ranges.append((found.handler, found.end))
            stacks = self._probes.sample(ranges, seconds)
            samples = sum(stack.samples for stack in stacks)
            symbols = self._symbols()
            sampled = tuple(
                SampledStack(stack.samples, tuple(map(symbols.label, stack.frames))) for stack in stacks[:SAMPLED_SHOWN]
            )
        (measured,) = self.measure([found])
        return replace(measured, samples=samples, sampled=sampled)

    def latency(self, function: str, editions: Sequence[int] = (), seconds: float = 10.0) -> Latency:
        """Time the calls of a function's editions, of all or of those named, for so many seconds.

        Callers take turns.
        """
        found = self.function(function)
        if not 0 < seconds <= LATENCY_MAX:
            raise UsageError(f"{function}: {seconds:g} s; a measurement takes up to {LATENCY_MAX:g} s")
        places = {edition.number: edition.start for edition in found.editions}
        if unknown := [number for number in editions if number not in places]:
            raise UsageError(f"{function} has no edition {unknown[0]}; it has {', '.join(map(str, sorted(places)))}")
        if found.state is not FunctionState.REDIRECTED:
            update = update_name(found.update)
            raise UsageError(f"{function}: its calls go to the original; first: dynamos activate {update}")
        chosen = {number: places[number] for number in sorted(editions or places)}
        return Latency(function, seconds, self._timer.measure(chosen, seconds))

    def watch(self, functions: Sequence[Function]) -> tuple[tuple[str, str], ...]:
        """Count calls of originals with probes; return name and reason of those where that cannot be done."""
        by_name = {_probed(function): function for function in functions}
        refused = self._probes.watch({name: function.address for name, function in by_name.items()})
        with self._lock:
            kept = {name: why for name, why in self._unwatched.items() if name not in by_name}
            self._unwatched = kept | {one.name: one.reason for one in refused}
        return tuple((by_name[one.name].label, one.reason) for one in refused)

    def _unwatch(self, functions: Sequence[Function]) -> None:
        """Count calls of originals no longer, but for those that a loaded update has."""
        names = {_probed(function) for function in functions} - {_probed(function) for function in self.functions()}
        self._probes.unwatch(names)
        with self._lock:
            self._unwatched = {name: why for name, why in self._unwatched.items() if name not in names}

    def measure(self, functions: Sequence[Function]) -> tuple[Quiescence, ...]:
        """Ask counters, stacks and probes about functions; all of them in one walk of the stacks."""
        walk = self._walk(functions, originals=True)
        counts = self._probes.counts()
        return tuple(
            Quiescence(
                function.name,
                function.state,
                self.uses(function),
                holders.once_each(walk, [holder for holder in walk.holders if function.has(holder.address)]),
                counts.get(_probed(function)),
            )
            for function in functions
        )


def _probed(function: Function) -> str:
    """Return what its probes are known by: functions of one name may be several, and several updates have one."""
    return f"{function.address:#x}"
