"""The JSON Schema of what ``--json`` prints, made from the values that are printed, so it is never out of date."""

from __future__ import annotations

import argparse
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from enum import Enum
from typing import Any

from dynamos_ng import doctor, facts, journal, latency, model, policy_values
from dynamos_ng.errors import UsageError
from dynamos_ng.lab import matrix

#: What each verb prints; a dict is an object of just these members.
VERBS: dict[str, Any] = {
    "ab": latency.Report,
    "activate": model.Change,
    "build": {"module": str},
    "confirm": {"confirmed": str},
    "deactivate": model.Change,
    "disable": model.EnabledUpdate,
    "doctor": {"works": bool, "findings": tuple[doctor.Finding, ...], "facts": facts.Facts},
    "enable": model.EnabledUpdate,
    "history": {"entries": tuple[journal.Entry, ...], "torn": int},
    "lab matrix": tuple[matrix.Row, ...],
    "load": model.Update | model.PendingUpdate | model.Change,  # the latter two with --when-module
    "phase": model.Phase,
    "policy apply": policy_values.Applied,
    "policy check": policy_values.PolicyCheck,
    "policy clear": policy_values.Applied,
    "policy diff": policy_values.PolicyDiff,
    "policy explain": policy_values.Explanation,
    "policy set": policy_values.Policy,
    "policy show": policy_values.Policy,
    "quiescence": model.Quiescence,
    "status": model.Snapshot,
    "survey": {
        "release": str, "architecture": str, "symbols": int, "aliases": int, "labels": dict[str, int], "functions": int,
        "traceable": int, "cloneable": int, "cloneable_traceable": int, "traits": dict[str, Any],
        "plain": dict[str, int], "refused": dict[str, Any], "seconds": float, "cpu_seconds": float, "peak_memory": int,
    },
    "top": model.Snapshot,  # each of them on a line of its own
    "unload": tuple[model.Change, ...],
}
#: Integers that a double cannot hold are hexadecimal texts.
_INTEGER: dict[str, Any] = {"type": ["integer", "string"], "pattern": "^-?0x[0-9a-f]+$"}
_SIMPLE: dict[type, dict[str, Any]] = {
    str: {"type": "string"}, bool: {"type": "boolean"}, int: _INTEGER, float: {"type": "number"},
    bytes: {"type": "string", "pattern": "^([0-9a-f]{2})*$"}, type(None): {"type": "null"},
}  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the verb's arguments."""
    parser.set_defaults(run=main)
    parser.add_argument("verb", nargs="+", metavar="VERB", help=", ".join(VERBS))


def main(options: argparse.Namespace) -> int:
    """Print the schema that was asked for; returns 0."""
    print(json.dumps(schema(" ".join(options.verb)), indent=2))
    return 0


def schema(verb: str) -> dict[str, Any]:
    """Return the schema of a verb's output; UsageError if there is no such verb."""
    if verb not in VERBS:
        raise UsageError(f"schema {verb}: no verb that prints these; there are: {', '.join(VERBS)}")
    defs: dict[str, Any] = {}
    found = _of(VERBS[verb], defs)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"dynamos {verb} --json",
            **found, "$defs": defs}  # fmt: skip


def _of(kind: Any, defs: dict[str, Any]) -> dict[str, Any]:
    if isinstance(kind, type) and kind in _SIMPLE:
        return dict(_SIMPLE[kind])
    if isinstance(kind, dict):
        return _object({name: _of(one, defs) for name, one in kind.items()}, "")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return {"anyOf": [_of(one, defs) for one in arguments]}
    if origin in (dict, Mapping):  # as it came over the socket, or was answered
        return {"type": "object"}
    if origin is tuple and arguments[-1:] == (...,):
        return {"type": "array", "items": _of(arguments[0], defs)}
    if origin is tuple:
        return {"type": "array", "prefixItems": [_of(one, defs) for one in arguments],
                "minItems": len(arguments), "maxItems": len(arguments)}  # fmt: skip
    if issubclass(kind, Enum):
        return {"enum": [one.name.lower() for one in kind]}
    assert isinstance(kind, type) and dataclasses.is_dataclass(kind), f"{kind}: what is printed is made of values"
    if kind.__name__ not in defs:
        defs[kind.__name__] = {}  # a value may hold others of its kind
        hints = typing.get_type_hints(kind)
        members = {field.name: _of(hints[field.name], defs) for field in dataclasses.fields(kind)}
        defs[kind.__name__] = _object(members, (kind.__doc__ or "").strip())
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _object(members: dict[str, Any], text: str) -> dict[str, Any]:
    """Return the schema of an object; a later version may have more members."""
    told = {"description": text} if text else {}
    return {**told, "type": "object", "properties": members, "required": list(members)}
