"""What is told of the policy in force: its rules, why a process is where it is, what another policy would change."""

from __future__ import annotations

import datetime
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from dynamos_ng import host, uapi
from dynamos_ng.build.description import update_name
from dynamos_ng.enforcement import Enforcement, boot_ns
from dynamos_ng.errors import UsageError
from dynamos_ng.manager import Manager
from dynamos_ng.model import FunctionState
from dynamos_ng.policy import language
from dynamos_ng.policy.classes import Classes, bank, ends
from dynamos_ng.policy.language import NEWEST, WHOLE, Editions, PolicyRule, Ruleset
from dynamos_ng.policy.verdict import Process, decide, why_not
from dynamos_ng.policy_values import Explanation, Policy, PolicyDiff, PolicyStatus, RuleStatus
from dynamos_ng.policymaps import How

#: One that is just forked, exits, calls exec or is moved is looked at so often, so far apart.
_TRIES, _PAUSE = 100, 0.005
_HOW = {
    How.EXEC: "decided by the kernel at its exec",
    How.FORK: "inherited when it was forked",
    How.DAEMON: "decided by the daemon",
}


def date(seconds: float) -> str:
    """Return a time, in seconds since 1970, as people and programs can read it."""
    return datetime.datetime.fromtimestamp(seconds).astimezone().isoformat(sep=" ", timespec="milliseconds")


def _date_of_boot(when: int) -> str:
    return date(time.time() - (boot_ns() - when) / 1e9)


def asks(rule: PolicyRule) -> tuple[str, ...]:
    """Return what a rule asks, in words."""
    words = [f"{key} {value}" for key, value in rule.match.given.items()]
    if rule.share < WHOLE:
        words.append(f"{rule.share / 100:g} % of them" if words else f"{rule.share / 100:g} % of all")
    return tuple(words)


def edition_words(editions: Editions) -> tuple[tuple[str, str], ...]:
    """Return names of functions and updates with their editions, as they were written."""
    return tuple(
        (name, "newest" if edition == NEWEST else f"v{edition}")
        for name, edition in (*editions.functions, *((f"update {name}", e) for name, e in editions.updates))
    )


def show(manager: Manager, enforcement: Enforcement) -> Policy:
    """Return who has which class and edition, and the policy in force."""
    policy = manager.policy()
    classes = enforcement.in_force
    if classes is None:
        return policy
    under: Counter[int] = Counter()
    for pid, _, _ in policy.processes:
        decision = enforcement.maps.decision(pid)
        if decision is not None and decision.generation == classes.generation:
            under[decision.number] += 1
    now = boot_ns()
    rules = [
        RuleStatus(
            rule.name, rule.where, asks(rule), _date_of_boot(end) if end else "", bool(end) and now >= end,
            classes.of(number), edition_words(rule.editions), under[number],
        )
        for number, (rule, end) in enumerate(zip(classes.ruleset.rules, classes.ends, strict=True), 1)
    ]  # fmt: skip
    default = classes.ruleset.default
    rules.append(RuleStatus("default", "kernel", (), "", False, classes.of(0), edition_words(default), under[0]))
    if (interrupt := classes.ruleset.interrupt) != Editions():
        words = edition_words(interrupt)
        rules.append(RuleStatus("interrupt", "kernel", ("calls in interrupts",), "", False, uapi.INTERRUPTS, words, 0))
    in_force = PolicyStatus(
        classes.ruleset.file,
        classes.ruleset.summary,
        date(enforcement.applied),
        classes.generation,
        tuple(rules),
        len(list(enforcement.maps.undecided())),
        tuple(_by_hand(manager, classes)),
    )
    return replace(policy, in_force=in_force)


def _by_hand(manager: Manager, classes: Classes) -> list[str]:
    """Return the active functions whose rows are not as the policy had them."""
    found = []
    chosen = bank(classes.generation)[: len(classes.choices)]
    for function in manager.functions():
        if function.state is not FunctionState.REDIRECTED:
            continue
        row = manager.maps.row(function.id)
        numbers = [edition.number for edition in function.editions]
        wanted = classes.row(function.name, update_name(function.update), numbers, row, function.interrupts)
        told = [*chosen, *[uapi.INTERRUPTS] * function.interrupts]
        if wanted is not None and any(wanted[number] != row[number] for number in told):
            found.append(function.name)
    return found


def explain(enforcement: Enforcement, pid: int) -> Explanation:
    """Say which rule a process is under, since when, and why not under one before it."""
    host.check_process(pid)
    classes = enforcement.in_force
    if classes is None:
        raise UsageError(f"policy explain {pid}: no policy is in force; see 'dynamos policy show'")
    tries = 0
    while True:
        decision, record = enforcement.maps.decision(pid), enforcement.maps.record(pid)
        policy_class = enforcement.manager.maps.class_of(pid)
        undecided = enforcement.maps.is_undecided(pid)
        process = host.process(pid)
        if process is None:
            raise UsageError(f"PID {pid}: it has exited")
        agrees = decision is not None and decision.generation == classes.generation
        if decision is not None and agrees and not undecided:
            agrees = classes.of(decision.number) == policy_class
        tries += 1
        if tries == _TRIES:
            break
        if agrees and enforcement.maps.decision(pid) == decision and enforcement.maps.record(pid) == record:
            break
        time.sleep(_PAUSE)
    verdict = decide(classes, process, boot_ns())
    if decision is None or not agrees:
        others = [classes.name(number) for number in range(len(classes.ruleset.rules) + 1)
                  if classes.of(number) == policy_class]  # fmt: skip
        return Explanation(
            pid, process.comm, policy_class, "", "it is not known how it came by its class", "", classes.ruleset.file,
            (), (), " or ".join(others), undecided,
        )  # fmt: skip
    number = decision.number
    editions = classes.ruleset.rules[number - 1].editions if number else classes.ruleset.default
    before = range(1, number or len(classes.ruleset.rules) + 1)
    return Explanation(
        pid,
        process.comm,
        policy_class,
        classes.name(number),
        _HOW[decision.how],
        _date_of_boot(decision.when),
        classes.ruleset.file,
        edition_words(editions),
        tuple((classes.name(one), _why_not(classes, one, process)) for one in before),
        "" if verdict.number == number else classes.name(verdict.number),
        undecided,
    )


def _why_not(classes: Classes, number: int, process: Process) -> str:
    """Say why a rule is not the one that counts for a process."""
    if classes.ends[number - 1] and boot_ns() >= classes.ends[number - 1]:
        return "its time is over"
    return why_not(classes.ruleset.rules[number - 1], process) or "it matches by now: from the next exec on"


def diff(enforcement: Enforcement, text: str, file: str) -> PolicyDiff:
    """Say what a policy would change if it were applied now; nothing is changed."""
    new = language.parse(text, file, host.accounts())
    now = boot_ns()
    classes = enforcement.in_force
    then = Classes(new, 1, ends(new, time.time(), now))
    enforcement.check(then)
    processes = []
    for pid in sorted(host.pids()):
        process = host.process(pid)
        if process is None:
            continue
        number = decide(then, process, now).number
        chosen = new.rules[number - 1].editions if number else new.default
        name, editions = "", Editions()
        decision = enforcement.maps.decision(pid)
        if classes is not None and decision is not None and decision.generation == classes.generation:
            name = classes.name(decision.number)
            editions = classes.choices[classes.of(decision.number) - bank(classes.generation)[0]]
        if (editions, classes.ruleset.default if classes else Editions()) != (chosen, new.default):
            processes.append((pid, process.comm, name, then.name(number)))
    return PolicyDiff(
        file, classes.ruleset.file if classes else "", tuple(_rules(classes.ruleset if classes else None, new)),
        tuple(processes),
    )  # fmt: skip


def _rules(old: Ruleset | None, new: Ruleset) -> list[tuple[str, str]]:
    """Return how rules differ, by name."""
    before = {rule.name: rule for rule in old.rules} if old else {}
    after = {rule.name: rule for rule in new.rules}
    found = [(name, "taken away") for name in before if name not in after]
    for name, rule in after.items():
        if name not in before:
            found.append((name, "new"))
        elif changed := _changed(before[name], rule):
            found.append((name, f"{', '.join(changed)} changed"))
    if [name for name in before if name in after] != [name for name in after if name in before]:
        found.append(("", "the order of the rules is another"))
    if (old.default if old else Editions()) != new.default:
        found.append(("default", "editions changed"))
    if (old.interrupt if old else Editions()) != new.interrupt:
        found.append(("interrupt", "editions changed"))
    return found


def _changed(old: PolicyRule, new: PolicyRule) -> Sequence[str]:
    """Return which parts of a rule are others."""
    parts = {
        "match": (old.match, new.match),
        "percent": (old.share, new.share),
        "time": ((old.until, old.seconds), (new.until, new.seconds)),
        "editions": (old.editions, new.editions),
    }
    return [name for name, (before, after) in parts.items() if before != after]
