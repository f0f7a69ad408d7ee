"""What the lab reads from a guest: marks within the output, and trouble on the console."""

from __future__ import annotations

import socket
import time

import pytest

from dynamos_ng.lab.machine import _Port, trouble


def read(chunks: list[bytes]) -> tuple[str, int | None, list[str]]:
    """Feed a port piece by piece; return its text, the status it saw, and the pieces it passed on."""
    passed: list[str] = []
    here, there = socket.socketpair()
    port = _Port(here, "mark", passed.append, lambda: "")
    with here, there:
        for chunk in chunks:
            there.send(chunk)
            port.until("ended", time.monotonic() + 0.01)
        there.shutdown(socket.SHUT_WR)
        port.until("ended", time.monotonic() + 10)
    return port.text, port.status, passed


STREAM = b"one\0two\0mark" + "ü\n".encode() + b"three\0mark ended 7\0"


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
def test_the_mark_is_found_wherever_the_stream_is_cut(size: int) -> None:
    text, status, _ = read([STREAM[at : at + size] for at in range(0, len(STREAM), size)])
    assert (text, status) == ("one\0two\0markü\nthree", 7)


def test_output_is_passed_on_before_the_end() -> None:
    assert read([b"first", b"second\0mark ended 0\0"])[2] == ["first", "second"]


def test_a_guest_that_dies_leaves_its_last_words_and_no_status() -> None:
    assert read([b"last words\0mark en"])[:2] == ("last words\0mark en", None)


@pytest.mark.parametrize(
    "line",
    [
        "[    5.1] WARNING: CPU: 1 PID: 77 at kernel/sched/core.c:1 schedule+0x1/0x2",
        "[    5.1] BUG: kernel NULL pointer dereference, address: 0000000000000008",
        "[    5.1] Oops: 0002 [#1] PREEMPT SMP NOPTI",
        "[    5.1] Kernel panic - not syncing: Fatal exception",
        "[    5.1] general protection fault, probably for non-canonical address 0xdead: 0000 [#1]",
        "[    5.1] WARNING: can't access registers at asm_exc_page_fault+0x22/0x30",
    ],
)
def test_trouble_is_found(line: str) -> None:
    assert trouble(f"[    5.0] fine\n{line}\n[    5.2] fine\n") == line


@pytest.mark.parametrize(
    "line",
    [
        "[    1.4] AMD-Vi: AMD IOMMUv2 functionality not available on this system - This is not a bug.",
        "[    0.1] RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks!",
        "[    8.7] dynamos: module verification failed: signature and/or required key missing - tainting kernel",
        "[    8.7] sysrq: Show backtrace of all active CPUs",
    ],
)
def test_ordinary_messages_are_no_trouble(line: str) -> None:
    assert trouble(line) == ""


WARNED = "[    5.1] WARNING: CPU: 1 PID: 77 at fs/eventfd.c:58 eventfd_signal_mask_v1+0x1/0x2"


@pytest.mark.parametrize(
    ("console", "found"),
    [
        (WARNED, ""),
        (f"{WARNED}\n{WARNED}", WARNED),
        (f"{WARNED}\n[ 5.2] BUG: bad", "[ 5.2] BUG: bad"),
        ("[ 5.2] BUG: bad", "[ 5.2] BUG: bad"),
        ("[ 5.2] fine", "it did not say what was expected: eventfd.*_v1"),
    ],
)
def test_one_line_of_trouble_may_be_expected_and_must_then_come(console: str, found: str) -> None:
    assert trouble(console, ["eventfd.*_v1"]) == found
