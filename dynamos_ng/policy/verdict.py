"""Which rule of a policy a process falls under, and why not under those before it."""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase

from dynamos_ng.policy.classes import Classes, salt, share_of
from dynamos_ng.policy.language import WHOLE, PolicyRule


@dataclass(frozen=True)
class Process:
    """What rules can ask of a process. `argv` is joined by spaces; `parents` are names, the nearest first.

    A kernel thread has no exe and no argv: no glob matches what is not there.
    """

    pid: int
    comm: str
    exe: str
    argv: str
    uid: int
    gid: int
    cgroup: str
    session: int
    parents: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """The number of the rule that matches, from 1 on (0: the default), and why each one before it does not."""

    number: int
    earlier: tuple[str, ...]


def decide(classes: Classes, process: Process, boot_ns: int) -> Verdict:
    """Return which rule a process falls under at a time, in nanoseconds since boot."""
    earlier: list[str] = []
    for number, (rule, ends) in enumerate(zip(classes.ruleset.rules, classes.ends, strict=True), 1):
        why = "its time is over" if ends and boot_ns >= ends else why_not(rule, process)
        if not why:
            return Verdict(number, tuple(earlier))
        earlier.append(why)
    return Verdict(0, tuple(earlier))


def why_not(rule: PolicyRule, process: Process) -> str:
    """Return why a rule does not match a process, whatever the time, an empty text if it does."""
    for key, wanted in rule.match.given.items():
        matched, found = _ask(key, wanted, rule, process)
        if not matched:
            return f"{key} is {'nothing' if found == '' else found}, not {wanted}"
    if rule.share < WHOLE and share_of(process.pid, salt(rule.name)) >= rule.share:
        return f"it is not among the {rule.share / 100:g} %"
    return ""


def _ask(key: str, wanted: str | int, rule: PolicyRule, process: Process) -> tuple[bool, str | int]:
    """Return whether a process has what a key wants, and what it has."""
    if key == "user":
        return process.uid == rule.match.uid, f"that of UID {process.uid}"
    if key == "group":
        return process.gid == rule.match.gid, f"that of GID {process.gid}"
    if key in ("parent", "ancestor"):
        names = process.parents[:1] if key == "parent" else process.parents
        return wanted in names, ", ".join(names)
    found: str | int = getattr(process, key)
    if key in ("exe", "argv", "cgroup"):
        return found != "" and fnmatchcase(str(found), str(wanted)), found
    return found == wanted, found
