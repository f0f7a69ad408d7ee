"""How deep the stack is at a way out, in 32-bit code; bytes beside disassembly."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from dynamos_ng.arch.i386 import ARCH
from dynamos_ng.rewrite.depth import depths
from dynamos_ng.rewrite.reader import Body, Part, decode

AT = 0xC1000000


def at_end(code: str, warnings: Collection[int] = ()) -> int | None:
    """Return the depth at the last instruction."""
    raw = bytes.fromhex(code)
    instructions = decode(ARCH, "f", raw, AT)
    body = Body("f", (Part("f", AT, len(raw), instructions),))
    return depths(body, ARCH, {}, {AT + place for place in warnings})[instructions[-1].address]


@pytest.mark.parametrize(
    ("code", "depth"),
    [
        ("55 89e5 83ec08 c9 c3", 0),  # push %ebp; mov %esp,%ebp; sub $8,%esp; leave; ret
        ("55 89e5 5d 50 c3", 4),
        ("55 89e5 8755fc 8d65fc c9 c3", 0),  # xchg %edx,-4(%ebp): the frame pointer stays; lea -4(%ebp),%esp
        ("55 89e5 87ea c9 c3", None),  # xchg %ebp,%edx: it does not
        ("87dc c3", None),  # xchg %ebx,%esp
        ("9c 0e 68080000c1 cf c3", 0),  # pushf; push %cs; push $1f; iret; 1:
        ("83e4f8 c3", None),  # and $-8,%esp
    ],
)
def test_what_instructions_do_to_the_stack(code: str, depth: int | None) -> None:
    assert at_end(code) == depth


def test_a_warning_comes_back_and_a_bug_does_not() -> None:
    code = "85c0 7403 55 0f0b c3"  # 0: test; 2: je 7; 4: push %ebp; 5: ud2; 7: ret
    assert at_end(code) == 0
    assert at_end(code, {5}) is None


def test_what_a_branch_says_is_believed_before_what_a_call_says() -> None:
    # 0: test; 2: je a; 4: push; 5: call, which need not return; a: ret
    assert at_end("85c0 7406 55 e800100000 c3") == 0
