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
    began, ended = bpfmaps.pair_sums(-1, 0, 2)
    assert (began, ended) == (6, 4)
