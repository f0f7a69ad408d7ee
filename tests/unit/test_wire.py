"""Values as JSON."""

from __future__ import annotations

import json

from dynamos_ng.model import Edition, Function, FunctionState, Update
from dynamos_ng.wire import plain


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
