"""Values as JSON, for the control socket, ``--json`` and files."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Callable
from enum import Enum
from functools import cache
from typing import Any, TypeVar

#: JSON readers may keep numbers as doubles; addresses beyond this would lose bits, so they are written in hex.
SAFE = 2**53

T = TypeVar("T")


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


def restored(kind: type[T], value: Any) -> T:
    """Return the value that `plain` made VALUE of; fields that are not there have their defaults, others are left out.

    ValueError when it was made of something else.
    """
    try:
        return typing.cast(T, _reader(typing.cast(Any, kind))(value))
    except (TypeError, KeyError, AttributeError, IndexError) as error:
        raise ValueError(f"this is no {kind.__name__}: {error}") from None


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """Return what makes values of a type; made once, for a snapshot has thousands of values."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        some = _reader(next(one for one in inner if one is not types.NoneType))
        return lambda value: None if value is None else some(value)
    if origin is tuple:
        if inner[-1] is ...:
            each = _reader(inner[0])
            return lambda value: tuple(map(each, value))
        parts = tuple(map(_reader, inner))
        return lambda value: tuple(read(item) for read, item in zip(parts, value, strict=True))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        fields = {field.name: _reader(hints[field.name]) for field in dataclasses.fields(kind)}
        make: Any = kind
        return lambda value: make(**{name: fields[name](item) for name, item in value.items() if name in fields})
    if issubclass(kind, Enum):
        return lambda value: kind[value.upper()]
    if kind is bytes:
        return bytes.fromhex
    return lambda value: _simple(kind, value)


def _simple(kind: type, value: Any) -> Any:
    if isinstance(value, kind):
        return value
    if kind is int and isinstance(value, str):
        return int(value, 16)
    if kind is float and isinstance(value, int):
        return float(value)
    raise TypeError(f"{value!r} where {kind.__name__} is expected")
