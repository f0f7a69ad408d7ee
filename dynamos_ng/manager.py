"""The only place that changes a kernel: updates in and out, trampolines on and off, policy.

Each change is decided first, measured before and after, and carries its undo beside it.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from dynamos_ng import adaptation, holders, host, modules, neighbours, uapi
from dynamos_ng.build.description import update_name
from dynamos_ng.errors import Busy, DynamosError, KernelRefused, UsageError
from dynamos_ng.model import (
    Change,
    Function,
    FunctionState,
    Phase,
    Quiescence,
    Switch,
    Update,
)
from dynamos_ng.policy import Rule, check_choice, check_class
from dynamos_ng.policy.classes import Classes
from dynamos_ng.policy_values import Policy
from dynamos_ng.view import View

#: How long a removal waits for quiescence unless told otherwise (the paper's section 4.2).
REMOVAL_SECONDS = 5.0
#: How often, and how far apart, a stop is tried again when a task stands inside the bytes to be overwritten.
STOP_TRIES = 40
STOP_PAUSE = 0.05

T = TypeVar("T")


class _NotYet(Exception):
    """Somebody is still inside what is to be left."""


class Manager(View):
    """Changes one kernel. Methods may be called from several threads.

    `in_force` is the policy that was applied, `rows_kept` the number of removals that need rows as they are:
    `enforcement` sets the one and looks at the other, with the lock held.
    """

    in_force: Classes | None = None
    rows_kept = 0

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

    def _nudge(self, functions: Sequence[Function]) -> dict[int, str]:
        """Have those who sleep inside leave where that is harmless; return why others were left alone, by TID."""
        with self._lock:
            walk = self.walk(functions)
        return {holder.pid: why for holder in walk.holders if (why := self._device.nudge(holder.pid))}

    def _give_back(
        self, verb: str, update: Update, functions: Sequence[Function], wait: float | None, nudge: bool
    ) -> Switch:
        """Take back, in one stop, what an update has in force, with the trampolines of functions, once they may go."""
        deadline = None if wait is None else time.monotonic() + wait
        whole = update.id if update.own is FunctionState.REDIRECTED else 0
        with self._keep_rows(), ExitStack() as undo:
            with self._lock:
                where = self._device.phase(update.module)
                if where.phase == 3:
                    self._device.phase(update.module, uapi.PHASE_BACK)
                    undo.callback(self._device.phase, update.module, uapi.PHASE_RAISE)
                if where.consistent:
                    for function in functions:
                        undo.callback(self._maps.set_row, function.id, self._maps.row(function.id))
                        self._maps.set_row(function.id, _row(function, 1, None))
            while True:
                with self._lock, suppress(_NotYet):
                    if where.phase == 3 and any(
                        use.number == 3 and use.in_flight for function in functions for use in self.uses(function)
                    ):
                        raise _NotYet
                    try:
                        switch = self._switch(lambda: self._device.deactivate(functions, whole), update, functions)
                    except KernelRefused as error:
                        if error.errno == errno.EALREADY and self._reverted(update):
                            undo.pop_all()
                            return Switch(0, 0)
                        if error.errno != errno.EUSERS:
                            raise
                        raise _NotYet from None
                    undo.pop_all()
                    return switch
                unmoved = self._nudge(functions) if nudge else {}
                if deadline is not None and time.monotonic() >= deadline:
                    walk = self.walk(functions)
                    raise Busy(holders.held(verb, update, walk, wait or 0.0, True, unmoved=unmoved))
                time.sleep(0.1)

    def _reverted(self, update: Update) -> bool:
        """Return whether the kernel has taken an update back by itself."""
        found = self.update(update.module).confirmation
        return found is not None and found.state == "reverted"

    @contextmanager
    def _keep_rows(self) -> Iterator[None]:
        """See to it that no policy is applied meanwhile, which would write rows."""
        with self._lock:
            self.rows_kept += 1
        try:
            yield
        finally:
            with self._lock:
                self.rows_kept -= 1

    def _put_back(self, update: Update, rows: Mapping[int, bytes], raised: bool) -> None:
        """Undo `_give_back`: ROWS are as they were, what was to be confirmed still is, and phase 3 follows again if
        must_update was RAISED."""
        left = 0
        if update.confirmation and update.confirmation.state != "reverted":
            left = max(update.confirmation.left, 1)
        active = [f for f in update.functions if f.state is FunctionState.REDIRECTED]
        whole = update.id if update.own is FunctionState.REDIRECTED else 0
        with self._lock:
            for number, row in rows.items():
                self._maps.set_row(number, row)
            self._switch(lambda: self._device.activate(active, whole, left), update, active)
            if raised:
                self._device.phase(update.module, uapi.PHASE_RAISE)

    def load(self, path: str, *, watch: bool = True) -> Update:
        """Load an update's module file; nothing is redirected yet. Loading a loaded one again is a no-op."""
        file = Path(path)
        with self._lock:
            name = modules.modinfo(file).get("name", file.stem)
            known = next((update for update in self.updates() if update.module == name), None)
            if known is None or adaptation.missing(known.functions):
                self._load(file, name, known is None)
            update = self.update(name)
            if not watch:
                return update
            return replace(update, unwatched=self.watch(update.functions))

    def _load(self, file: Path, name: str, new: bool) -> None:
        """Load a module, unless it is not new, and attach its adaptation handlers; all or nothing."""
        with adaptation.Programs(file) as programs:
            if new:
                modules.load(file)
            try:
                update = self.update(name)
                programs.attach(self._device, update.module, update.functions)
            except DynamosError:
                if new:
                    modules.unload(name)
                raise

    def activate(
        self,
        name: str,
        *,
        edition: int | None = None,
        classes: Sequence[int] | None = None,
        confirm_within: int = 0,
    ) -> Change:
        """Redirect all functions of an update in one stop.

        Processes of the given policy classes get `edition` (each function's newest unless told), others v1;
        without classes, all get it. Without edition and classes, a policy that is in force decides for the functions
        that it names. Where a program adapts, that is for when it does not decide, and then without edition and
        classes it is v1. Before the stop nobody sees the change, after it everybody does.
        With `confirm_within` the kernel takes it back by itself after so many seconds unless `confirm` is called.
        """
        if not 0 <= confirm_within <= uapi.CONFIRM_MAX:
            raise UsageError(f"activate {name}: it can be confirmed within 1 to {uapi.CONFIRM_MAX} seconds")
        with self._lock:
            update = self.update(name)
            if classes is not None and not update.functions:
                raise UsageError(f"activate {update.name}: it has no functions, and nothing else knows classes")
            if self._device.phase(update.module).phased and (edition, classes) != (None, None):
                raise UsageError(
                    f"activate {name}: its phase chooses the editions for all processes: leave out edition and class"
                )
            for function in update.functions:
                if function.state is FunctionState.REDIRECTED:  # its row is in use, and not touched for a refusal
                    raise KernelRefused(f"activate {function.name}: it is already redirected", errno.EALREADY)
            rows: dict[int, bytes] = {}
            for function in update.functions:
                if edition is None and classes is None and self.in_force is not None:
                    by_policy = self.policy_row(self.in_force, function, _row(function, 1, None))
                    if by_policy is not None:
                        rows[function.id] = by_policy
                        continue
                newest = 1 if function.adaptation and classes is None else function.newest
                chosen = newest if edition is None else edition
                _check_edition(function, chosen)
                rows[function.id] = _row(function, chosen, classes)
            for function in update.functions:
                if patches := self._livepatches(function):
                    raise KernelRefused(
                        f"activate {function.name}: livepatch {patches[-1]} replaces it, and its calls would reach no "
                        f"edition: take that away first: echo 0 > {neighbours.LIVEPATCH / patches[-1]}/enabled",
                        errno.EEXIST,
                    )
            before = self.measure(update.functions)
            old = {number: self._maps.row(number) for number in rows}
            for number, row in rows.items():
                self._maps.set_row(number, row)
            try:
                switch = self._switch(
                    lambda: self._device.activate(update.functions, update.id, confirm_within), update, update.functions
                )
            except DynamosError:
                for number, row in old.items():
                    self._maps.set_row(number, row)
                raise
            return self._changed("activate", FunctionState.REDIRECTED, update, before, switch)

    def confirm(self, name: str) -> None:
        """Let an activation stay that the kernel would take back by itself."""
        with self._lock:
            self._device.confirm(self.update(name).module)

    def deactivate(self, name: str, *, wait: float | None = REMOVAL_SECONDS, nudge: bool = False) -> Change:
        """Give all functions of an update back to their originals in one stop.

        Calls that are inside an edition finish there; `unload` waits for them. Only a consistent group and phase 3 of a
        synchronised update must be left first: after `wait` seconds (None: as long as it takes) Busy names who is
        inside, and all is as it was. `nudge` is as for `unload`.
        """
        with self._lock:
            update = self.update(name)
            before = self.measure(update.functions)
        switch = self._give_back("deactivate", update, update.functions, wait, nudge)
        with self._lock:
            return self._changed("deactivate", FunctionState.DRAINING, update, before, switch)

    def phase(self, name: str, move: str = "") -> Phase:
        """Return where an update stands that gets on by itself; MOVE is "raise" (to phase 3) or "back" (to 2)."""
        moves = {"": uapi.PHASE_ASK, "raise": uapi.PHASE_RAISE, "back": uapi.PHASE_BACK}
        if move not in moves:
            raise UsageError(f"phase {name}: {move!r} is no move: raise or back")
        with self._lock:
            update = self.update(name)
            where = self._device.phase(update.module)
            if move and not where.phased:
                raise UsageError(f"phase {name}: it is no synchronised update (phased = true in update.toml)")
            if move and not where.phase:
                raise UsageError(f"phase {name}: it is not active: activate it first")
            if move == "back" and where.phase != 3:
                raise UsageError(f"phase {name}: it is in phase {where.phase}; there is a way back only from phase 3")
            return self._device.phase(update.module, moves[move])

    def _changed(
        self, verb: str, state: FunctionState, update: Update, before: tuple[Quiescence, ...], switch: Switch
    ) -> Change:
        """Tell of a change that has been made; what fails from now on is told, and makes no failure of it."""
        try:
            update = self.update(update.name)
            after = self.measure(update.functions)
            notes = _left(update, switch)
        except DynamosError as error:
            after, notes = (), (f"done, but not measured afterwards: {error}",)
        return Change(verb, update.name, state, before, after, switch.stop_ns, notes)

    def unload(self, name: str, *, wait: float | None = REMOVAL_SECONDS, nudge: bool = False) -> Change:
        """Deactivate an update, wait until nothing can be running it, and free its code.

        If it is still in use after `wait` seconds (None: as long as it takes), it is left as it was found,
        redirected or not, and Busy names the tasks in it. `nudge` has those who sleep in it in a system call that a
        signal would interrupt leave it, and begin the call anew in the original.
        """
        with self._lock:
            update = self.update(name)
            before = self.measure(update.functions)
            rows = {function.id: self._maps.row(function.id) for function in update.functions}
            raised = self._device.phase(update.module).must_update
        active = update.state is FunctionState.REDIRECTED
        redirected = [f for f in update.functions if f.state is FunctionState.REDIRECTED]
        switch = Switch(0, 0)
        # Who waits without end puts nothing back.
        with self._keep_rows() if wait is not None else nullcontext(), ExitStack() as undo:
            if active:
                switch = self._give_back("unload", update, redirected, wait, nudge)
                undo.callback(self._put_back, update, rows, raised)
            deadline = None if wait is None else time.monotonic() + wait
            while True:
                try:
                    self._device.retire(update.module)
                    break
                except Busy as error:
                    unmoved = self._nudge(update.functions) if nudge else {}
                    if deadline is not None and time.monotonic() >= deadline:
                        walk = self.walk(update.functions)
                        raise Busy(
                            holders.held("unload", update, walk, wait or 0.0, active, why=str(error), unmoved=unmoved)
                        ) from None
                    time.sleep(0.1)
            undo.pop_all()
        with self._lock:
            change = self._changed("unload", FunctionState.LOADED, update, before, switch)
            modules.unload(update.module)
            adaptation.unpin(update.module)
            self._unwatch(update.functions)
            return change

    # Policy

    def set_process_class(self, pid: int, policy_class: int) -> None:
        """Put a running process into a policy class until it execs or exits; its children inherit."""
        check_class(policy_class)
        with self._lock:
            self._no_policy(f"rule with match = {{ pid = {pid} }}")
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
        with self._lock:
            self._no_policy(f'rule with match = {{ comm = "{rule.comm}" }}')
            self._maps.set_rule(rule.comm, rule.policy_class)

    def _no_policy(self, instead: str) -> None:
        """Raise UsageError if a policy gives all processes their classes."""
        if self.in_force is not None:
            raise UsageError(
                f"policy set: policy {self.in_force.ruleset.file} is in force and gives every process its class: "
                f"apply one that has a {instead}, or take it away first: dynamos policy clear"
            )

    def policy_row(self, classes: Classes, function: Function, row: bytes) -> bytes | None:
        """Return a function's ROW as a policy wants it; None if the policy does not name the function."""
        numbers = [edition.number for edition in function.editions]
        wanted = classes.row(function.name, update_name(function.update), numbers, row, function.interrupts)
        if wanted is not None and self._device.phase(function.update).phased:
            raise UsageError(
                f"{classes.ruleset.file}: it names {function.name}, but the phase of update "
                f"{update_name(function.update)} chooses its edition: leave it out"
            )
        return wanted

    def set_edition(self, function: str, policy_class: int | None, edition: int) -> None:
        """Choose the edition of a function for one policy class, or for all (None)."""
        with self._lock:
            found = self.function(function)
            if self._device.phase(found.update).phased:
                raise UsageError(f"{function}: the phase of update {update_name(found.update)} chooses its edition")
            _check_edition(found, edition)
            row = bytearray(self._maps.row(found.id))
            if policy_class is None:
                row[:] = bytes([edition]) * uapi.CLASSES
            else:
                check_choice(function, found.interrupts, policy_class)
                row[policy_class] = edition
            self._maps.set_row(found.id, bytes(row))

    def policy(self) -> Policy:
        """Return the processes that have a class, the exec rules, and each function's edition by class."""
        return Policy(
            processes=tuple((pid, chosen, host.name_of(pid)) for pid, chosen in self._maps.classified()),
            rules=tuple(self._maps.rules()),
            rows=tuple((function.name, self._maps.row(function.id)) for function in self.functions()),
        )


def _row(function: Function, edition: int, classes: Sequence[int] | None) -> bytes:
    """Return a function's row of the editions map: one byte for each policy class."""
    if classes is None:
        return bytes([edition]) * uapi.CLASSES
    row = bytearray(b"\1" * uapi.CLASSES)
    for policy_class in classes:
        check_choice(function.name, function.interrupts, policy_class)
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
