"""Texts for people's terminals: what others have named, without what a terminal would take for a command."""

from __future__ import annotations

from typing import Any


def clean(text: str, keep: str = "") -> str:
    """Return a text with a `?` for each letter that cannot be printed, but for those of KEEP."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else "?" for letter in text)


def cleaned(value: Any) -> Any:
    """Return a value, as JSON has them, with all its texts clean but for their line ends."""
    if isinstance(value, str):
        return clean(value, "\n")
    if isinstance(value, dict):
        return {key: cleaned(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [cleaned(one) for one in value]
    return value
