"""Puts policies into force, keeps them so, and says why a process is in its class.

The kernel's state is the truth: its generation says which policy is in force. That one's text is kept in a file for
the daemon that comes after this one. What the kernel cannot decide is decided here, soon after each exec; who is
to be judged stands in the map `undecided`, so nothing is lost while there is no daemon.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from dynamos_ng import cgroups, host, uapi
from dynamos_ng.build.description import update_name
from dynamos_ng.closing import Closing
from dynamos_ng.errors import Busy, DynamosError, KernelRefused, UsageError
from dynamos_ng.manager import Manager
from dynamos_ng.model import Function, FunctionState
from dynamos_ng.policy import language
from dynamos_ng.policy.classes import Classes, bank, ends
from dynamos_ng.policy.language import Accounts
from dynamos_ng.policy.verdict import decide
from dynamos_ng.policy_values import Applied
from dynamos_ng.policymaps import NOTHING, How, PolicyMaps, Record, settle

log = logging.getLogger("dynamosd")

#: How often those are looked for who wait for the daemon, while a rule may leave somebody to it.
LOOK_SECONDS = 0.05
#: How long processes may go on coming out of the policy before, until an application is given up.
SWEEP_SECONDS = 60.0
_CLEAR = "take it away first: dynamos policy clear"
#: A rule's processes are moved so long after its end: no exec is then still decided by it.
_SLACK_NS = 100_000_000


def boot_ns() -> int:
    """Return the nanoseconds since boot, as the kernel counts them in decisions."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Enforcement(Closing):
    """The policy in force. Methods may be called from several threads."""

    def __init__(self, manager: Manager, folder: Path) -> None:
        """Take over the policy that the kernel has; FOLDER keeps its text."""
        self._manager = manager
        self._folder = folder
        self._lock = threading.RLock()  # taken before the manager's
        self._maps = PolicyMaps(manager.maps)
        self._applied = 0.0
        self._wake = threading.Event()
        self._stopped = False
        self._restore()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop looking; the policy stays in force."""
        self._stopped = True
        self._wake.set()
        self._thread.join()
        self._maps.close()

    # What is in force

    @property
    def maps(self) -> PolicyMaps:
        """Return the maps of the policy in force."""
        return self._maps

    @property
    def manager(self) -> Manager:
        """Return the manager of the kernel."""
        return self._manager

    @property
    def in_force(self) -> Classes | None:
        """Return the policy in force as classes, None without one."""
        return self._manager.in_force

    @property
    def applied(self) -> float:
        """Return when the policy in force was applied, in seconds since 1970."""
        return self._applied

    def _file(self, generation: int) -> Path:
        return self._folder / f"policy-{generation}.json"

    def _keep(self, classes: Classes, applied: float) -> None:
        """Write a policy's text for the next daemon, with what it meant on this machine at this time."""
        rules = classes.ruleset.rules
        kept = {
            "file": classes.ruleset.file,
            "text": classes.ruleset.text,
            "applied": applied,
            "ends": classes.ends,
            "users": {rule.match.user: rule.match.uid for rule in rules if rule.match.user is not None},
            "groups": {rule.match.group: rule.match.gid for rule in rules if rule.match.group is not None},
        }
        path = self._file(classes.generation)
        new = path.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(json.dumps(kept))
        os.replace(new, path)

    def _restore(self) -> None:
        generation = self._maps.generation
        for old in self._folder.glob("policy-*"):
            if old != self._file(generation):  # of an application that was not finished
                old.unlink()
        if not generation:
            return
        try:
            kept: dict[str, Any] = json.loads(self._file(generation).read_text())
            accounts = Accounts(kept["users"].get, kept["groups"].get)
            ruleset = language.parse(kept["text"], kept["file"], accounts)
            classes = Classes(ruleset, generation, tuple(int(end) for end in kept["ends"]))
            if len(classes.ends) != len(ruleset.rules):
                raise ValueError("it does not fit its own text")
            self._applied = float(kept["applied"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError) as error:
            log.error("%s: %s: the policy in force goes on without its text; %s", self._folder, error, _CLEAR)
            return
        self._manager.in_force = classes
        try:
            self._sweep(classes, SWEEP_SECONDS)  # what a daemon that died may have left to do
        except DynamosError as error:
            log.error("%s", error)
        log.info("policy %s is in force, generation %d", ruleset.file, generation)

    # Applying

    def apply(self, text: str, file: str) -> Applied:
        """Put a policy into force in place of the one that is; if that cannot be done, that one stays."""
        ruleset = language.parse(text, file, host.accounts())
        now = time.time()
        with self._lock, self._manager.lock:
            if self._manager.rows_kept:
                raise Busy("policy apply: an update is just being deactivated: try again when that is done")
            if self._maps.generation and self.in_force is None:
                raise UsageError(f"policy apply: the policy in force has lost its text; {_CLEAR}")
            classes = Classes(ruleset, self._free(), ends(ruleset, now, boot_ns()))
            rows = self._rows(classes)
            before, began, old = self._maps.generation, self._applied, self.in_force
            with ExitStack() as undo:
                undo.callback(self._file(classes.generation).unlink, missing_ok=True)
                self._keep(classes, now)
                for number, row in rows.items():
                    undo.callback(self._manager.maps.set_row, number, self._manager.maps.row(number))
                    self._manager.maps.set_row(number, row)
                self._maps.write_rules(classes.generation, classes.kernel_rules())
                self._tell_cgroups(classes)
                undo.callback(self._back, before, began, old)
                self._applied, self._manager.in_force = now, classes
                self._maps.put_into_force(classes.generation)
                moved, passes = self._sweep(classes, SWEEP_SECONDS)
                undo.pop_all()
            self._empty(before)
            self._file(before).unlink(missing_ok=True)
            self._judge_undecided()
        self._wake.set()
        return Applied(file, classes.generation, moved, passes)

    def _back(self, generation: int, applied: float, classes: Classes | None) -> None:
        """Undo the switch to another policy."""
        abandoned = self._maps.generation
        self._applied, self._manager.in_force = applied, classes
        self._maps.put_into_force(generation)
        try:
            self._sweep(classes, SWEEP_SECONDS, abandoned)
        except DynamosError as error:
            log.error("%s", error)

    def clear(self) -> Applied:
        """Take the policy away: its processes are then in class 0, and exec rules that were set by hand count again."""
        with self._lock, self._manager.lock:
            generation, old = self._maps.generation, self.in_force
            if not generation:
                raise UsageError("policy clear: no policy is in force")
            with ExitStack() as undo:
                for function in filter(self._of_policy, self._manager.functions()):
                    row = self._manager.maps.row(function.id)
                    undo.callback(self._manager.maps.set_row, function.id, row)
                    self._manager.maps.set_row(function.id, row[: uapi.INTERRUPTS] + row[:1])
                if old is not None:
                    undo.callback(self._back, generation, self._applied, old)
                self._manager.in_force = None
                self._maps.put_into_force(0)
                moved, passes = self._sweep(None, SWEEP_SECONDS, generation)
                undo.pop_all()
            self._empty(generation)
            self._file(generation).unlink(missing_ok=True)
        return Applied(old.ruleset.file if old else "", 0, moved, passes)

    def _empty(self, generation: int) -> None:
        """Have the classes of a policy that was left choose as class 0 does: an exec rule may lead to one again."""
        for function in self._manager.functions() if generation else ():
            row = bytearray(self._manager.maps.row(function.id))
            for policy_class in bank(generation):
                row[policy_class] = row[0]
            self._manager.maps.set_row(function.id, bytes(row))

    def _free(self) -> int:
        """Return a generation whose bank nobody is in, and no exec rule leads to."""
        used = {chosen for _, chosen in self._manager.maps.classified()}
        generation = self._maps.generation
        if not generation:
            used |= {chosen for _, chosen in self._manager.maps.rules()}
        for candidate in (self._maps.last + 1, self._maps.last + 2):
            if (not generation or (candidate ^ generation) & 1) and not used & set(bank(candidate)):
                return candidate
        raise UsageError(
            "policy apply: classes below 128 and from 128 on are in use, and a policy needs one of these halves for "
            "itself: take away what was set by hand with 'dynamos policy set … --class 0'"
        )

    def _rows(self, classes: Classes) -> dict[int, bytes]:
        """Return the rows of all active functions; those that the policy does not name go on as in class 0."""
        rows = {}
        for function in self._manager.functions():
            if function.state is not FunctionState.REDIRECTED:
                continue
            row = self._manager.maps.row(function.id)
            wanted = self._manager.policy_row(classes, function, row)
            if wanted is None:
                same = bytearray(row)
                for policy_class in bank(classes.generation):
                    same[policy_class] = row[0]
                if self._of_policy(function):
                    same[uapi.INTERRUPTS] = row[0]
                wanted = bytes(same)
            if wanted != row:  # dynamos.ko alone writes a phase's, which is the same for all classes
                rows[function.id] = wanted
        return rows

    def _of_policy(self, function: Function) -> bool:
        """Return whether what a function does in interrupts is the policy's in force to say."""
        old = self.in_force
        return function.interrupts and old is not None and old.names(function.name, update_name(function.update), True)

    def check(self, classes: Classes) -> None:
        """Raise UsageError if the policy wants what the loaded updates do not have."""
        self._rows(classes)

    def _sweep(self, classes: Classes | None, seconds: float, abandoned: int = 0) -> tuple[int, int]:
        """Move every process into this policy; without one, out of that of the generation ABANDONED, into class 0.

        Returns how many were moved, in how many passes. Without a policy, who is in the class that an exec rule set by
        hand gives its program stays there. It is done when nobody was left to be moved twice: programs that had begun
        before the first time may have given old classes until the second.
        """
        allowed = set(range(uapi.CLASSES))
        if classes is not None:
            allowed = set(bank(classes.generation))
        elif abandoned:
            allowed -= set(bank(abandoned))
        by_hand = dict(self._manager.maps.rules())
        deadline = time.monotonic() + seconds
        moved = passes = clean = 0
        while clean < 2:
            settle()
            left = self._outside(allowed)
            if classes is None and by_hand:
                left = [pid for pid in left if not self._is_by(by_hand, pid)]
            clean = 0 if left else clean + 1
            for pid in left:
                self._move(pid, classes)
            moved, passes = moved + len(left), passes + bool(left)
            if left and time.monotonic() > deadline:
                raise KernelRefused(
                    f"policy: {len(left)} processes are left after {seconds:g} s: new ones are forked faster"
                )
        return moved, passes

    def _is_by(self, rules: Mapping[str, int], pid: int) -> bool:
        """Tell whether a process is in the class that these exec rules give its program."""
        process = host.process(pid)
        return process is not None and rules.get(process.comm) == self._manager.maps.class_of(pid)

    def _outside(self, allowed: set[int]) -> list[int]:
        """Return the processes whose class is none of these."""
        pids = {pid for pid, chosen in self._manager.maps.classified() if chosen not in allowed}
        if 0 not in allowed:
            classless = (pid for pid in host.pids() if self._manager.maps.class_of(pid) == 0)
            pids |= {pid for pid in classless if not host.is_ending(pid)}
        return sorted(pids)

    def _tell_cgroups(self, classes: Classes) -> None:
        """Tell the kernel which rules mean which cgroups; newer ones follow when a process turns up there."""
        root = cgroups.mount() if any(rule.match.cgroup for rule in classes.ruleset.rules) else None
        for path, cgroup in cgroups.all_of(root) if root else ():
            self._tell_cgroup(classes, path, cgroup)

    def _tell_cgroup(self, classes: Classes, path: str, cgroup: int) -> None:
        for number, matches in classes.cgroup_rules(path):
            self._maps.tell_cgroup(cgroup, classes.generation, number, matches)

    def _learn_cgroup(self, classes: Classes, path: str) -> None:
        """Tell the kernel of the cgroup of a process that it could not decide on."""
        root = cgroups.mount() if path and any(rule.match.cgroup for rule in classes.ruleset.rules) else None
        cgroup = cgroups.number(root / path.lstrip("/")) if root else None
        if cgroup is not None:
            self._tell_cgroup(classes, path, cgroup)

    # Judging

    def _move(self, pid: int, classes: Classes | None) -> None:
        """Give a process the class that it has in this policy; it may change or end meanwhile.

        bpf/classify.c writes a decision before the class, and a process is taken out of the undecided before the
        decision is looked at for the last time: if that is still the same, ours is the last word. At a process's end
        its decision goes before its class: who has none may have none any more, and gets no class.
        """
        maps = self._manager.maps
        waits = False
        while True:
            record = self._maps.record(pid)
            waits |= self._maps.is_undecided(pid)
            over = record == NOTHING and host.is_ending(pid)
            if classes is None:
                maps.set_class(pid, 0)
            else:
                number = None if over else self._number(pid, record, classes, waits)
                if number is None:
                    self._maps.forget(pid)
                    maps.set_class(pid, 0)
                else:
                    maps.set_class(pid, classes.of(number))
            if self._maps.record(pid) == record and (over or record != NOTHING or not host.is_ending(pid)):
                taken = self._maps.decided(pid)
                if self._maps.record(pid) == record and (waits or not taken):
                    return
                waits |= taken  # an exec meanwhile left it to us, and we have just taken it for done

    def _number(self, pid: int, record: Record, classes: Classes, waits: bool) -> int | None:
        """Return the number of the rule that a process is under, and note it if it had to be found out; None: gone.

        `waits` is whether the kernel has left it to the daemon.
        """
        judged = self._maps.judgement(pid, record.when)
        if judged is not None and judged.generation == classes.generation:
            return judged.number
        if record.generation == classes.generation and not waits:
            return record.number
        process = host.process(pid)
        if process is None:
            return None
        number = decide(classes, process, boot_ns()).number
        if waits:
            self._learn_cgroup(classes, process.cgroup)
        if record.generation == classes.generation and record.how is How.FORK:
            origin = self._maps.judgement(record.origin, record.origin_when)
            if origin is not None and origin.generation == classes.generation:
                number = origin.number
        self._maps.judge(pid, record, boot_ns(), classes.generation, number)
        return number

    def _judge_undecided(self) -> None:
        """Decide on those whom the kernel left to us; children after the parents whose word they inherit."""
        classes = self.in_force
        if classes is None:
            return
        for pid in list(self._maps.undecided()):
            record = self._maps.record(pid)
            waits = record.how is How.FORK and self._maps.is_undecided(record.origin)
            if waits and self._maps.record(record.origin).when == record.origin_when and record.origin != pid:
                continue
            self._move(pid, classes)

    def _end_rules(self) -> None:
        """Move those who are under a rule whose time is over to another one."""
        classes = self.in_force
        if classes is None:
            return
        over = {number for number, end in enumerate(classes.ends, 1) if end and boot_ns() > end + _SLACK_NS}
        clean = 0
        while over and clean < 2:
            settle()
            left = []
            for pid in host.pids():
                decision = self._maps.decision(pid)
                if decision and decision.generation == classes.generation and decision.number in over:
                    left.append(pid)
            clean = 0 if left else clean + 1
            for pid in left:
                self._judge_again(pid, classes)

    def _judge_again(self, pid: int, classes: Classes) -> None:
        """Find a process's rule anew. The class comes first: who is forked in between has the old number."""
        record = self._maps.record(pid)
        process = host.process(pid)
        if process is not None:
            number = decide(classes, process, boot_ns()).number
            self._manager.maps.set_class(pid, classes.of(number))
            self._maps.judge(pid, record, boot_ns(), classes.generation, number)
        if process is None or self._maps.record(pid) != record:
            self._move(pid, classes)

    def _run(self) -> None:
        ended: set[int] = set()
        while not self._stopped:
            try:
                with self._lock:
                    self._judge_undecided()
                    over = self._over()
                    if over - ended:
                        self._end_rules()
                    ended = over
            except Exception as error:
                if self._stopped:
                    return
                log.error("policy: %s", error, exc_info=not isinstance(error, DynamosError))
                self._wake.wait(1)
            self._wake.wait(self._pause())
            self._wake.clear()

    def _over(self) -> set[int]:
        """Return the ends that have passed."""
        classes = self.in_force
        return {end for end in classes.ends if end and boot_ns() > end + _SLACK_NS} if classes else set()

    def _pause(self) -> float | None:
        classes = self.in_force
        if classes is None:
            return None
        if any(rule.where == "daemon" or rule.match.cgroup for rule in classes.ruleset.rules):
            return LOOK_SECONDS
        coming = [end + _SLACK_NS - boot_ns() for end in classes.ends if end + _SLACK_NS > boot_ns() and end]
        return min(min(coming) / 1e9 + 0.01, 3600.0) if coming else None
