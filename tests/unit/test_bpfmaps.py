"""Sums over CPUs never hide a call."""

from __future__ import annotations

import struct

import pytest

from dynamos_ng import bpf, bpfmaps


def test_a_call_that_runs_while_the_sums_are_made_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    # Between the two readings one call ends on another CPU than it began on, and one more begins.
    readings = iter([[(5, 3), (0, 1)], [(6, 3), (0, 2)]])

    def lookup(_fd: int, _key: bytes, size: int) -> bytes:
        raw = b"".join(struct.pack("=QQ", *pair) for pair in next(readings))
        assert len(raw) == size
        return raw

    monkeypatch.setattr(bpf, "lookup", lookup)
    monkeypatch.setattr(bpfmaps, "_WHOLE_WORDS", True)
    began, ended = bpfmaps.pair_sums(-1, 0, 2)
    assert (began, ended) == (6, 4)


def test_a_number_that_is_read_in_two_halves_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    full = (1 << 32) - 1
    # Exits: the low word was read before an overflow and the high word after it; then twice the same.
    # Entries: the low word has overflowed, and the carry has not been added yet.
    readings = iter([[(0, full)], [(0, 1 << 32)], [(0, 1 << 32)], [(2, 1 << 32)], [(2, 1 << 32)]])
    monkeypatch.setattr(bpf, "lookup", lambda *_: b"".join(struct.pack("=QQ", *pair) for pair in next(readings)))
    monkeypatch.setattr(bpfmaps, "_WHOLE_WORDS", False)
    assert bpfmaps.pair_sums(-1, 0, 1) == ((1 << 32) + 2, 1 << 32)
    assert next(readings, None) is None
