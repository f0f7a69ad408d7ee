"""The journal's entries in words."""

from __future__ import annotations

import pwd
from pathlib import Path
from typing import Any

from dynamos_ng.build.description import module_name
from dynamos_ng.journal import START, Entry
from dynamos_ng.model import Event, FunctionState, Peer

#: Verbs as the command line has them.
VERBS = {
    "load_when_module": "load --when-module",
    "policy_process": "policy set",
    "policy_rule": "policy set",
    "policy_edition": "policy set",
    START: "dynamosd starts",
}
OPTIONS = {"classes": "class", "policy_class": "class"}
#: What is told without its name, and what is not told: it has changed nothing.
BARE, UNTOLD = ("name", "path", "folder", "move", "file"), ("wait", "watch", "text")


def who(peer: Peer) -> str:
    """Return a peer as ``user (program, PID)``."""
    try:
        user = pwd.getpwuid(peer.uid).pw_name
    except KeyError:
        user = str(peer.uid)
    return f"{user} ({peer.comm or 'gone'} {peer.pid})"


def what(entry: Entry) -> str:
    """Return what was asked for in a line."""
    words = [VERBS.get(entry.verb, entry.verb)]
    for key, value in entry.arguments.items():
        if key in UNTOLD or value is None or value is False or value == "" or (key == "confirm_within" and not value):
            continue
        text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
        if key in BARE:
            words.append(Path(text).name if key in ("path", "folder", "file") else text)
        else:
            option = f"--{OPTIONS.get(key, key).replace('_', '-')}"
            words += [option] if value is True else [option, text]
    return " ".join(words)


def outcome(entry: Entry) -> str:
    """Return how it ended, in a line."""
    lost = f"; {entry.lost} lines before it could not be written" if entry.lost else ""
    return _outcome(entry) + lost


def _outcome(entry: Entry) -> str:
    answer = entry.answer
    if answer is None:
        return "cut off: the daemon or the machine died in it" if entry.cut_off else "under way"
    if "error" in answer:
        return f"refused: {str(answer['error']).splitlines()[0]}"
    result: Any = answer.get("result")
    if not isinstance(result, dict):
        return "done"
    if "stop_ns" in result and "verb" in result:
        word = "[unloaded]" if result["verb"] == "unload" else FunctionState[result["state"].upper()].word
        stop = int(result["stop_ns"])
        return word + (f", {stop / 1000:.0f} µs in the stop" if stop else "")
    if isinstance(result.get("phase"), int):
        return f"phase {result['phase']}"
    if isinstance(functions := result.get("functions"), list):
        return f"{len(functions)} function{'s' * (len(functions) != 1)}"
    return "done"


def refused(entry: Entry) -> bool:
    """Tell whether it did not come to a good end."""
    return entry.cut_off or (entry.answer is not None and "error" in entry.answer)


def concerns(entry: Entry, update: str) -> bool:
    """Tell whether an entry is about an update, given by its name or its module's."""
    named = [entry.arguments.get("name"), entry.arguments.get("path"), entry.arguments.get("folder")]
    result = (entry.answer or {}).get("result")
    if isinstance(result, dict):
        named += [result.get("name"), result.get("update")]
    names = {module_name(Path(name).name.removesuffix(".ko")) for name in named if isinstance(name, str) and name}
    return module_name(Path(update).name.removesuffix(".ko")) in names


def event(entry: Entry) -> Event:
    """Return an entry as the dashboard shows it."""
    return Event(entry.time, who(entry.who), what(entry), outcome(entry), refused(entry))
