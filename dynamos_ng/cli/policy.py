"""dynamos policy: which process gets which edition, by a policy's file or by hand."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynamos_ng import control, host
from dynamos_ng.cli import arguments, output, tables
from dynamos_ng.cli.tables import console, plain_table
from dynamos_ng.errors import UsageError
from dynamos_ng.policy import language
from dynamos_ng.policy.classes import Classes
from dynamos_ng.policy.language import Ruleset
from dynamos_ng.policy_values import CheckedRule, PolicyCheck
from dynamos_ng.wire import plain

#: No policy is longer than this; the daemon takes requests of a megabyte.
BYTES_MAX = 256 << 10
#: A system has thousands of processes; a screen has room for these.
PROCESSES_SHOWN = 20


def _read(path: Path) -> tuple[Ruleset, dict[str, Any]]:
    """Return a checked policy, and what the daemon is told of it."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if len(raw) > BYTES_MAX:
        raise UsageError(f"{path}: it has {len(raw)} bytes; a policy has at most {BYTES_MAX}")
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise UsageError(f"{path}:{line}: not TOML: it is no UTF-8") from None
    return language.parse(text, str(path), host.accounts()), {"text": text, "file": str(path.resolve())}


def _check(options: argparse.Namespace) -> int:
    ruleset, _ = _read(options.file)
    classes = Classes(ruleset, 1, (0,) * len(ruleset.rules))
    rules = tuple(CheckedRule(rule.name, rule.where, rule.line) for rule in ruleset.rules)
    return output.show(options, plain(PolicyCheck(ruleset.file, rules, len(classes.choices))), _checked)


def _checked(result: dict[str, Any]) -> None:
    rules = result["rules"]
    console.print(f"{result['file']}: right; {len(rules)} rules, {result['classes']} classes")
    table = plain_table("#line", "rule", "decided by")
    for rule in rules:
        table.add_row(str(rule["line"]), rule["name"], rule["where"])
    if rules:
        console.print(table)


def _apply(options: argparse.Namespace) -> int:
    _, request = _read(options.file)
    return output.show(options, control.call("policy_apply", **request), _applied)


def _applied(result: dict[str, Any]) -> None:
    console.print(
        f"{result['file']} is in force, generation {result['generation']}; {result['moved']} processes were moved"
    )


def _clear(options: argparse.Namespace) -> int:
    return output.show(
        options,
        control.call("policy_clear"),
        lambda result: console.print(f"no policy is in force any more; {result['moved']} processes are in class 0"),
    )


def _explain(options: argparse.Namespace) -> int:
    return output.show(options, control.call("policy_explain", pid=options.pid), _explained)


def _explained(result: dict[str, Any]) -> None:
    def say(words: str) -> None:
        console.print(words)

    say(f"PID {result['pid']} ({result['comm']}) is in class {result['policy_class']} of {result['file']}")
    if not result["rule"]:
        say(f"  {result['how']}; rules of this class: {result['next_rule'] or 'none'}")
        return
    say(f"  rule: {result['rule']}, since {result['since']}, {result['how']}")
    for name, edition in result["editions"]:
        say(f"  gives {edition} of {name}")
    for name, why in result["earlier"]:
        say(f"  not {name}: {why}")
    if result["undecided"]:
        say("  the daemon has still to look whether a rule that it decides matches")
    elif result["next_rule"]:
        say(f"  from its next exec on: {result['next_rule']}")


def _diff(options: argparse.Namespace) -> int:
    _, request = _read(options.file)
    return output.show(options, control.call("policy_diff", **request), _differs)


def _differs(result: dict[str, Any]) -> None:
    console.print(f"from {result['in_force'] or 'no policy'} to {result['file']}")
    if not result["rules"] and not result["processes"]:
        console.print("nothing would change")
    for name, what in result["rules"]:
        console.print(f"  {name}: {what}" if name else f"  {what}")
    if result["processes"]:
        table = plain_table("#PID", "comm", "rule now", "rule then", title="processes whose editions change")
        for pid, comm, now, then in result["processes"][:PROCESSES_SHOWN]:
            table.add_row(str(pid), comm, now or "-", then)
        console.print(table)
        if len(result["processes"]) > PROCESSES_SHOWN:
            console.print(f"and {len(result['processes']) - PROCESSES_SHOWN} more; --json has them all")


def show(value: dict[str, Any]) -> None:
    """Show the policy in force, or without one what was set by hand."""
    policy = value["in_force"]
    if policy is None:
        tables.policy(value)
        return
    console.print(f"{policy['file']}, generation {policy['generation']}, since {policy['applied']}")
    if policy["summary"]:
        console.print(f"  {policy['summary']}")
    table = plain_table("rule", "asks", "decided by", "editions", "#class", "#processes")
    for rule in policy["rules"]:
        asked = ", ".join(rule["asks"]) or "every other process"
        if rule["ends"]:
            asked += f"; {'over since' if rule['over'] else 'until'} {rule['ends']}"
        editions = ", ".join(f"{name} {edition}" for name, edition in rule["editions"]) or "-"
        table.add_row(
            rule["name"], asked, rule["where"], editions, str(rule["policy_class"]), str(rule["processes"])
        )  # fmt: skip
    console.print(table)
    if policy["undecided"]:
        console.print(f"{policy['undecided']} processes wait for the daemon to look at them")
    for name in policy["by_hand"]:
        console.print(f"{name}: its editions were set otherwise by hand; the next apply takes it over")
    tables.editions(value["rows"])


def _show(options: argparse.Namespace) -> int:
    return output.show(options, control.call("policy_show"), show)


def _set(options: argparse.Namespace) -> int:
    chosen = options.policy_class
    if options.function is not None:
        if options.edition is None:
            raise UsageError("policy set --function: --edition is missing")
        control.call("policy_edition", function=options.function, policy_class=chosen, edition=options.edition)
    elif options.edition is not None:
        raise UsageError("policy set: --edition belongs to --function")
    elif chosen is None:
        raise UsageError("policy set: --class is missing")
    elif options.pid is not None:
        control.call("policy_process", pid=options.pid, policy_class=chosen)
    else:
        control.call("policy_rule", comm=options.comm, policy_class=chosen)
    return _show(options)


def add_verbs(parser: argparse.ArgumentParser) -> None:
    """Give a parser the verbs below policy."""
    verbs = parser.add_subparsers(metavar="WHAT", required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one = verbs.add_parser(name, help=text, description=text)
        one.set_defaults(run=run)
        one.add_argument("--json", action="store_true", help="print JSON")
        return one

    for name, run, text in (
        ("check", _check, "check a policy, and say which rules the kernel decides; needs no daemon"),
        ("apply", _apply, "put a policy into force, in place of the one before; all processes see one or the other"),
        ("diff", _diff, "what applying a policy would change; changes nothing"),
    ):
        verb(name, run, text).add_argument("file", type=Path)
    verb("clear", _clear, "take the policy away: its processes are then in class 0, or in that of their exec rule")
    verb("explain", _explain, "why a process is in its class, and since when").add_argument("pid", type=int)
    verb("show", _show, "show the policy in force, or classes, exec rules and editions")
    one = verb("set", _set, "by hand: a class for a process or a program name, or a function's edition for a class")
    what = one.add_mutually_exclusive_group(required=True)
    what.add_argument("--pid", type=int, help="a running process: until it execs or exits; children inherit")
    what.add_argument("--comm", help="every program of this name from its next exec on; class 0 ends the rule")
    what.add_argument("--function", help="with --edition: what a class, or without --class all of them, get")
    one.add_argument("--class", dest="policy_class", type=arguments.policy_class, metavar="C",
                     help="policy class, 0 to 254; with --function also interrupts")  # fmt: skip
    one.add_argument("--edition", type=int, metavar="N", help="with --function: which edition")
