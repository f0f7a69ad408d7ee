"""A policy as classes: rows, banks, shares, what the kernel reads, and who falls under which rule."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as some

from dynamos_ng import explanation
from dynamos_ng.policy.classes import NOTHING, RULE_BYTES, SLOTS, Classes, bank, ends, salt, share_of, slots
from dynamos_ng.policy.language import RULES_MAX, Accounts, PolicyError, parse
from dynamos_ng.policy.verdict import Process, decide

TEXT = """
[[rule]]
name = "one"
match = { comm = "less", uid = 5 }
functions = { f = 3 }

[[rule]]
name = "two"
match = { comm = "less" }
percent = 25
for = "10s"
updates = { u = "newest" }

[[rule]]
name = "same as one"
match = { exe = "/bin/*", parent = "sh", user = "root" }
functions = { f = 3 }

[default]
updates = { u = 2, other = 2 }
"""
ROW = bytes([1]) * 256
ROOT_ALONE = Accounts({"root": 0}.get, {"root": 0}.get)
PROCESS = Process(7, "less", "/bin/less", "less -R file", 0, 0, "/system.slice/a.service", 3, ("sh", "sshd", "systemd"))


def made(text: str = TEXT, generation: int = 1) -> Classes:
    ruleset = parse(text, "p.toml", ROOT_ALONE)
    return Classes(ruleset, generation, ends(ruleset, 1000.0, 5_000_000_000))


def test_there_is_one_class_for_each_choice_and_the_default_is_the_first() -> None:
    classes = made()
    assert [classes.of(number) for number in range(4)] == [1, 2, 3, 2]
    assert [made(generation=2).of(number) for number in range(4)] == [128, 129, 130, 129]
    assert [classes.name(number) for number in range(4)] == ["default", "one", "two", "same as one"]


def test_banks_and_slots_never_meet() -> None:
    for generation in range(1, 9):
        here, next_one = set(bank(generation)), set(bank(generation + 1))
        assert here == set(bank(generation + 2)) and not here & next_one and 0 not in here
        assert len(here) > RULES_MAX
        assert not set(slots(generation)) & set(slots(generation + 1))


def test_a_row_has_the_rules_choice_then_the_defaults_then_the_original() -> None:
    row = made().row("f", "u", (1, 2, 3, 4), ROW)
    assert row is not None and row[:5] == bytes([1, 2, 3, 4, 1]) and set(row[4:]) == {1}
    row = made().row("g", "u", (1, 2, 5), ROW)
    assert row is not None and row[1:4] == bytes([2, 2, 5])
    row = made().row("g", "other", (1, 2), ROW)
    assert row is not None and row[1:4] == bytes([2, 2, 2])


def test_policies_that_differ_in_interrupts_alone_differ() -> None:
    old, new = (made(TEXT + more).ruleset for more in ("", "[interrupt]\nfunctions = { f = 4 }\n"))
    assert explanation._rules(old, old) == []
    assert explanation._rules(old, new) == explanation._rules(new, old) == [("interrupt", "editions changed")]


def test_calls_in_interrupts_have_what_is_said_of_them_else_the_defaults_choice() -> None:
    classes = made(TEXT + "[interrupt]\nfunctions = { f = 4 }\n")
    for name, update, chosen in (("f", "u", 4), ("g", "u", 2), ("f", "none", 4)):
        row = classes.row(name, update, (1, 2, 3, 4), ROW, tells=True)
        assert row is not None and row[255] == chosen
    assert classes.row("g", "none", (1, 2), ROW, tells=True) is None
    with pytest.raises(PolicyError, match=r"^p\.toml:21: interrupt: f of update u does not tell interrupts from other"):
        classes.row("f", "u", (1, 2, 3, 4), ROW)
    with pytest.raises(PolicyError, match=r"^p\.toml:21: interrupt: f of update none has no edition 4; it has 1, 3$"):
        classes.row("f", "none", (1, 3), ROW, tells=True)
    plain = made(generation=2).row("f", "u", (1, 2, 3), ROW)
    assert plain is not None and plain[255] == 1


def test_a_row_keeps_what_is_not_of_its_bank() -> None:
    old = bytes(range(128)) + bytes(range(128))
    row = made(generation=2).row("f", "u", (1, 2, 3), old)
    assert row is not None and row[:128] == old[:128] and row[128:131] == bytes([2, 3, 3])


def test_a_rules_update_counts_before_the_defaults_function() -> None:
    classes = made(TEXT + "[default.functions]\nf = 4\n")
    row = classes.row("f", "u", (1, 2, 3, 4, 5), ROW)
    assert row is not None and row[1:4] == bytes([4, 3, 5])


def test_what_a_policy_does_not_name_has_no_row() -> None:
    assert made().row("g", "third", (1, 2), ROW) is None


def test_an_edition_that_there_is_not_is_refused_with_its_rule() -> None:
    with pytest.raises(PolicyError, match=r'^p.toml:2: rule "one": f of update x has no edition 3; it has 1, 2$'):
        made().row("f", "x", (1, 2), ROW)
    with pytest.raises(PolicyError, match=r"^p.toml:19: default: g of update other has no edition 2; it has 1$"):
        made().row("g", "other", (1,), ROW)


def test_the_kernel_reads_every_rule_and_then_the_default() -> None:
    rules = list(made().kernel_rules())
    assert len(rules) == SLOTS and {len(rule) for rule in rules} == {RULE_BYTES} and set(rules[4:]) == {NOTHING}
    exists = 1 << 31
    comm = b"less".ljust(16, b"\0")
    assert [struct.unpack("=QIIIIIIII16s", rule) for rule in rules[:4]] == [
        (0, exists | 1 | 2, 5, 0, 0, 10000, salt("one"), 2, 1, comm),
        (15_000_000_000, exists | 1 | 16, 0, 0, 0, 2500, salt("two"), 3, 2, comm),
        (0, exists | 2 | 32, 0, 0, 0, 10000, salt("same as one"), 2, 3, bytes(16)),
        (0, exists, 0, 0, 0, 0, 0, 1, 0, bytes(16)),
    ]


def test_the_kernel_is_told_which_rules_mean_a_cgroup() -> None:
    text = "".join(
        f'[[rule]]\nname = "{name}"\nmatch = {{ {match} }}\nfunctions = {{ f = 1 }}\n'
        for name, match in (("a", "uid = 1"), ("b", 'cgroup = "/a/*"'), ("c", 'cgroup = "*/c", exe = "/bin/c"'))
    )
    classes = made(text)
    assert list(classes.cgroup_rules("/a/c")) == [(2, True), (3, True)]
    assert list(classes.cgroup_rules("/b")) == [(2, False), (3, False)]
    asked = [struct.unpack_from("=QI", rule)[1] & 0xFFFF for rule in list(classes.kernel_rules())[:3]]
    assert asked == [2, 64, 64 | 32]


def test_an_end_that_has_passed_is_no_rule_without_one() -> None:
    ruleset = parse(
        '[[rule]]\nname = "a"\npercent = 100\nuntil = 1970-01-01T00:00:10Z\nfunctions = { f = 1 }\n', "p.toml",
        ROOT_ALONE,
    )  # fmt: skip
    assert ends(ruleset, 1000.0, 5_000_000_000) == (1,)
    assert ends(ruleset, 9.0, 5_000_000_000) == (6_000_000_000,)


# Shares


@given(some.integers(1, 1 << 22), some.text(max_size=8))
def test_a_share_is_stable_and_below_the_whole(pid: int, name: str) -> None:
    assert 0 <= share_of(pid, salt(name)) < 10000
    assert share_of(pid, salt(name)) == share_of(pid, salt(name))


@pytest.mark.parametrize("start", [1, 30000, 4_000_000])
@pytest.mark.parametrize("name", ["canary", "another"])
def test_a_share_of_following_pids_is_about_that_share(start: int, name: str) -> None:
    among = sum(share_of(pid, salt(name)) < 500 for pid in range(start, start + 20000))
    assert 900 < among < 1100


def test_shares_of_two_rules_are_different_processes() -> None:
    pids = range(1, 20001)
    both = sum(share_of(pid, salt("a")) < 5000 and share_of(pid, salt("b")) < 5000 for pid in pids)
    assert 4600 < both < 5400


# Verdicts


def test_the_first_rule_that_matches_wins_and_it_is_told_why_not_the_earlier_ones() -> None:
    verdict = decide(made(), PROCESS, 16_000_000_000)
    assert verdict.number == 3
    assert verdict.earlier == ("uid is 0, not 5", "its time is over")


def test_a_rule_counts_until_its_end() -> None:
    inside = next(pid for pid in range(1, 99) if share_of(pid, salt("two")) < 2500)
    outside = next(pid for pid in range(1, 99) if share_of(pid, salt("two")) >= 2500)
    for pid, boot_ns, number in ((inside, 14_999_999_999, 2), (inside, 15_000_000_000, 3), (outside, 0, 3)):
        assert decide(made(), Process(**{**vars(PROCESS), "pid": pid}), boot_ns).number == number
    assert "not among the 25 %" in decide(made(), Process(**{**vars(PROCESS), "pid": outside}), 0).earlier[1]


@pytest.mark.parametrize(
    ("match", "why"),
    [
        ('comm = "less"', ""),
        ('comm = "les"', "comm is less, not les"),
        ('exe = "/bin/l*"', ""),
        ('exe = "*/more"', "exe is /bin/less, not */more"),
        ('argv = "less * file"', ""),
        ('argv = "*-S*"', "argv is less -R file, not *-S*"),
        ('user = "root"', ""),
        ("uid = 7", "uid is 0, not 7"),
        ("gid = 7", "gid is 0, not 7"),
        ('cgroup = "/system.slice/*"', ""),
        ('cgroup = "/user.slice/*"', "cgroup is /system.slice/a.service, not /user.slice/*"),
        ("session = 3", ""),
        ("session = 4", "session is 3, not 4"),
        ('parent = "sh"', ""),
        ('parent = "sshd"', "parent is sh, not sshd"),
        ('ancestor = "systemd"', ""),
        ('ancestor = "cron"', "ancestor is sh, sshd, systemd, not cron"),
        ("pid = 7", ""),
        ("pid = 8", "pid is 7, not 8"),
        ('comm = "less", pid = 8', "pid is 7, not 8"),
    ],
)
def test_each_key_matches_what_it_says(match: str, why: str) -> None:
    classes = made(f'[[rule]]\nname = "a"\nmatch = {{ {match} }}\nfunctions = {{ f = 1 }}\n')
    verdict = decide(classes, PROCESS, 0)
    assert (verdict.number, verdict.earlier) == ((1, ()) if not why else (0, (why,)))


@pytest.mark.parametrize("key", ["exe", "argv", "cgroup"])
def test_no_glob_matches_what_a_kernel_thread_has_not(key: str) -> None:
    thread = Process(2, "kthreadd", "", "", 0, 0, "", 0, ())
    classes = made(f'[[rule]]\nname = "a"\nmatch = {{ {key} = "*" }}\nfunctions = {{ f = 1 }}\n')
    assert decide(classes, thread, 0).earlier == (f"{key} is nothing, not *",)
