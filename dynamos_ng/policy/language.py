"""The language of policies: a TOML text becomes a checked, frozen Ruleset, or one error that names every fault.

docs/policies.md tells it to people, policies/schema.json to editors. Nothing here asks the machine: who knows the
numbers of users and groups is given.
"""

from __future__ import annotations

import datetime
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from dynamos_ng import uapi
from dynamos_ng.errors import UsageError
from dynamos_ng.policy.lines import Place, lines

#: How many rules a policy may have: bpf/classify.c goes through them at each exec.
RULES_MAX = 64
#: An edition that is written as "newest".
NEWEST = 0
#: What the kernel itself can match at exec; the daemon matches the rest.
KERNEL_KEYS = frozenset({"comm", "uid", "user", "gid", "group", "pid", "cgroup"})
#: A share is counted in these: 10000 is everybody.
WHOLE = 10000

_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"(\d{1,6})([smhd])")
_LONGEST = 366 * 86400
_ID_MAX = 2**32 - 2
_PID_MAX = (4 << 20) - 1
#: A number's key among the matched ones, and its greatest value.
_NUMBERS = {"uid": _ID_MAX, "gid": _ID_MAX, "pid": _PID_MAX, "session": _PID_MAX}
#: What the names of functions and updates are made of.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
_TOML = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)


class PolicyError(UsageError):
    """A policy that is no policy: one line for each fault, with file, line and key."""


@dataclass(frozen=True)
class Match:
    """Whom a rule is for: all that is not None must be so. `exe`, `argv` and `cgroup` are globs.

    `user` and `group` are kept for people; `uid` and `gid` have their numbers.
    """

    comm: str | None = None
    exe: str | None = None
    argv: str | None = None
    uid: int | None = None
    user: str | None = None
    gid: int | None = None
    group: str | None = None
    cgroup: str | None = None
    session: int | None = None
    parent: str | None = None
    ancestor: str | None = None
    pid: int | None = None

    @property
    def given(self) -> dict[str, str | int]:
        """Return what was written, by key."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, number in (("user", "uid"), ("group", "gid")):
            if found[name] is not None:
                found[number] = None
        return {key: value for key, value in found.items() if value is not None}


@dataclass(frozen=True)
class Editions:
    """An edition (NEWEST, or a number) by function and by update; where both name one, the function's counts."""

    functions: tuple[tuple[str, int], ...] = ()
    updates: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class PolicyRule:
    """One rule. `share` is in 1/10000, `until` in seconds since 1970; `seconds` count from when it is applied."""

    name: str
    match: Match
    editions: Editions
    share: int = WHOLE
    until: float | None = None
    seconds: int | None = None
    line: int = 0

    @property
    def where(self) -> str:
        """Return who decides whether it matches: "kernel" or "daemon"."""
        return "kernel" if self.match.given.keys() <= KERNEL_KEYS else "daemon"


@dataclass(frozen=True)
class Ruleset:
    """A policy: the first rule that matches a process gives it editions; what that leaves open is the default's.

    `interrupt` gives calls made in interrupts theirs, of functions that tell these; else they have the default's.
    """

    file: str
    text: str
    rules: tuple[PolicyRule, ...]
    default: Editions
    summary: str = ""
    default_line: int = 0
    interrupt: Editions = Editions()
    interrupt_line: int = 0


@dataclass(frozen=True)
class Accounts:
    """Who knows the numbers of users and groups; None for a name that there is not."""

    uid: Callable[[str], int | None]
    gid: Callable[[str], int | None]


NOBODY = Accounts(lambda _: None, lambda _: None)


def parse(text: str, file: str, accounts: Accounts) -> Ruleset:
    """Check a policy as a whole and return it; PolicyError names every fault."""
    if not isinstance(text, str):
        raise PolicyError(f"{file}:1: not TOML: it is no text")
    try:
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        found = _TOML.fullmatch(str(error))
        reason, line = (found[1], found[2] or len(text.splitlines()) or 1) if found else (str(error), 1)
        raise PolicyError(f"{file}:{line}: not TOML: {reason[:1].lower()}{reason[1:]}") from None
    except ValueError as error:  # a number or a date that Python cannot hold
        raise PolicyError(f"{file}:1: not TOML: {error}") from None
    reader = _Reader(file, lines(text), accounts)
    found_rules = reader.document(table)
    if reader.faults:
        raise PolicyError("\n".join(f"{file}:{line}: {words}" for line, words in sorted(reader.faults)))
    return Ruleset(file, text, *found_rules)


class _Reader:
    """Reads tables, and gathers every fault on its way."""

    def __init__(self, file: str, places: Mapping[Place, int], accounts: Accounts) -> None:
        self.faults: list[tuple[int, str]] = []
        self._file = file
        self._places = places
        self._accounts = accounts

    def _line(self, place: Place) -> int:
        while place not in self._places:
            place = place[:-1]
        return self._places[place]

    def _fault(self, place: Place, words: str) -> None:
        key = ""
        for part in place:
            key += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if key else part
        self.faults.append((self._line(place), f"{key}: {words}" if key else words))

    def _known(self, table: Mapping[str, Any], place: Place, known: Iterable[str]) -> None:
        names = list(known)
        for key in table:
            if key not in names:
                self._fault((*place, key), f"unknown key; known are {', '.join(names)}")

    def document(self, table: dict[str, Any]) -> tuple[tuple[PolicyRule, ...], Editions, str, int, Editions, int]:
        self._known(table, (), ("summary", "default", "interrupt", "rule"))
        summary = self._text(table.get("summary", ""), ("summary",), empty=True)
        default, interrupt = self._section(table, "default"), self._section(table, "interrupt")
        rules: list[PolicyRule] = []
        listed = table.get("rule", [])
        if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
            self._fault(("rule",), "an array of tables is needed: begin each rule with [[rule]]")
            listed = []
        if len(listed) > RULES_MAX:
            self._fault(("rule", RULES_MAX), f"a policy has at most {RULES_MAX} rules")
        names: dict[str, int] = {}
        for number, one in enumerate(listed):
            rule = self._rule(one, ("rule", number))
            if rule.name and names.setdefault(rule.name, number) != number:
                first = self._line(("rule", names[rule.name]))
                self._fault(("rule", number, "name"), f"the rule in line {first} is called {rule.name!r} already")
            rules.append(rule)
        if not rules and default == interrupt == Editions() and not self.faults:
            self._fault((), "nothing is said: write [[rule]] tables, or editions in [default]")
        lines_of = self._line(("default",)), self._line(("interrupt",))
        return tuple(rules), default, summary, lines_of[0], interrupt, lines_of[1]

    def _section(self, table: dict[str, Any], name: str) -> Editions:
        raw = table.get(name, {})
        if not isinstance(raw, dict):
            self._fault((name,), f"a table is needed: [{name}]")
            return Editions()
        self._known(raw, (name,), ("functions", "updates"))
        return self._editions(raw, (name,))

    def _rule(self, table: dict[str, Any], place: Place) -> PolicyRule:
        self._known(table, place, ("name", "match", "percent", "until", "for", "functions", "updates"))
        if "name" not in table:
            self._fault(place, "a rule needs a name")
        name = self._text(table.get("name", "?"), (*place, "name"))
        if name == "default":
            self._fault((*place, "name"), "what no rule matches is called default: take another name")
        match = self._match(table.get("match", {}), (*place, "match"))
        if not match.given and "percent" not in table and "match" not in table:
            self._fault(place, "match is missing; for every process there is [default], and with percent for a share")
        share = WHOLE if "percent" not in table else self._share(table["percent"], (*place, "percent"))
        if "until" in table and "for" in table:
            self._fault((*place, "for"), "until is given too: give one of them")
        until = None if "until" not in table else self._until(table["until"], (*place, "until"))
        seconds = None if "for" not in table else self._span(table["for"], (*place, "for"))
        editions = self._editions(table, place)
        return PolicyRule(name, match, editions, share, until, seconds, self._line(place))

    def _match(self, table: Any, place: Place) -> Match:
        if not isinstance(table, dict):
            self._fault(place, 'a table is needed, like { comm = "less" }')
            return Match()
        known = [field.name for field in fields(Match)]
        self._known(table, place, known)
        if not table and place in self._places:
            self._fault(place, f"it is empty; give one or more of {', '.join(known)}")
        found: dict[str, Any] = {}
        for key, value in table.items():
            if key in _NUMBERS:
                found[key] = self._number(value, (*place, key), _NUMBERS[key], least=0 if key in ("uid", "gid") else 1)
            elif key in ("comm", "parent", "ancestor"):
                found[key] = self._comm(value, (*place, key))
            elif key in known:
                found[key] = self._text(value, (*place, key))
        if isinstance(found.get("exe"), str) and not found["exe"].startswith(("/", "*")):
            self._fault((*place, "exe"), "a path from / on is needed, or one that begins with *: */nginx")
        if isinstance(found.get("cgroup"), str) and not found["cgroup"].startswith(("/", "*")):
            self._fault((*place, "cgroup"), "a path from / on is needed, as /proc/PID/cgroup shows: /system.slice/*")
        for name, number, ask in (("user", "uid", self._accounts.uid), ("group", "gid", self._accounts.gid)):
            if name in found and number in found:
                self._fault((*place, name), f"{number} is given too: give one of them")
            elif found.get(name):
                found[number] = ask(found[name])
                if found[number] is None:
                    self._fault((*place, name), f"this machine has no {name} {found[name]!r}; numbers go with {number}")
        return Match(**found)

    def _editions(self, table: dict[str, Any], place: Place) -> Editions:
        parts = []
        for key in ("functions", "updates"):
            part = table.get(key, {})
            if not isinstance(part, dict):
                self._fault((*place, key), "a table is needed, like { NAME = 2 }")
                part = {}
            parts.append(self._named(part, (*place, key)))
        if place[:1] == ("rule",) and not any(key in table for key in ("functions", "updates")):
            self._fault(place, "it gives no edition: write functions = { NAME = 2 } or updates = { NAME = 2 }")
        return Editions(*parts)

    def _named(self, table: dict[str, Any], place: Place) -> tuple[tuple[str, int], ...]:
        found: dict[str, int] = {}
        for written, value in table.items():
            # In an update's name - and _ are the same.
            name = written.replace("-", "_") if place[-1] == "updates" else written
            if name in found:
                self._fault((*place, written), "it is given already; - and _ are the same")
            found[name] = self._edition(name, value, (*place, written))
        return tuple(sorted(found.items()))

    def _edition(self, name: str, value: Any, place: Place) -> int:
        if not _NAME.fullmatch(name) or len(name) >= uapi.NAME_MAX:
            self._fault(place, "this can be no name of a function or an update")
        if value == "newest":
            return NEWEST
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < uapi.EDITIONS_MAX:
            self._fault(place, f'an edition is needed: 1 (the original) to {uapi.EDITIONS_MAX - 1}, or "newest"')
            return 1
        return value

    def _text(self, value: Any, place: Place, *, empty: bool = False) -> str:
        if not isinstance(value, str):
            self._fault(place, "a text is needed, in quotes")
        elif not value and not empty:
            self._fault(place, "it is empty")
        elif any(ord(letter) < 32 or ord(letter) == 127 for letter in value):
            self._fault(place, "it holds control characters")
        else:
            return value
        return "?"

    def _comm(self, value: Any, place: Place) -> str:
        text = self._text(value, place)
        raw = text.encode()
        if "/" in text:
            self._fault(place, f"give the name alone, without folders: {text.rsplit('/', 1)[-1] or 'NAME'}")
        elif len(raw) >= uapi.COMM_MAX:
            kept = raw[: uapi.COMM_MAX - 1].decode(errors="ignore")
            self._fault(place, f"the kernel keeps {uapi.COMM_MAX - 1} bytes of a name; give {kept!r}")
        return text

    def _number(self, value: Any, place: Place, most: int, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._fault(place, f"a number from {least} to {most} is needed")
            return least
        return value

    def _share(self, value: Any, place: Place) -> int:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 100:
            self._fault(place, "a number above 0 and up to 100 is needed")
            return WHOLE
        share = round(value * WHOLE / 100)
        if abs(share - value * WHOLE / 100) > 1e-6:
            self._fault(place, "two digits behind the point are the most")
        return share

    def _until(self, value: Any, place: Place) -> float | None:
        if not isinstance(value, datetime.datetime) or value.tzinfo is None:
            self._fault(place, "a date and time with its offset is needed, like 2030-01-31T18:00:00Z")
            return None
        try:
            return value.timestamp()
        except (OverflowError, ValueError):
            self._fault(place, "this time is out of range")
            return None

    def _span(self, value: Any, place: Place) -> int:
        found = _SPAN.fullmatch(value) if isinstance(value, str) else None
        seconds = int(found[1]) * _SPANS[found[2]] if found else 0
        if not 0 < seconds <= _LONGEST:
            self._fault(place, 'a time is needed, like "90s", "30m", "2h" or "7d", of at most 366 days')
            return 1
        return seconds
