"""Several updates of one function: the newest is on top, leads on to the one below, and any of them may go first."""

from __future__ import annotations

import errno
import itertools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import STACKED, write_update

from dynamos_ng import control
from dynamos_ng.build.update import build
from dynamos_ng.device import Device
from dynamos_ng.errors import KernelRefused

FUNCTION = "version_proc_show"
VERSION = Path("/proc/version")
NAMES = ("one", "two", "three")


def write(folder: Path, name: str, consistent: bool = False) -> Path:
    update = write_update(folder / name, {FUNCTION: [2]}, STACKED.format(name=name))
    if consistent:
        text = (update / "update.toml").read_text()
        (update / "update.toml").write_text(f"consistent = true\n{text}")
    return update


def shown() -> list[str]:
    """Return the names of the updates that the reading went through, from below upwards."""
    return VERSION.read_text().split("\n", 1)[1].split()


def keep_reading(stop: threading.Event, seen: set[tuple[str, ...]]) -> None:
    while not stop.is_set():
        seen.add(tuple(shown()))


def test_updates_are_stacked_and_leave_in_any_order(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    original = VERSION.read_text()
    for name in NAMES:  # the later ones are built while the first is active
        loaded(write(tmp_path, name))
        control.call("activate", name=name)
    assert shown() == list(NAMES)
    stop, seen = threading.Event(), set[tuple[str, ...]]()
    reader = threading.Thread(target=keep_reading, args=(stop, seen))
    reader.start()
    try:
        for order in itertools.permutations(NAMES):
            left = list(NAMES)
            for name in order:
                control.call("deactivate", name=name)
                left.remove(name)
                assert shown() == left
            assert VERSION.read_text() == original
            for name in NAMES:
                control.call("activate", name=name)
    finally:
        stop.set()
        reader.join()
    assert all(list(names) == [name for name in NAMES if name in names] for names in seen)

    # Of two, one leads to the other: a stop takes one of them.
    with Device() as device:
        stacked = [function for function in device.functions() if function.name == FUNCTION]
        for group in (stacked[:2], stacked[1::-1], [stacked[0], stacked[0]]):
            with pytest.raises(KernelRefused) as refused:
                device.deactivate(group)
            assert refused.value.errno == errno.EINVAL
    assert shown() == list(NAMES)

    # A class that the upper one leaves alone has what is below.
    control.call("policy_process", pid=os.getpid(), policy_class=4)
    control.call("policy_edition", function=FUNCTION, policy_class=4, edition=1)
    assert shown() == ["one", "two"]
    control.call("policy_process", pid=os.getpid(), policy_class=0)

    # The middle one is freed while the others stay.
    control.call("unload", name="two", wait=60.0)
    assert shown() == ["one", "three"]
    left = [update["functions"][0]["probes"] for update in control.call("status")["updates"]]
    assert len(left) == 2 and None not in left, "its probes are those of the others, too"
    control.call("unload", name="one", wait=60.0)
    assert shown() == ["three"]
    control.call("unload", name="three", wait=60.0)
    assert VERSION.read_text() == original


def test_a_consistent_group_is_not_stacked(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    loaded(write(tmp_path, "single"))
    loaded(write(tmp_path, "group", consistent=True))
    for first, second in (("single", "group"), ("group", "single")):
        control.call("activate", name=first)
        with pytest.raises(control.Remote, match=f"activate {FUNCTION}: another update redirects this function"):
            control.call("activate", name=second)
        assert shown() == [first]
        control.call("deactivate", name=first, wait=60.0)


def test_one_built_before_may_be_put_on_top(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    for name in ("early", "late"):
        loaded(write(tmp_path, name))
    for name in ("late", "early"):
        control.call("activate", name=name)
    assert shown() == ["late", "early"]
    assert build(write(tmp_path, "third"), tmp_path).exists()
