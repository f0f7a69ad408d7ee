"""Type 5a, new field by state transfer: regions of character devices learn who registered them."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLES

from dynamos_ng import control
from dynamos_ng.demo import load as work

pytestmark = pytest.mark.kernels("6.1", "6.12", "7.2")  # the others list no data

DEVICES = Path("/proc/devices")


def modprobe(*arguments: str) -> None:
    subprocess.run(["modprobe", *arguments], check=True)


@pytest.fixture(autouse=True)
def absent() -> Iterator[None]:
    """Begin and end without the modules that the test loads."""
    yield
    modprobe("-r", "-q", "-a", "cpuid", "msr")


def come_and_go() -> None:
    modprobe("msr")
    modprobe("-r", "msr")


def told(name: str) -> str:
    """Return what /proc/devices says of who registered a device."""
    found = re.search(rf"^ *\d+ {re.escape(name)}( \(.*\))?$", DEVICES.read_text(), re.MULTILINE)
    assert found, DEVICES.read_text()
    return found[1] or ""


def test_regions_move_and_learn_who_registered_them(loaded: Callable[[Path], Any]) -> None:
    modprobe("cpuid")
    loaded(EXAMPLES / "type05a-chrdev")
    plain = [line for line in DEVICES.read_text().splitlines() if "msr" not in line]
    with work.repeated(come_and_go, DEVICES.read_text):
        control.call("activate", name="type05a-chrdev")
        assert [line for line in DEVICES.read_text().splitlines() if "msr" not in line] == plain, "all have moved"
        assert told("cpu/cpuid") == ""
        modprobe("-r", "cpuid")
        modprobe("cpuid")
        assert re.fullmatch(r" \(modprobe, PID \d+\)", told("cpu/cpuid"))
        control.call("policy_edition", function="chrdev_show", policy_class=0, edition=1)
        assert told("cpu/cpuid") == "", "who looks is of a class that does not see it"
        control.call("policy_edition", function="chrdev_show", policy_class=0, edition=2)
        control.call("deactivate", name="type05a-chrdev")
        assert told("cpu/cpuid") == ""
        control.call("activate", name="type05a-chrdev")
        assert told("cpu/cpuid") == "", "what was known before is forgotten"
        control.call("unload", name="type05a-chrdev", wait=60.0)
    modprobe("-r", "cpuid")
    assert "cpuid" not in DEVICES.read_text()
    modprobe("cpuid")
    assert [line for line in DEVICES.read_text().splitlines() if "msr" not in line] == plain
