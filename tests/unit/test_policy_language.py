"""The language of policies: what is taken, what is refused and where, and that the schema says the same."""

from __future__ import annotations

import datetime
import json
import string
import tomllib
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from rejected_policies import REJECTED, RULE, Rejected

from dynamos_ng.policy.language import Accounts, PolicyError, Ruleset, parse
from dynamos_ng.policy.lines import Place, lines

POLICIES = Path(__file__).parents[2] / "policies"
EXAMPLES = sorted(POLICIES.glob("*.toml"))
ROOT_ALONE = Accounts({"root": 0}.get, {"root": 0}.get)
follows_schema = fastjsonschema.compile(json.loads((POLICIES / "schema.json").read_text()), formats={"date-time": ".*"})


def read(text: str) -> Ruleset:
    return parse(text, "p.toml", ROOT_ALONE)


def as_json(value: Any) -> Any:
    """Return a TOML value as editors show it to a schema: dates are texts."""
    if isinstance(value, dict):
        return {key: as_json(one) for key, one in value.items()}
    if isinstance(value, list):
        return [as_json(one) for one in value]
    return value.isoformat() if isinstance(value, datetime.date | datetime.time) else value


# The examples


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_examples_are_right(path: Path) -> None:
    ruleset = read(path.read_text())
    assert ruleset.summary and ruleset.rules
    follows_schema(as_json(tomllib.loads(path.read_text())))


def test_examples_and_their_rules_are_read_as_written() -> None:
    canary = read((POLICIES / "canary.toml").read_text())
    assert [(rule.name, rule.share, rule.seconds, rule.where) for rule in canary.rules] == [
        ("not for root", 10000, None, "kernel"),
        ("canary", 500, 7200, "kernel"),
    ]
    services = {rule.name: rule for rule in read((POLICIES / "services.toml").read_text()).rules}
    assert services["web"].match.given == {"cgroup": "/system.slice/nginx*", "user": "root"}
    assert services["web"].match.uid == 0
    assert services["logins"].until == 2**31 - 1
    assert [name for name, rule in services.items() if rule.where == "kernel"] == ["web"]


def test_the_examples_use_every_key() -> None:
    used = {key for path in EXAMPLES for rule in read(path.read_text()).rules for key in rule.match.given}
    schema = json.loads((POLICIES / "schema.json").read_text())
    assert used == set(schema["definitions"]["rule"]["properties"]["match"]["properties"])


# What is refused


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: case.name)
def test_a_fault_is_named_with_file_line_and_key(case: Rejected) -> None:
    with pytest.raises(PolicyError) as error:
        read(case.text)
    assert case.says in str(error.value)
    assert all(line.startswith("p.toml:") for line in str(error.value).splitlines())


@pytest.mark.parametrize("case", REJECTED, ids=lambda case: case.name)
def test_the_schema_refuses_the_same(case: Rejected) -> None:
    table = as_json(tomllib.loads(case.text))
    if case.schema:
        with pytest.raises(fastjsonschema.JsonSchemaValueException):
            follows_schema(table)
    else:
        follows_schema(table)


def test_all_faults_are_told_at_once_in_the_order_of_the_file() -> None:
    with pytest.raises(PolicyError) as error:
        read(RULE + '\n[[rule]]\nname = "b"\npercent = 0\nmatch = { uid = -1, x = 2 }\nupdates = { u = 99 }\n')
    told = [line.split(": ")[:2] for line in str(error.value).splitlines()]
    assert told == [
        ["p.toml:8", "rule[2].percent"], ["p.toml:9", "rule[2].match.uid"], ["p.toml:9", "rule[2].match.x"],
        ["p.toml:10", "rule[2].updates.u"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a = \n", "p.toml:1: not TOML: invalid value"),
        ("a = 1\na = 2\n", "p.toml:2: not TOML: cannot overwrite a value"),
        ('a = "', "p.toml:1: not TOML: unterminated string"),
        ("a = " + "[" * 5000, "p.toml:1: not TOML: "),
    ],
)
def test_what_is_no_toml_is_refused_with_its_line(text: str, says: str) -> None:
    with pytest.raises(PolicyError) as error:
        read(text)
    assert str(error.value).startswith(says)


# Fuzzed

_NAMES = some.sampled_from(["name", "match", "comm", "uid", "percent", "until", "for", "functions", "updates", "rule",
                            "default", "summary", "user", "exe", "x y", "ü"])  # fmt: skip
_ATOMS = (
    some.none().map(lambda _: "newest") | some.text(max_size=20) | some.integers() | some.booleans() | some.floats()
    | some.datetimes(timezones=some.sampled_from([None, datetime.UTC]), min_value=datetime.datetime(1000, 1, 1))
    | some.dates(min_value=datetime.date(1000, 1, 1))
)  # fmt: skip
_VALUES = some.recursive(
    _ATOMS, lambda inner: some.lists(inner, max_size=3) | some.dictionaries(_NAMES, inner, max_size=4), max_leaves=8
)
_RULES = some.fixed_dictionaries(
    {"name": some.text(string.ascii_letters, min_size=1, max_size=3) | _VALUES},
    optional={
        "match": some.dictionaries(_NAMES, _ATOMS, max_size=3) | _VALUES, "percent": some.integers(0, 101) | _VALUES,
        "for": some.sampled_from(["1h", "0s", "7d"]) | _VALUES, "until": _ATOMS,
        "functions": some.dictionaries(some.just("f"), some.integers(0, 16), max_size=1) | _VALUES,
    },
)  # fmt: skip
_DOCUMENTS = some.fixed_dictionaries(
    {"rule": some.lists(_RULES, max_size=3) | _VALUES}, optional={"default": _VALUES, "summary": _ATOMS}
) | some.dictionaries(_NAMES, _VALUES, max_size=4)


def written(value: Any) -> str:
    """Return a value as TOML, tables in one line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value.encode(errors="replace").decode().replace("\x7f", " "), ensure_ascii=False)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{written(key)} = {written(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return "[\n  " + ",\n  ".join(map(written, value)) + " # , ]\n]"
    return value.isoformat() if isinstance(value, datetime.date) else repr(value)


def document(table: dict[str, Any]) -> str:
    """Return a table as TOML, as people write it: rules and the default with headers."""
    text = "".join(f"{written(key)} = {written(value)}\n" for key, value in table.items() if key not in _HEADED)
    for key, header in _HEADED.items():
        value = table.get(key)
        for one in value if isinstance(value, list) and key == "rule" else [value]:
            if isinstance(one, dict):
                text += f"# {header}\n{header}\n"
                text += "".join(f"{written(name)} = {written(inner)}\n" for name, inner in one.items())
    return text


_HEADED = {"rule": "[[rule]]", "default": "[default]"}


@settings(deadline=None, max_examples=60)
@given(_DOCUMENTS)
def test_whatever_is_written_is_taken_or_refused_with_words(table: dict[str, Any]) -> None:
    try:
        ruleset = read(document(table))
    except PolicyError as error:
        assert all(line.startswith("p.toml:") for line in str(error).splitlines())
    else:
        follows_schema(as_json(tomllib.loads(document(table))))
        assert ruleset == read(ruleset.text)


@settings(deadline=None, max_examples=60)
@given(some.text(alphabet="[]{}=\"'#,.\n\\ ab1-:T", max_size=60))
def test_no_text_ends_in_another_error(text: str) -> None:
    try:
        read(text)
    except PolicyError as error:
        assert str(error).startswith("p.toml:")


@settings(deadline=None, max_examples=60)
@given(_DOCUMENTS)
def test_every_key_is_found_in_its_line(table: dict[str, Any]) -> None:
    text = document(table)
    places = lines(text)
    by_line = text.replace("\r\n", "\n").split("\n")

    def look(value: Any, place: Place) -> None:
        line = by_line[places[place] - 1] if place else ""
        if place and isinstance(place[-1], str):
            assert written(place[-1]) in line or f"[{place[-1]}" in line
        if isinstance(value, dict):
            for key, inner in value.items():
                look(inner, (*place, key))
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                look(inner, (*place, number))

    look(tomllib.loads(text), ())


def test_lines_of_all_that_toml_can_write() -> None:
    text = '''# [no.header]
a.b = """one
[x]
two""""
"c d".'e.f' = [ # ]
  1, {g = 'h}', "i\\"" = [2,
  3]},
]
[ t . u ]
v = 1979-05-27 07:32:00Z # = w

[[r]]
[r.s]
x = -1
[[r]]
s.x = \'\'\'
\'\'\'
[[r.q]]
[[r.q]]
y = {z.z = 0}
'''
    tomllib.loads(text)
    assert lines(text) == {
        (): 1, ("a",): 2, ("a", "b"): 2, ("c d",): 5, ("c d", "e.f"): 5, ("c d", "e.f", 0): 6, ("c d", "e.f", 1): 6,
        ("c d", "e.f", 1, "g"): 6, ("c d", "e.f", 1, "i\""): 6, ("c d", "e.f", 1, "i\"", 0): 6,
        ("c d", "e.f", 1, "i\"", 1): 7, ("t",): 9, ("t", "u"): 9, ("t", "u", "v"): 10, ("r",): 12, ("r", 0): 12,
        ("r", 0, "s"): 13, ("r", 0, "s", "x"): 14, ("r", 1): 15, ("r", 1, "s"): 16, ("r", 1, "s", "x"): 16,
        ("r", 1, "q"): 18, ("r", 1, "q", 0): 18, ("r", 1, "q", 1): 19, ("r", 1, "q", 1, "y"): 20,
        ("r", 1, "q", 1, "y", "z"): 20, ("r", 1, "q", 1, "y", "z", "z"): 20,
    }  # fmt: skip
