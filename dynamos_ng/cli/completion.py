"""Completion for bash, made from the parser itself: verbs, options, their choices, and the updates that are loaded."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

SCRIPT = """\
# Completion of dynamos for bash: source <(dynamos completion)
_dynamos_updates() {
    local folder
    for folder in /sys/module/dynamos_*; do
        [ -d "$folder" ] && printf '%s\\n' "${folder##*/dynamos_}"
    done
}
_dynamos() {
    local word=${COMP_WORDS[COMP_CWORD]} last=${COMP_WORDS[COMP_CWORD - 1]} place= words= options= i
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$place ${COMP_WORDS[i]}" in
        @PLACES@) place+=" ${COMP_WORDS[i]}" ;;
        esac
    done
    case "$place" in
@VERBS@
    esac
    case "$place $last" in
@CHOICES@
    *) [[ $word == -* ]] && words=$options ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
# Where nothing of ours fits, a file may be meant.
complete -o default -F _dynamos dynamos
"""


def _walk(parser: argparse.ArgumentParser, place: str = "") -> Iterator[tuple[str, argparse.ArgumentParser, list[str]]]:
    """Yield each parser with the verbs that lead to it and those that lead on."""
    subs = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    yield place, parser, [name for sub in subs for name in sub.choices]
    for sub in subs:
        for name, one in sub.choices.items():
            yield from _walk(one, f"{place} {name}")


def script(parser: argparse.ArgumentParser) -> str:
    """Return what bash is to source."""
    places, verbs, choices = [], [], []
    for place, one, on in _walk(parser):
        if place:
            places.append(f'"{place}"')
        named = any(action.dest == "update" and not action.option_strings and action.type is None
                    for action in one._actions)  # fmt: skip
        words = "$(_dynamos_updates)" if named else " ".join(on)
        options = " ".join(text for action in one._actions for text in action.option_strings if text.startswith("--"))
        verbs.append(f'    "{place}") words="{words}"; options="{options}" ;;')
        choices += [
            f'    "{place} {text}") words="{" ".join(map(str, action.choices))}" ;;'
            for action in one._actions
            for text in action.option_strings
            if action.choices
        ]
    found = {"PLACES": " | ".join(places), "VERBS": "\n".join(verbs), "CHOICES": "\n".join(choices)}
    text = SCRIPT
    for key, value in found.items():
        text = text.replace(f"@{key}@", value)
    return text
