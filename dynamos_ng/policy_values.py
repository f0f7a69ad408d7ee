"""What passes between the parts about policies: frozen, typed, and free of any source."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CheckedRule:
    """A rule of a policy that was checked: where it stands, and who decides it, "kernel" or "daemon"."""

    name: str
    where: str
    line: int


@dataclass(frozen=True)
class PolicyCheck:
    """A policy that is right: its rules in order, and how many classes it takes."""

    file: str
    rules: tuple[CheckedRule, ...]
    classes: int


@dataclass(frozen=True)
class RuleStatus:
    """A rule of the policy in force, or its default, and how many processes are under it.

    `where` is who decides it, "kernel" or "daemon"; `asks` is what it asks, in words; `ends` is a date, or empty.
    """

    name: str
    where: str
    asks: tuple[str, ...]
    ends: str
    over: bool
    policy_class: int
    editions: tuple[tuple[str, str], ...]
    processes: int


@dataclass(frozen=True)
class PolicyStatus:
    """The policy in force: its rules in order, the default last. `by_hand` are functions that were set otherwise since.

    `undecided` processes wait for the daemon.
    """

    file: str
    summary: str
    applied: str
    generation: int
    rules: tuple[RuleStatus, ...]
    undecided: int
    by_hand: tuple[str, ...]


@dataclass(frozen=True)
class Explanation:
    """Why a process is in its class: the rule, how and since when, and why none of the rules before it.

    `how` is in words. `next_rule` is the one that it would fall under now, if that is another. `undecided` says that
    the daemon has still to look.
    """

    pid: int
    comm: str
    policy_class: int
    rule: str
    how: str
    since: str
    file: str
    editions: tuple[tuple[str, str], ...]
    earlier: tuple[tuple[str, str], ...]
    next_rule: str
    undecided: bool


@dataclass(frozen=True)
class Applied:
    """What applying a policy did: its generation, and how many processes were moved, in how many passes."""

    file: str
    generation: int
    moved: int
    passes: int


@dataclass(frozen=True)
class PolicyDiff:
    """What a policy would change: rules by name and how, and processes (PID, name, rule now, rule then).

    Only those processes are told whose editions would be others.
    """

    file: str
    in_force: str
    rules: tuple[tuple[str, str], ...]
    processes: tuple[tuple[int, str, str, str], ...]


@dataclass(frozen=True)
class Policy:
    """Who has which class and edition: class by PID, class by program name, and editions by function and class.

    `processes` has PID, class and program name, `rules` program name and class; a row has one byte (the edition; 0 is
    v1) for each class. `in_force` is the policy, if one was applied.
    """

    processes: tuple[tuple[int, int, str], ...]
    rules: tuple[tuple[str, int], ...]
    rows: tuple[tuple[str, bytes], ...]
    in_force: PolicyStatus | None = None
