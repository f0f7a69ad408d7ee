"""What an administrator may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from dynamos_ng import host
from dynamos_ng.errors import UsageError
from dynamos_ng.policy import Rule, check_class


@pytest.mark.parametrize("policy_class", [0, 1, 254])
def test_classes_are_bytes(policy_class: int) -> None:
    check_class(policy_class)
    assert Rule("sleep", policy_class).policy_class == policy_class


def test_the_class_of_interrupts_is_no_process_s() -> None:
    with pytest.raises(UsageError, match="policy class 255: no process has it: it is that of calls made in interrupts"):
        check_class(255)


@pytest.mark.parametrize("policy_class", [-1, 256])
def test_other_classes_are_refused(policy_class: int) -> None:
    for attempt in (check_class, lambda number: Rule("sleep", number)):
        with pytest.raises(UsageError, match=f"policy class {policy_class}: give a number from 0 to 254"):
            attempt(policy_class)


@pytest.mark.parametrize("pid", ["../self", "1", 0, -1, True, None])
def test_a_pid_is_a_number(pid: Any) -> None:
    with pytest.raises(UsageError, match="not the number of a process"):
        host.check_process(pid)


def test_a_name_of_15_bytes_is_taken_whole() -> None:
    assert Rule("abcdefghijklmno", 1).comm == "abcdefghijklmno"


@pytest.mark.parametrize(
    ("comm", "words"),
    [
        ("", "it is empty"),
        ("abcdefghijklmnop", "give what /proc/PID/comm shows: abcdefghijklmno$"),
        ("ääääääää", "the kernel keeps 15 bytes"),
        ("/usr/bin/sleep", "give the name alone, without folders: sleep"),
        ("sl\0eep", "control characters"),
        ("sleep\n", "control characters"),
    ],
)
def test_names_that_no_process_can_have_are_refused(comm: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Rule(comm, 1)
