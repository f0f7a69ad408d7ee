"""Members found in a kernel's types."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from dynamos_ng.btf import Btf

STRINGS = b"\0task\0pid\0flag\0tgid\0twice\0"
INT, STRUCT = 1, 4


def name(text: str) -> int:
    return STRINGS.index(b"\0" + text.encode() + b"\0") + 1


def structure(text: str, size: int, members: list[tuple[str, int]], bit_fields: bool = False) -> bytes:
    head = struct.pack("=III", name(text), bit_fields << 31 | STRUCT << 24 | len(members), size)
    return head + b"".join(struct.pack("=III", name(member), 1, place) for member, place in members)


def btf(tmp_path: Path, *types: bytes) -> Btf:
    section = b"".join(types)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(section), len(section), len(STRINGS))
    (tmp_path / "btf").write_bytes(header + section + STRINGS)
    return Btf(tmp_path / "btf")


def test_offsets_are_in_bytes(tmp_path: Path) -> None:
    types = btf(tmp_path, structure("task", 64, [("pid", 256), ("tgid", 288)]))
    assert (types.offset("task", "pid"), types.offset("task", "tgid")) == (32, 36)


def test_members_beside_bit_fields_are_found_and_bit_fields_are_not(tmp_path: Path) -> None:
    types = btf(tmp_path, structure("task", 64, [("pid", 256), ("flag", 3 << 24 | 288)], bit_fields=True))
    assert (types.offset("task", "pid"), types.offset("task", "flag")) == (32, None)


def test_what_is_not_there_has_no_offset(tmp_path: Path) -> None:
    types = btf(tmp_path, structure("task", 64, [("pid", 256)]))
    assert [types.offset(*what) for what in (("task", "tgid"), ("task", "x"), ("x", "pid"), ("tgid", "pid"))] == [
        None
    ] * 4


def test_two_structures_of_one_name_are_not_guessed_between(tmp_path: Path) -> None:
    types = btf(tmp_path, structure("twice", 8, [("pid", 0)]), structure("twice", 16, [("pid", 64)]))
    assert types.offset("twice", "pid") is None


def test_words_that_only_look_like_a_head_are_passed_over(tmp_path: Path) -> None:
    # A member named "task" of a type number that reads as a structure's head, which its own members betray.
    lookalike = structure("twice", 64, [("task", 0)])[:-8] + struct.pack("=II", STRUCT << 24 | 1, 0)
    types = btf(tmp_path, lookalike, structure("task", 64, [("pid", 256)]))
    assert types.offset("task", "pid") == 32


def test_other_data_is_refused(tmp_path: Path) -> None:
    (tmp_path / "btf").write_bytes(bytes(64))
    with pytest.raises(OSError, match="holds no BTF"):
        Btf(tmp_path / "btf")
