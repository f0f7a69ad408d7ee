"""Rates of policy changes, and the lives of processes with and without classification (bench/policy.py)."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from bench.guest.measuring import Calls, daemon
from dynamos_ng import bpf, control
from dynamos_ng.bpfmaps import open_maps
from dynamos_ng.device import Device

LIVES = ("clone", "life", "execve")


def rate(change: Callable[[int], object], seconds: float) -> float:
    """Return how often a second CHANGE can be called; it gets class 1 and 0 in turn."""
    count, began = 0, time.monotonic()
    while (passed := time.monotonic() - began) < seconds or count < 2:
        change(count % 2)
        count += 1
    return count / passed


def rates(seconds: float) -> dict[str, float]:
    """Measure the ways to change a process's class."""
    own = os.getpid()

    def cli(policy_class: int) -> None:
        subprocess.run(
            [sys.executable, "-m", "dynamos_ng", "policy", "set", "--pid", str(own), "--class", str(policy_class)],
            check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip

    def syscall(policy_class: int) -> None:
        # Eight processes share an element.
        key = (own // 8).to_bytes(4, "little")
        element = bytearray(bpf.lookup(fd, key, 8))
        element[own % 8] = policy_class
        bpf.update(fd, key, bytes(element))

    with daemon(), Device() as device, open_maps(device.info().map_ids) as maps:
        fd = maps.fd("policy")
        return {
            "mmap": rate(lambda number: maps.set_class(own, number), seconds),
            "syscall": rate(syscall, seconds),
            "daemon": rate(lambda number: control.call("policy_process", pid=own, policy_class=number), seconds),
            "cli": rate(cli, seconds),
        }


def main() -> None:
    """Measure, and write /out/policy.json."""
    what, size = sys.argv[1], float(sys.argv[2])
    found: dict[str, object] = {"release": platform.release()}
    if what == "rates":
        found["rates"] = rates(size)
    else:
        with tempfile.TemporaryDirectory() as folder:
            calls = Calls(Path(folder), int(size))
            off = {name: calls.take(name) for name in LIVES}
            with daemon():
                found["lives"] = {"off": off, "on": {name: calls.take(name) for name in LIVES}}
    Path("/out/policy.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
