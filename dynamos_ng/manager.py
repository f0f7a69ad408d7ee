"""The only place that changes a kernel: updates in and out, trampolines on and off, policy.

The kernel's own state is the truth. A manager that starts where another died finds everything there: the updates
and their functions in dynamos.ko, the policy in the pinned maps, the classification in pinned BPF links.

Each change is decided first, measured before and after, and carries its undo beside it.
"""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dynamos_ng import bpfmaps, holders, host, modules, neighbours, probes, uapi
from dynamos_ng.build import dynamos_ko
from dynamos_ng.build.description import module_name, update_name
from dynamos_ng.device import Device
from dynamos_ng.errors import Busy, DynamosError, KernelRefused, UsageError
from dynamos_ng.image import Kernel
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.model import (
    Change,
    EditionUse,
    Function,
    FunctionState,
    FunctionStatus,
    Policy,
    Quiescence,
    Snapshot,
    StackWalk,
    Switch,
    Update,
    UpdateStatus,
)
from dynamos_ng.neighbours import Kprobe
from dynamos_ng.policy import Rule, check_class

#: How long a removal waits for quiescence unless told otherwise (the paper's section 4.2).
REMOVAL_SECONDS = 5.0
#: How often, and how far apart, a stop is tried again when a task stands inside the bytes to be overwritten.
STOP_TRIES = 40
STOP_PAUSE = 0.05

T = TypeVar("T")


class Manager:
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
            self._probes = undo.enter_context(probes.Probes())
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Detach what this process measures with. Redirections, policy and classification stay in force."""
        self._undo.close()

    # Looking

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
        """Return a registered function by its name, the redirected one where several updates have it."""
        found = [function for function in self.functions() if function.name == name]
        if not found:
            raise UsageError(f"{name}: no loaded update has this function; see 'dynamos status'")
        return max(found, key=lambda function: (function.state is FunctionState.REDIRECTED, function.id))

    def uses(self, function: Function) -> tuple[EditionUse, ...]:
        """Return the use counters of each edition."""
        return tuple(
            EditionUse(edition.number, *self._maps.use(function.id, edition.number))
            for edition in function.editions
        )

    def status(self) -> Snapshot:
        """Return everything that a table or a dashboard shows."""
        counts = self._probes.counts()
        others = neighbours.kprobes()
        return Snapshot(
            updates=tuple(
                UpdateStatus(
                    update.name,
                    update.state,
                    tuple(
                        FunctionStatus(
                            function,
                            self.uses(function),
                            self._maps.row(function.id),
                            counts.get(function.name),
                            self._notes(function, others),
                        )
                        for function in update.functions
                    ),
                    update.variables,
                    update.shadows,
                )
                for update in self.updates()
            ),
            engine=self._probes.engine,
        )

    def _notes(self, function: Function, others: Iterable[Kprobe]) -> tuple[str, ...]:
        """Return what one must know of a function beside its counts: why it is not watched, and who is in the way."""
        notes = [f"livepatch {name} replaces it: its calls reach no edition" for name in self._livepatches(function)]
        if function.state is FunctionState.REDIRECTED:
            behind = neighbours.within(others, function.site + 1, function.address + function.size)
            notes += [f"{probe} is silent: calls leave before it" for probe in behind]
        if reason := self._unwatched.get(function.name):
            notes.append(f"probes do not count the original: {reason}")
        return tuple(notes)

    def _livepatches(self, function: Function) -> tuple[str, ...]:
        """Return the names of the live patches that replace a function."""
        found = neighbours.livepatches(function.name)
        if not found:
            return ()
        named = [symbol.address for symbol in self._symbols().find(function.name)]
        return tuple(patch for patch, position in found if named[position - 1 : position] == [function.address])

    def _switch(self, attempt: Callable[[], Switch], update: Update, functions: Iterable[Function]) -> Switch:
        """Make a stop; say whose hook or bytes stood in the way, if that is known."""
        try:
            return _insist(attempt)
        except KernelRefused as error:
            if error.address:
                variables = {variable.address: variable.name for variable in update.variables}
                where = variables.get(error.address) or self._symbols().label(error.address)
                raise KernelRefused(f"{error}: {where}", error.errno, error.address) from None
            if error.errno != errno.EILSEQ:
                raise
            probes = neighbours.kprobes()
            found = [p for f in functions for p in neighbours.within(probes, f.site, f.site + len(f.trampoline))]
            raise KernelRefused("\n  ".join([str(error), *map(str, found)]), error.errno) from None

    def _give_back(self, update: Update) -> Switch:
        """Take back, in one stop, all that an update has in force."""
        active = [f for f in update.functions if f.state is FunctionState.REDIRECTED]
        whole = update.id if update.own is FunctionState.REDIRECTED else 0
        return self._switch(lambda: self._device.deactivate(active, whole), update, active)

    def _put_back(self, update: Update) -> None:
        """Undo `_give_back`."""
        active = [f for f in update.functions if f.state is FunctionState.REDIRECTED]
        whole = update.id if update.own is FunctionState.REDIRECTED else 0
        self._switch(lambda: self._device.activate(active, whole), update, active)

    def walk(self, functions: Iterable[Function], *, originals: bool = False) -> StackWalk:
        """Walk all stacks for addresses inside the functions' editions; edition 0 is the original's own image."""
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
        ranges = sorted(set(ranges))
        walk = self._device.stacks([(start, end) for start, end, _, _ in ranges])
        symbols = self._symbols() if walk.holders else None
        return replace(walk, holders=tuple(holders.placed(holder, ranges, symbols) for holder in walk.holders))

    def _symbols(self) -> Symbols:
        """Return the kernel's symbols, read anew when modules have come or gone."""
        modules_now = Path("/proc/modules").read_text()
        with self._lock:
            known, symbols = self._symbols_of
            if symbols is None or known != modules_now:
                symbols = Symbols.live()
                self._symbols_of = modules_now, symbols
            return symbols

    def quiescence(self, function: str, seconds: float = 0.0) -> Quiescence:
        """Ask all three sources about a function; with `seconds`, sample stacks for so long.

        A function that no update has is measured in its original image alone.
        """
        try:
            found = self.function(function)
        except UsageError:
            symbol = Kernel.live().function(function)
            found = Function(
                -1, function, "", FunctionState.LOADED, symbol.address, symbol.size, 0, 0, 0, b"", b"", ()
            )
        self._watch([function])
        samples = None
        if seconds > 0:
            ranges = [(found.address, found.address + found.size)]
            if found.editions:
                ranges.append((found.handler, found.end))
            samples = self._probes.sample(ranges, seconds)
        return self._measure(found, samples)

    def _measure(self, function: Function, samples: int | None = None) -> Quiescence:
        walk = self.walk([function], originals=True)
        return Quiescence(
            function.name,
            function.state,
            self.uses(function),
            walk,
            self._probes.counts().get(function.name),
            samples,
        )

    # Changing

    def load(self, path: str, *, watch: bool = True) -> Update:
        """Load an update's module file; nothing is redirected yet. Loading a loaded one again is a no-op."""
        file = Path(path)
        with self._lock:
            name = modules.modinfo(file).get("name", file.stem)
            if not any(update.module == name for update in self.updates()):
                modules.load(file)
            update = self.update(name)
            if not watch:
                return update
            return replace(update, unwatched=self._watch([function.name for function in update.functions]))

    def _watch(self, names: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Count calls of originals; return name and reason of those where that cannot be done."""
        refused = tuple((one.name, one.reason) for one in self._probes.watch(names))
        with self._lock:
            self._unwatched = {name: why for name, why in self._unwatched.items() if name not in names} | dict(refused)
        return refused

    def activate(
        self, name: str, *, edition: int | None = None, classes: Sequence[int] | None = None
    ) -> Change:
        """Redirect all functions of an update in one stop.

        Processes of the given policy classes get `edition` (each function's newest unless told), others v1;
        without classes, all get it. Before the stop nobody sees the change, after it everybody does.
        """
        with self._lock:
            update = self.update(name)
            if classes is not None and not update.functions:
                raise UsageError(f"activate {update.name}: it has no functions, and nothing else knows classes")
            rows: dict[int, bytes] = {}
            for function in update.functions:
                chosen = function.newest if edition is None else edition
                _check_edition(function, chosen)
                rows[function.id] = _row(chosen, classes)
            for function in update.functions:
                if patches := self._livepatches(function):
                    raise KernelRefused(
                        f"activate {function.name}: livepatch {patches[-1]} replaces it, and its calls would reach no "
                        f"edition: take that away first: echo 0 > {neighbours.LIVEPATCH / patches[-1]}/enabled",
                        errno.EEXIST,
                    )
            before = tuple(self._measure(function) for function in update.functions)
            old = {number: self._maps.row(number) for number in rows}
            for number, row in rows.items():
                self._maps.set_row(number, row)
            try:
                switch = self._switch(
                    lambda: self._device.activate(update.functions, update.id), update, update.functions
                )
            except DynamosError:
                for number, row in old.items():
                    self._maps.set_row(number, row)
                raise
            return self._changed("activate", update, before, switch)

    def deactivate(self, name: str) -> Change:
        """Give all functions of an update back to their originals in one stop.

        Calls that are inside an edition finish there; `unload` waits for them.
        """
        with self._lock:
            update = self.update(name)
            before = tuple(self._measure(function) for function in update.functions)
            whole = update.id if update.own is FunctionState.REDIRECTED else 0
            switch = self._switch(
                lambda: self._device.deactivate(update.functions, whole), update, update.functions
            )
            return self._changed("deactivate", update, before, switch)

    def _changed(self, verb: str, update: Update, before: tuple[Quiescence, ...], switch: Switch) -> Change:
        update = self.update(update.name)
        after = tuple(self._measure(function) for function in update.functions)
        return Change(verb, update.name, update.state, before, after, switch.stop_ns, _left(update, switch))

    def unload(self, name: str, *, wait: float | None = REMOVAL_SECONDS) -> Change:
        """Deactivate an update, wait until nothing can be running it, and free its code.

        If it is still in use after `wait` seconds (None: as long as it takes), it is left as it was found,
        redirected or not, and Busy names the tasks in it.
        """
        with self._lock:
            update = self.update(name)
            before = tuple(self._measure(function) for function in update.functions)
            active = update.state is FunctionState.REDIRECTED
            switch = self._give_back(update) if active else Switch(0, 0)
            notes = _left(self.update(name), switch)
        deadline = None if wait is None else time.monotonic() + wait
        while True:
            try:
                self._device.retire(update.module)
                break
            except Busy:
                if deadline is not None and time.monotonic() >= deadline:
                    with self._lock:
                        walk = self.walk(update.functions)
                        if active:
                            self._put_back(update)
                    raise Busy(holders.held(update, walk, wait or 0.0, active)) from None
                time.sleep(0.1)
        with self._lock:
            after = tuple(self._measure(function) for function in self.update(name).functions)
            self._probes.unwatch([function.name for function in update.functions])
            for function in update.functions:
                self._unwatched.pop(function.name, None)
            modules.unload(update.module)
            return Change("unload", update.name, FunctionState.LOADED, before, after, switch.stop_ns, notes)

    # Policy

    def set_process_class(self, pid: int, policy_class: int) -> None:
        """Put a running process into a policy class until it execs or exits; its children inherit."""
        check_class(policy_class)
        host.check_process(pid)
        self._maps.set_class(pid, policy_class)
        try:
            host.check_process(pid)
        except UsageError:  # it exited in between, and its PID must not keep the class
            self._maps.set_class(pid, 0)
            raise

    def set_rule(self, comm: str, policy_class: int) -> None:
        """From now on, give processes that exec a program of this name the class; 0 takes the rule away."""
        rule = Rule(comm, policy_class)
        self._maps.set_rule(rule.comm, rule.policy_class)

    def set_edition(self, function: str, policy_class: int | None, edition: int) -> None:
        """Choose the edition of a function for one policy class, or for all (None)."""
        with self._lock:
            found = self.function(function)
            _check_edition(found, edition)
            row = bytearray(self._maps.row(found.id))
            if policy_class is None:
                row[:] = bytes([edition]) * uapi.CLASSES
            else:
                check_class(policy_class)
                row[policy_class] = edition
            self._maps.set_row(found.id, bytes(row))

    def policy(self) -> Policy:
        """Return the processes that have a class, the exec rules, and each function's edition by class."""
        return Policy(
            processes=tuple((pid, chosen, host.name_of(pid)) for pid, chosen in self._maps.classified()),
            rules=tuple(self._maps.rules()),
            rows=tuple((function.name, self._maps.row(function.id)) for function in self.functions()),
        )


def _row(edition: int, classes: Sequence[int] | None) -> bytes:
    """Return a function's row of the editions map: one byte for each policy class."""
    if classes is None:
        return bytes([edition]) * uapi.CLASSES
    row = bytearray(b"\1" * uapi.CLASSES)
    for policy_class in classes:
        check_class(policy_class)
        row[policy_class] = edition
    return bytes(row)


def _check_edition(function: Function, edition: int) -> None:
    numbers = [e.number for e in function.editions]
    if edition not in numbers:
        have = ", ".join(f"v{number}" for number in numbers)
        update = update_name(function.update)
        raise UsageError(f"{function.name}: update {update} has no edition {edition}; it has {have}")


def _insist(attempt: Callable[[], T]) -> T:
    """Try a stop again while a task happens to stand inside the bytes to be overwritten."""
    for _ in range(STOP_TRIES - 1):
        try:
            return attempt()
        except KernelRefused as error:
            if error.errno != errno.EAGAIN:
                raise
        time.sleep(STOP_PAUSE)
    return attempt()


def _left(update: Update, switch: Switch) -> tuple[str, ...]:
    """Say which variables were not put back: they hold neither what the update wrote nor what it had found."""
    if not switch.left:
        return ()
    changed = [variable for variable in update.variables if variable.now != variable.old]
    return tuple(
        f"{variable.name} was not put back to {int.from_bytes(variable.old, 'little')}: somebody else has made it "
        f"{int.from_bytes(variable.now, 'little')}"
        for variable in changed
    )
