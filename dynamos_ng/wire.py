"""Values as JSON, for the control socket, ``--json`` and files."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any

#: JSON readers may keep numbers as doubles; addresses beyond this would lose bits, so they are written in hex.
SAFE = 2**53


def plain(value: Any) -> Any:
    """Return a value made of dicts, lists, texts and numbers: dataclasses by field, enums by name.

    Bytes and integers that a double cannot hold become hexadecimal texts.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.name.lower()
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= SAFE:
        return hex(value)
    return value
