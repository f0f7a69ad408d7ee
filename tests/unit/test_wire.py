"""Values as JSON."""

from __future__ import annotations

import json

import pytest

from dynamos_ng.model import (
    Adaptation,
    CallCounts,
    Cost,
    Edition,
    EditionUse,
    Event,
    Function,
    FunctionState,
    FunctionStatus,
    Holder,
    PendingUpdate,
    Phase,
    Policy,
    Quiescence,
    Snapshot,
    StackWalk,
    Update,
    UpdateStatus,
    Variable,
)
from dynamos_ng.wire import plain, restored


def test_addresses_keep_every_bit() -> None:
    function = Function(
        0, "f", "dynamos_u", FunctionState.DRAINING, 0xFFFFFFFF81234567, 16, 0, 0, 0, b"\x0f\x1f", b"",
        (Edition(1, 0xFFFFFFFFC0000000, 0xFFFFFFFFC0000010),),
    )  # fmt: skip
    found = json.loads(json.dumps(plain(Update("u", "dynamos_u", (function,)))))["functions"][0]
    assert int(found["address"], 16) == function.address
    assert bytes.fromhex(found["original_bytes"]) == function.original_bytes
    assert found["state"] == "draining"
    assert found["size"] == 16


def test_small_numbers_and_flags_stay_what_they_are() -> None:
    assert plain({"a": (1, True, None, -(2**53), 2**53 - 1)}) == {
        "a": [1, True, None, hex(-(2**53)), 2**53 - 1]
    }


def test_a_snapshot_comes_back_as_it_was() -> None:
    function = Function(
        0, "f", "dynamos_u", FunctionState.DRAINING, 0xFFFFFFFF81234567, 16, 0, 0, 0, b"\x0f\x1f", b"",
        (Edition(1, 0xFFFFFFFFC0000000, 0xFFFFFFFFC0000010),), Adaptation(3, 2, 1), "ext4", 7,
    )  # fmt: skip
    holder = Holder(7, 7, "cat", 0xFFFFFFFF81234569, 1, "f", 1, (1, 2), ("schedule+0x5",))
    phase = Phase(1, consistent=False, phased=True, must_update=True, pinned=0, delayed=holder)
    uses = (EditionUse(1, 2**60, 3),)
    status = FunctionStatus(function, uses, bytes(256), CallCounts(5, 4, 0), ("a note",))
    walk = StackWalk((holder,), 1, 60, 3000, 250_000)
    snapshot = Snapshot(
        (UpdateStatus("u", FunctionState.DRAINING, phase, (status,), (Variable("v", 1, b"a", b"b", b"c"),), 3),),
        "bcc",
        (PendingUpdate("fix", "/fix", ("dm_mod",), None, (1, 2)),),
        taken=1.5, uptime=3.0, daemon=Cost(1, 2.0, 3),
        events=(Event(1.0, "root", "load", "done"),),
        policy=Policy(((143, 1, "bash"),), (("less", 4),), (("f", bytes(256)),)),
        quiescence=(Quiescence("f", FunctionState.REDIRECTED, uses, walk, None, 3),),
    )  # fmt: skip
    assert restored(Snapshot, json.loads(json.dumps(plain(snapshot)))) == snapshot


def test_what_an_older_or_a_newer_program_wrote_is_read() -> None:
    assert restored(Snapshot, {"updates": [], "engine": "bcc", "of_tomorrow": 3}) == Snapshot((), "bcc")


@pytest.mark.parametrize("value", [3, None, [], {"updates": []}, {"updates": 3, "engine": "bcc"}, {"updates": [7]}])
def test_what_was_made_of_something_else_is_turned_down(value: object) -> None:
    with pytest.raises(ValueError, match="this is no Snapshot"):
        restored(Snapshot, value)
