"""Type 7: one function that never quiesces, the scheduler, with another policy for some processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLES, RELAY

from dynamos_ng import control
from dynamos_ng.demo import load as work

# On i386 an idle worker of the disk holds the update.
pytestmark = pytest.mark.kernels("6.1", "6.12", "7.2")

NAME = "type07-linger"
GUEST = 1
CPU = 1


def spin() -> None:
    os.sched_setaffinity(0, {CPU})
    while True:
        pass


def ran(pid: int) -> int:
    """Return how long a process has run, in nanoseconds."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def share(guest: int, host: int) -> float:
    """Return the guest's share of what both run while the host runs for a while."""
    before = ran(guest), ran(host)
    deadline = time.monotonic() + 120
    while ran(host) < before[1] + 600_000_000:
        assert time.monotonic() < deadline, "the host does not run"
        time.sleep(0.05)
    mine, its = ran(guest) - before[0], ran(host) - before[1]
    return mine / (mine + its)


def runs_on(guest: int) -> bool:
    """Return whether the guest gets on within a while."""
    before = ran(guest)
    deadline = time.monotonic() + 120
    while ran(guest) < before + 500_000_000:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def uses() -> dict[int, tuple[int, int]]:
    (update,) = control.call("status")["updates"]
    return {use["number"]: (use["entered"], use["exited"]) for use in update["functions"][0]["uses"]}


def leave() -> None:
    """Unload the update once everybody who fell asleep in it has run again."""
    watchdog = Path("/proc/sys/kernel/hung_task_timeout_secs")
    deadline = time.monotonic() + 300
    while True:
        watchdog.write_text(watchdog.read_text())  # it sleeps for two minutes unless its time is set anew
        Path("/proc/sys/vm/drop_caches").write_text("1")  # what is read anew gives the disk's workers something to do
        work.stir()
        RELAY.write_bytes(b".")
        try:
            control.call("unload", name=NAME, wait=2.0)
            return
        except control.Remote:
            if time.monotonic() > deadline:
                raise


def nap() -> None:
    while True:
        time.sleep(0.01)


def test_guests_run_only_where_no_host_wants_to(loaded: Callable[[Path], Any]) -> None:
    loaded(EXAMPLES / NAME)
    with work.sleeping_reader() as sleeper, work.forked(spin, nap, spin) as (guest, napping, host):
        assert share(guest, host) > 0.25, "the original shares the processor out"
        for pid in (guest, napping):
            control.call("policy_process", pid=pid, policy_class=GUEST)
        control.call("activate", name=NAME, classes=[GUEST])
        with work.Pipes(3) as pipes:
            time.sleep(0.5)
            assert share(guest, host) < 0.1, "a guest does not run while a host would"
            os.kill(host, signal.SIGSTOP)
            assert runs_on(guest), "it runs when no host would"
            os.kill(host, signal.SIGCONT)
            assert share(guest, host) < 0.1
            counts = uses()
            assert all(entered > exited for entered, exited in counts.values()), f"each holds sleepers: {counts}"
            control.call("policy_process", pid=guest, policy_class=0)
            assert share(guest, host) > 0.25, "no guest any more"
            control.call("policy_process", pid=guest, policy_class=GUEST)
            assert share(guest, host) < 0.1
            control.call("deactivate", name=NAME)
            assert share(guest, host) > 0.25, "and back"
            moved, intact = pipes.finish()
            assert intact
            assert moved
        sleeper.wake()
    leave()
    assert control.call("status")["updates"] == []
