"""What --json prints is what its schema says; the values here are as full as the model lets them be."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from dynamos_ng import latency
from dynamos_ng.cli import parser, schema
from dynamos_ng.doctor import Finding
from dynamos_ng.errors import UsageError
from dynamos_ng.facts import Facts
from dynamos_ng.lab.matrix import Row
from dynamos_ng.latency import EditionLatency, Latency
from dynamos_ng.model import (
    CallCounts,
    Change,
    Confirmation,
    Edition,
    EditionUse,
    EnabledUpdate,
    Function,
    FunctionState,
    FunctionStatus,
    Holder,
    PendingUpdate,
    Phase,
    Quiescence,
    Snapshot,
    StackWalk,
    Update,
    UpdateStatus,
    Variable,
)
from dynamos_ng.policy_values import (
    Applied,
    CheckedRule,
    Explanation,
    Policy,
    PolicyCheck,
    PolicyDiff,
    PolicyStatus,
    RuleStatus,
)
from dynamos_ng.wire import plain

FUNCTION = Function(0, "f", "dynamos_u", FunctionState.REDIRECTED, 1 << 63, 16, 16, 16, 32, b"\1", b"\2",
                    (Edition(1, 16, 24),))  # fmt: skip
HOLDER = Holder(7, 7, "cat", 1 << 63, 1, "f", 1, (1 << 63,), ("f+0x1",))
PHASE = Phase(1, False, True, True, 0, 5, HOLDER)
VARIABLE = Variable("v", 1 << 63, b"\1", b"\0", b"\1")
QUIESCENCE = Quiescence("f", FunctionState.LOADED, (EditionUse(1, 2, 1),), StackWalk((HOLDER,), 1, 2, 3, 4),
                        CallCounts(1, 2, 3), 4)  # fmt: skip
CHANGE = Change("activate", "u", FunctionState.DRAINING, (QUIESCENCE,), (), 5, ("note",))
STATUS = FunctionStatus(FUNCTION, (EditionUse(1, 2, 1),), bytes(256), None, ("note",))
SNAPSHOT = Snapshot(
    (UpdateStatus("u", FunctionState.REDIRECTED, PHASE, (STATUS,), (VARIABLE,), 1, Confirmation("waiting", 3)),), "bcc",
    pending=(PendingUpdate("p", "/p", ("ext4",), 2, (1,)),), enabled=(EnabledUpdate("e", "/e"),),
)  # fmt: skip
UPDATE = Update("u", "dynamos_u", (FUNCTION,), (("f", "no site"),), 1, FunctionState.LOADED, (VARIABLE,), 1)
IN_FORCE = PolicyStatus(
    "p.toml", "", "now", 1, (RuleStatus("r", "kernel", ("comm less",), "", False, 2, (("f", "v2"),), 1),), 0, ("f",)
)
PRINTED = {
    "activate": CHANGE, "deactivate": CHANGE, "unload": (CHANGE,), "load": UPDATE,
    "phase": PHASE, "policy show": Policy(((1, 2, "init"),), (("less", 1),), (("f", bytes(256)),), IN_FORCE),
    "policy set": Policy(((1, 2, "init"),), (("less", 1),), (("f", bytes(256)),)),
    "policy apply": Applied("p.toml", 1, 2, 3),
    "policy check": PolicyCheck("p.toml", (CheckedRule("r", "kernel", 1),), 2),
    "policy diff": PolicyDiff("q.toml", "p.toml", (("r", "new"),), ((1, "init", "default", "r"),)),
    "policy explain": Explanation(1, "a", 2, "r", "how", "since", "p.toml", (("f", "v2"),), (("q", "w"),), "", False),
    "ab": latency.report(Latency("f", 1.0, (EditionLatency(1, 9, 1, 0, ((16, 9),)), EditionLatency(2, 0, 0, 0, ())))),
    "doctor": {"works": True, "findings": (Finding("bpf", "ok", "it works"),), "facts": Facts("x86_64", "6.1")},
    "lab matrix": (Row("6.1", "6.1.0", "max", 0, 1.5, "out", ""),),
    "quiescence": QUIESCENCE, "status": SNAPSHOT, "top": SNAPSHOT,
    "enable": EnabledUpdate("e", "/e", 2, (1, 2), "held back"),
}  # fmt: skip
TYPES: dict[str, Any] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "number": (int, float), "null": type(None),
}  # fmt: skip


def fits(value: Any, told: dict[str, Any], root: dict[str, Any]) -> bool:
    """Tell whether a value is as a schema says, for the words that ours use."""
    if "$ref" in told:
        return fits(value, root["$defs"][told["$ref"].rpartition("/")[2]], root)
    if "anyOf" in told:
        return any(fits(value, one, root) for one in told["anyOf"])
    if "enum" in told:
        return value in told["enum"]
    kinds = told["type"] if isinstance(told["type"], list) else [told["type"]]
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not any(whole if kind == "integer" else isinstance(value, TYPES[kind]) for kind in kinds):
        return False
    if isinstance(value, str) and "pattern" in told:
        return bool(re.search(told["pattern"], value))
    if isinstance(value, list):
        items = told.get("prefixItems") or [told["items"]] * len(value)
        return len(items) == len(value) and all(fits(*pair, root) for pair in zip(value, items, strict=True))
    if isinstance(value, dict) and "required" in told:
        return set(value) == set(told["required"]) and all(
            fits(one, told["properties"][name], root) for name, one in value.items()
        )
    return True


@pytest.mark.parametrize("verb", PRINTED)
def test_what_is_printed_fits(verb: str) -> None:
    told = json.loads(json.dumps(schema.schema(verb)))
    value = json.loads(json.dumps(plain(PRINTED[verb])))
    assert fits(value, told, told)
    spoilt = value[0] if isinstance(value, list) else value
    spoilt.pop(next(iter(spoilt)))
    assert not fits(value, told, told)


@pytest.mark.parametrize("verb", schema.VERBS)
def test_every_verb_that_prints_json_has_a_schema(verb: str) -> None:
    assert schema.schema(verb)["$defs"] or verb in ("build", "confirm", "survey")
    needed = {
        "policy clear": [], "policy explain": ["1"], "policy set": ["--pid", "1"], "policy show": [], "status": [],
        "top": [], "doctor": [], "lab matrix": ["x"],
    }.get(verb, ["x"])  # fmt: skip
    words = [*verb.split(" "), "--json", *needed] if verb != "survey" else ["survey", "--json", "FILE"]
    assert parser().parse_args(words).json


def test_an_unknown_verb() -> None:
    with pytest.raises(UsageError, match=r"^schema nothing: no verb that prints these; there are: ab, activate, "):
        schema.schema("nothing")
