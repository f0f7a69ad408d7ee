"""Holders: one of each task, and ranges that overlap."""

from __future__ import annotations

from dynamos_ng import holders
from dynamos_ng.model import Holder, StackWalk


def holder(pid: int, address: int, comm: str = "cat") -> Holder:
    return Holder(pid, pid, comm, address, 1)


def test_a_task_is_told_once_where_it_is_innermost() -> None:
    idle = holder(0, 0x10, "swapper/0"), holder(0, 0x10, "swapper/1")
    inside = (holder(7, 0x30), holder(7, 0x10), holder(8, 0x10), *idle)
    walk = holders.once_each(StackWalk(inside, 5, 60, 300, 9), inside)
    assert [(one.pid, one.address) for one in walk.holders] == [(7, 0x30), (8, 0x10), (0, 0x10), (0, 0x10)]
    assert walk.found == 4


def test_some_of_a_walks_holders_and_those_that_had_no_room() -> None:
    inside = (holder(7, 0x30), holder(7, 0x10), holder(8, 0x10))
    walk = holders.once_each(StackWalk(inside, 10, 60, 300, 9), inside[1:])
    assert [(one.pid, one.address) for one in walk.holders] == [(7, 0x10), (8, 0x10)]
    assert walk.found == 2 + 7, "they may be anywhere"


def test_ranges_that_overlap_are_read_once() -> None:
    assert list(holders.disjoint([(40, 50), (10, 30), (20, 35), (22, 25), (35, 40)])) == [
        (10, 30), (30, 35), (35, 40), (40, 50)
    ]  # fmt: skip
