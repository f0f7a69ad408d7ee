"""Policies that are none: what is wrong, the text, what the message says, and whether the schema sees it too.

What the schema cannot know: what is beyond counting characters, what names there are, and what must differ.
"""

from __future__ import annotations

from dataclasses import dataclass

RULE = '[[rule]]\nname = "a"\nmatch = { comm = "less" }\nfunctions = { f = 2 }\n'


@dataclass(frozen=True)
class Rejected:
    name: str
    text: str
    says: str
    schema: bool = True


def _rule(**lines: str) -> str:
    """Return a rule with other lines in place of its own, or more of them."""
    wanted = {"name": '"a"', "match": '{ comm = "less" }', "functions": "{ f = 2 }"} | lines
    return "[[rule]]\n" + "".join(f"{key} = {value}\n" for key, value in wanted.items() if value)


def _match(value: str) -> str:
    return _rule(match="{ " + value + " }")


REJECTED = [
    Rejected("empty", "", "p.toml:1: nothing is said: write [[rule]] tables, or editions in [default]"),
    Rejected("empty default", "[default]\n", "p.toml:1: nothing is said"),
    Rejected("unknown key", "rules = 1\n" + RULE, "rules: unknown key; known are summary, default, interrupt, rule"),
    Rejected("summary", "summary = 1\n" + RULE, "p.toml:1: summary: a text is needed, in quotes"),
    Rejected("summary of two lines", 'summary = "a\\nb"\n' + RULE, "p.toml:1: summary: it holds control characters"),
    Rejected("rule is a table", '[rule]\nname = "a"\n', "p.toml:1: rule: an array of tables is needed: begin"),
    Rejected("rules are numbers", "rule = [1]\n", "p.toml:1: rule: an array of tables is needed"),
    Rejected("default is a number", "default = 1\n" + RULE, "p.toml:1: default: a table is needed: [default]"),
    Rejected("interrupt is a number", "interrupt = 1\n" + RULE, "p.toml:1: interrupt: a table is needed: [interrupt]"),
    Rejected("interrupt of a share", RULE + "[interrupt]\npercent = 5\n", "p.toml:6: interrupt.percent: unknown key"),
    Rejected("default of a share", RULE + "[default]\npercent = 5\n", "p.toml:6: default.percent: unknown key"),
    Rejected("too many rules", "".join(RULE.replace('"a"', f'"{n}"') for n in range(65)),
             "p.toml:257: rule[65]: a policy has at most 64 rules"),
    Rejected("no name", _rule(name=""), "p.toml:1: rule[1]: a rule needs a name"),
    Rejected("name of nothing", _rule(name='""'), "p.toml:2: rule[1].name: it is empty"),
    Rejected("name is taken", RULE + "\n" + RULE, "p.toml:7: rule[2].name: the rule in line 1 is called 'a' already",
             schema=False),
    Rejected("name default", _rule(name='"default"'), "p.toml:2: rule[1].name: what no rule matches is called default"),
    Rejected("no match", _rule(match=""), "p.toml:1: rule[1]: match is missing; for every process there is"),
    Rejected("match of nothing", _rule(match="{}"), "p.toml:3: rule[1].match: it is empty; give one or more of comm"),
    Rejected("match is a text", _rule(match='"less"'), 'p.toml:3: rule[1].match: a table is needed, like { comm'),
    Rejected("match of unknown", _match("comn = 1"), "p.toml:3: rule[1].match.comn: unknown key; known are comm, exe"),
    Rejected("comm with folders", _match('comm = "/bin/less"'),
             "p.toml:3: rule[1].match.comm: give the name alone, without folders: less"),
    Rejected("comm too long", _match('comm = "abcdefghijklmnop"'),
             "p.toml:3: rule[1].match.comm: the kernel keeps 15 bytes of a name; give 'abcdefghijklmno'"),
    Rejected("comm of too many bytes", _match('comm = "ääääääää"'), "the kernel keeps 15 bytes", schema=False),
    Rejected("parent is a number", _match("parent = 1"), "p.toml:3: rule[1].match.parent: a text is needed"),
    Rejected("relative exe", _match('exe = "bin/less"'), "p.toml:3: rule[1].match.exe: a path from / on is needed"),
    Rejected("relative cgroup", _match('cgroup = "web"'), "p.toml:3: rule[1].match.cgroup: a path from / on is needed"),
    Rejected("empty argv", _match('argv = ""'), "p.toml:3: rule[1].match.argv: it is empty"),
    Rejected("uid below 0", _match("uid = -1"), "p.toml:3: rule[1].match.uid: a number from 0 to 4294967294 is needed"),
    Rejected("uid is a truth", _match("uid = true"), "p.toml:3: rule[1].match.uid: a number from 0 to"),
    Rejected("pid 0", _match("pid = 0"), "p.toml:3: rule[1].match.pid: a number from 1 to 4194303 is needed"),
    Rejected("uid and user", _match('uid = 0, user = "root"'), "p.toml:3: rule[1].match.user: uid is given too"),
    Rejected("no such user", _match('user = "nobody here"'),
             "p.toml:3: rule[1].match.user: this machine has no user 'nobody here'; numbers go with uid", schema=False),
    Rejected("no such group", _match('group = "none"'), "this machine has no group 'none'", schema=False),
    Rejected("percent 0", _rule(percent="0"), "p.toml:5: rule[1].percent: a number above 0 and up to 100 is needed"),
    Rejected("percent 101", _rule(percent="101"), "p.toml:5: rule[1].percent: a number above 0 and up to 100"),
    Rejected("percent nan", _rule(percent="nan"), "p.toml:5: rule[1].percent: a number above 0 and up to 100",
             schema=False),
    Rejected("percent too fine", _rule(percent="0.001"), "p.toml:5: rule[1].percent: two digits behind", schema=False),
    Rejected("percent in quotes", _rule(percent='"5"'), "p.toml:5: rule[1].percent: a number above 0"),
    Rejected("until without offset", _rule(until="2030-01-01T00:00:00"),
             "p.toml:5: rule[1].until: a date and time with its offset is needed, like 2030-01-31T18:00:00Z"),
    Rejected("until is a day", _rule(until="2030-01-01"), "p.toml:5: rule[1].until: a date and time with its offset"),
    Rejected("for a fortnight", _rule(**{"for": '"2w"'}), 'p.toml:5: rule[1].for: a time is needed, like "90s"'),
    Rejected("for no time", _rule(**{"for": '"0h"'}), "p.toml:5: rule[1].for: a time is needed", schema=False),
    Rejected("for two years", _rule(**{"for": '"800d"'}), "of at most 366 days", schema=False),
    Rejected("for a number", _rule(**{"for": "5"}), "p.toml:5: rule[1].for: a time is needed"),
    Rejected("until and for", _rule(until="2030-01-01T00:00:00Z", **{"for": '"2h"'}),
             "p.toml:6: rule[1].for: until is given too: give one of them"),
    Rejected("no edition", _rule(functions=""), "p.toml:1: rule[1]: it gives no edition: write functions = "),
    Rejected("functions is a list", _rule(functions='["f"]'), "p.toml:4: rule[1].functions: a table is needed, like"),
    Rejected("edition 0", _rule(functions="{ f = 0 }"),
             'p.toml:4: rule[1].functions.f: an edition is needed: 1 (the original) to 15, or "newest"'),
    Rejected("edition 16", _rule(functions="{ f = 16 }"), "p.toml:4: rule[1].functions.f: an edition is needed"),
    Rejected("edition oldest", _rule(functions='{ f = "oldest" }'), "rule[1].functions.f: an edition is needed"),
    Rejected("edition is a truth", _rule(functions="{ f = true }"), "rule[1].functions.f: an edition is needed"),
    Rejected("no function's name", _rule(functions='{ "a b" = 2 }'), "rule[1].functions.a b: this can be no name of"),
    Rejected("an update twice", _rule(updates="{ a-b = 1, a_b = 2 }"), "it is given already; - and _ are the same",
             schema=False),
    Rejected("interrupts", _rule(interrupts='"original"'), "p.toml:5: rule[1].interrupts: unknown key"),
]  # fmt: skip
