"""On which kernels and processors a test of a guest runs."""

from __future__ import annotations

import pytest

from dynamos_ng.errors import UsageError
from dynamos_ng.lab.machine import PROCESSORS
from dynamos_ng.lab.root import DEFAULT, KERNELS
from dynamos_ng.lab.variants import chosen, variants

EVERY = ["6.1", "6.12", "7.2", "6.1-i386"]


@pytest.mark.parametrize(
    ("only", "needs", "everywhere", "asked", "where"),
    [
        ([], [], False, [], ["6.1"]),
        ([], [], True, [], EVERY),
        ([], [], False, ["7.2", "6.1-i386"], ["7.2", "6.1-i386"]),
        ([], [], True, ["6.12"], ["6.12"]),
        (["7.2", "6.12"], [], False, [], ["6.12", "7.2"]),
        (["7.2", "6.1"], [], False, [], ["6.1"]),
        (["7.2", "6.1"], [], True, [], ["6.1", "7.2"]),
        (["7.2"], [], False, ["6.1"], []),
        ([], ["livepatch"], True, [], ["6.1", "6.12", "7.2"]),
        ([], ["bcc"], False, ["6.1-i386"], []),
    ],
)
def test_where_a_test_runs(
    only: list[str], needs: list[str], everywhere: bool, asked: list[str], where: list[str]
) -> None:
    found = chosen(only, needs, everywhere=everywhere, processors=False, asked=asked)
    assert [str(variant) for variant in found] == where


def test_processors_are_those_that_change_the_kernels_own_code() -> None:
    assert [str(variant) for variant in variants(["6.1", "6.1-i386"], True)] == [
        "6.1", "6.1+its", "6.1+srso", "6.1-i386",
    ]  # fmt: skip
    assert all(cpu in PROCESSORS for kernel in KERNELS.values() for cpu in kernel.processors)
    assert all(kernel.processors[0] == "max" for kernel in KERNELS.values())
    assert DEFAULT in KERNELS


@pytest.mark.parametrize(("only", "needs"), [(["5.10"], []), ([], ["nonsense"])])
def test_what_does_not_exist_is_named(only: list[str], needs: list[str]) -> None:
    with pytest.raises(UsageError, match=r"(5\.10|nonsense): no kernel or feature of the lab's; there are 6\.1, .*bcc"):
        chosen(only, needs, everywhere=False, processors=False, asked=[])
