"""A Ruleset as policy classes: one for each distinct choice of editions, in one of two banks.

A policy never changes the classes of the one before it: it takes the other bank. So the rows of its classes can be
written while nobody is in them, and a process goes from one policy to the other by its single class byte.
Generations are counted up, and say by their lowest bit which bank they use; 0 is no policy, and class 0 in no bank.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property

from dynamos_ng import uapi
from dynamos_ng.policy.language import NEWEST, RULES_MAX, WHOLE, Editions, PolicyError, PolicyRule, Ruleset

#: Rules of a bank in the kernel: those of a policy, and the default, which matches everybody.
SLOTS = RULES_MAX + 1
#: struct rule of bpf/classify.c, and the bits of its `asks`.
_RULE = struct.Struct("=QIIIIIIII16s")
RULE_BYTES = _RULE.size
_COMM, _UID, _GID, _PID, _SHARE, _DAEMON, _CGROUP = (1 << bit for bit in range(7))
#: A slot that ends the rules: the policy before the last one had more.
NOTHING = bytes(RULE_BYTES)
_EXISTS = 1 << 31


def bank(generation: int) -> range:
    """Return the classes that a generation may use."""
    return range(1, 128) if generation & 1 else range(128, uapi.INTERRUPTS)


def slots(generation: int) -> range:
    """Return the slots of a generation's rules in the kernel."""
    start = SLOTS * (generation & 1)
    return range(start, start + SLOTS)


def salt(name: str) -> int:
    """Return what makes the shares of rules of different names different ones."""
    return zlib.crc32(name.encode())


def share_of(pid: int, salt: int) -> int:
    """Return where in 0..9999 a process stands for a rule; bpf/classify.c computes the same."""
    mask = 0xFFFFFFFF
    value = (pid * 0x9E3779B1 & mask) ^ salt
    value = (value ^ value >> 16) * 0x7FEB352D & mask
    value = (value ^ value >> 15) * 0x846CA68B & mask
    return (value ^ value >> 16) % WHOLE


def ends(ruleset: Ruleset, now: float, boot_ns: int) -> tuple[int, ...]:
    """Return when each rule ends, as Classes wants it, if it is applied now; the clocks stand at NOW and BOOT_NS."""
    found = []
    for rule in ruleset.rules:
        when = rule.until if rule.seconds is None else now + rule.seconds
        found.append(0 if when is None else min(max(1, boot_ns + round((when - now) * 1e9)), (1 << 64) - 1))
    return tuple(found)


@dataclass(frozen=True)
class Classes:
    """A policy's classes in a generation. A rule's number is its place from 1 on; 0 is the default's.

    `ends` has for each rule when it ends, in nanoseconds since boot; 0 if it does not.
    """

    ruleset: Ruleset
    generation: int
    ends: tuple[int, ...]

    @cached_property
    def choices(self) -> tuple[Editions, ...]:
        """Return what the classes of the bank choose, without what the default adds; the default's own is first."""
        return tuple(dict.fromkeys([self.ruleset.default, *(rule.editions for rule in self.ruleset.rules)]))

    def of(self, number: int) -> int:
        """Return the class of a rule."""
        editions = self.ruleset.rules[number - 1].editions if number else self.ruleset.default
        return bank(self.generation)[self.choices.index(editions)]

    def name(self, number: int) -> str:
        """Return the name of a rule."""
        return self.ruleset.rules[number - 1].name if number else "default"

    def row(
        self, function: str, update: str, numbers: Sequence[int], row: bytes, tells: bool = False
    ) -> bytes | None:
        """Return a function's ROW with this bank's bytes as the policy wants them; None if it does not name it.

        `numbers` are the editions that it has; PolicyError if the policy wants another one. If it TELLS interrupts
        from other calls, the byte of their class is the policy's too.
        """
        interrupt = self.ruleset.interrupt
        everywhere = self._wanted(function, update, tells)
        if not tells and function in dict(interrupt.functions):
            raise PolicyError(
                f"{self.ruleset.file}:{self.ruleset.interrupt_line}: interrupt: {function} of update {update} does not "
                "tell interrupts from other calls: that takes interrupts = true in its update.toml"
            )
        if not everywhere:
            return None
        for edition, editions in everywhere:
            if edition not in (NEWEST, *numbers):
                raise PolicyError(self._lacks(function, update, edition, numbers, editions))
        changed = bytearray(row)
        for policy_class, editions in zip(bank(self.generation), self.choices, strict=False):
            edition = next((edition for edition, _ in _chosen([editions, self.choices[0]], function, update)), 1)
            changed[policy_class] = max(numbers) if edition == NEWEST else edition
        if tells:
            edition = next((edition for edition, _ in _chosen([interrupt, self.choices[0]], function, update)), 1)
            changed[uapi.INTERRUPTS] = max(numbers) if edition == NEWEST else edition
        return bytes(changed)

    def names(self, function: str, update: str, tells: bool) -> bool:
        """Tell whether the policy says anything of a function, which perhaps TELLS interrupts from other calls."""
        return bool(self._wanted(function, update, tells))

    def _wanted(self, function: str, update: str, tells: bool) -> list[tuple[int, Editions]]:
        return list(_chosen([*self.choices, *[self.ruleset.interrupt] * tells], function, update))

    def _lacks(self, function: str, update: str, edition: int, numbers: Sequence[int], editions: Editions) -> str:
        rule = next((rule for rule in self.ruleset.rules if rule.editions == editions), None)
        where = f'{rule.line}: rule "{rule.name}"' if rule else f"{self.ruleset.default_line}: default"
        if not rule and editions == self.ruleset.interrupt:
            where = f"{self.ruleset.interrupt_line}: interrupt"
        have = ", ".join(str(number) for number in sorted(numbers))
        return f"{self.ruleset.file}:{where}: {function} of update {update} has no edition {edition}; it has {have}"

    def kernel_rules(self) -> Iterator[bytes]:
        """Yield what the kernel reads at exec, one value for each slot."""
        for number, (rule, until) in enumerate(zip(self.ruleset.rules, self.ends, strict=True), 1):
            yield self._encoded(number, rule, until)
        yield _RULE.pack(0, _EXISTS, 0, 0, 0, 0, 0, self.of(0), 0, b"")
        for _ in range(len(self.ruleset.rules) + 1, SLOTS):
            yield NOTHING

    def cgroup_rules(self, path: str) -> Iterator[tuple[int, bool]]:
        """Yield the number of each rule that names cgroups, and whether it means the one of this path."""
        for number, rule in enumerate(self.ruleset.rules, 1):
            if rule.match.cgroup is not None:
                yield number, fnmatchcase(path, rule.match.cgroup)

    def _encoded(self, number: int, rule: PolicyRule, until: int) -> bytes:
        match = rule.match
        asks = _EXISTS
        for bit, asked in (
            (_COMM, match.comm is not None), (_UID, match.uid is not None), (_GID, match.gid is not None),
            (_PID, match.pid is not None), (_SHARE, rule.share < WHOLE), (_DAEMON, rule.where == "daemon"),
            (_CGROUP, match.cgroup is not None),
        ):  # fmt: skip
            asks |= bit if asked else 0
        return _RULE.pack(
            until, asks, match.uid or 0, match.gid or 0, match.pid or 0, rule.share, salt(rule.name),
            self.of(number), number, (match.comm or "").encode(),
        )  # fmt: skip


def _chosen(choices: Sequence[Editions], function: str, update: str) -> Iterator[tuple[int, Editions]]:
    """Yield what each of the choices that name a function or its update wants, in order, and the choice."""
    for editions in choices:
        for names, name in ((editions.functions, function), (editions.updates, update)):
            found = dict(names).get(name)
            if found is not None:
                yield found, editions
                break
