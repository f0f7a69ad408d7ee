"""The main job: editions by process, counted, moved under load, and taken back."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO_UPDATES, Daemon, named, pipe, write_update

from dynamos_ng import bpf, bpfmaps, control, uapi
from dynamos_ng.demo import load as work
from dynamos_ng.device import Device
from dynamos_ng.errors import KernelRefused

pytestmark = pytest.mark.everywhere

CYCLES = 500
HOT = ("pipe_read", "pipe_write", "vfs_read")


def uses(name: str) -> dict[str, dict[int, tuple[int, int]]]:
    """Return entered and exited of a loaded update, by function and edition."""
    for update in control.call("status")["updates"]:
        if update["name"] == name:
            return {
                status["function"]["name"]: {
                    use["number"]: (use["entered"], use["exited"]) for use in status["uses"]
                }
                for status in update["functions"]
            }
    raise AssertionError(f"{name} is not loaded")


def test_editions_are_chosen_by_process(loaded: Callable[[Path], Any]) -> None:
    loaded(DEMO_UPDATES / "cmdline")
    original = Path("/proc/cmdline").read_text()
    change = control.call("activate", name="cmdline", classes=[3])
    assert change["state"] == "redirected"
    with work.reader_of("/proc/cmdline") as plain, work.reader_of("/proc/cmdline") as chosen:
        control.call("policy_process", pid=chosen.pid, policy_class=3)
        assert work.read_together(plain, chosen) == [original, original.rstrip("\n") + " edition=2\n"]
        assert uses("cmdline") == {"cmdline_proc_show": {1: (2, 2), 2: (1, 1)}}, "edition 2 calls the original"
        control.call("policy_edition", function="cmdline_proc_show", policy_class=0, edition=2)
        assert work.read_together(plain, chosen)[0].endswith("edition=2\n")
        control.call("deactivate", name="cmdline")
        assert work.read_together(plain, chosen) == [original, original]


def test_probes_and_use_counters_agree_for_a_clone(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    from dynamos_ng.probes import Probes

    pipe_read = f"{pipe()}_read"
    loaded(write_update(tmp_path / "pipe", {pipe_read: []}))
    control.call("activate", name="pipe")
    with Probes() as probes:
        assert probes.watch([f"{pipe_read}_v1"], breakpoints=True) == ()
        time.sleep(0.5)  # calls that were in progress when the probes came
        before, seen_before = uses("pipe")[pipe_read][1], probes.counts()[f"{pipe_read}_v1"]
        end_read, end_write = os.pipe()
        for _ in range(1000):
            os.write(end_write, b".")
            os.read(end_read, 1)
        after, seen_after = uses("pipe")[pipe_read][1], probes.counts()[f"{pipe_read}_v1"]
    os.close(end_read)
    os.close(end_write)
    entered, exited = after[0] - before[0], after[1] - before[1]
    assert entered >= 1000
    assert seen_after.missed == seen_before.missed
    assert (seen_after.entries - seen_before.entries, seen_after.exits - seen_before.exits) == (entered, exited)


def test_a_group_survives_500_cycles_under_load(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    hot = [named(name, f"anon_{name}") for name in HOT]
    loaded(write_update(tmp_path / "hot", {name: [] for name in hot}))
    tried_again = 0
    with work.Pipes(6) as pipes, Device() as device:
        functions = [function for function in device.functions() if function.update == "dynamos_hot"]
        assert [function.name for function in functions] == hot
        for _ in range(CYCLES):
            while True:
                try:
                    device.activate(functions)
                    break
                except KernelRefused as error:  # a task stood inside the bytes to be overwritten
                    assert "try again" in str(error)
                    tried_again += 1
                    assert tried_again < CYCLES
                    time.sleep(0.01)
            time.sleep(0.005)
            device.deactivate(functions)
        moved, intact = pipes.finish()
    assert intact
    assert moved > 1_000_000
    deadline = time.monotonic() + 30
    while any(entered != exited for use in uses("hot").values() for entered, exited in use.values()):
        assert time.monotonic() < deadline, f"counters do not balance: {uses('hot')}"
        time.sleep(0.1)
    assert all(use[1][0] > CYCLES for use in uses("hot").values()), uses("hot")


def test_a_removal_waits_and_names_who_is_in_the_way(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    pipe_read = f"{pipe()}_read"
    loaded(write_update(tmp_path / "pipe", {pipe_read: []}))
    control.call("activate", name="pipe")
    with work.sleeping_reader() as sleeper:
        refused = cli("unload", "pipe", "--timeout", "2")
        assert refused.returncode == 1
        assert refused.stderr.startswith("dynamos: unload pipe: still in use after 2 s; it stays active")
        assert f"TID {sleeper.pid} (" in refused.stderr
        assert pipe_read in refused.stderr
        assert control.call("status")["updates"][0]["state"] == "redirected"
        sleeper.wake_after(1.0)
        assert cli("unload", "pipe", "--wait").returncode == 0
    assert control.call("status")["updates"] == []


def test_everything_outlives_a_killed_daemon(daemon: Daemon, loaded: Callable[[Path], Any]) -> None:
    loaded(DEMO_UPDATES / "cmdline")
    control.call("activate", name="cmdline", classes=[1])
    with work.reader_of("/proc/cmdline") as chosen:
        control.call("policy_process", pid=os.getpid(), policy_class=1)
        daemon.kill()
        assert Path("/proc/cmdline").read_text().endswith("edition=2\n"), "redirect and policy stay in force"
        assert "edition=2" not in work.read_together(chosen)[0]
        with work.reader_of("/proc/cmdline") as child:
            assert "edition=2" in work.read_together(child)[0], "a forked child inherits"
            reused = child.pid
        daemon.start()
    control.call("policy_process", pid=os.getpid(), policy_class=0)
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(reused - 1))
    with work.reader_of("/proc/cmdline") as heir:
        assert heir.pid == reused
        assert "edition=2" not in work.read_together(heir)[0], "a reused PID does not inherit"
    assert control.call("status")["updates"][0]["state"] == "redirected"
    control.call("deactivate", name="cmdline")
    control.call("unload", name="cmdline", wait=60.0)
    assert control.call("status")["updates"] == []


def test_counters_pass_the_end_of_a_32_bit_word(loaded: Callable[[Path], Any]) -> None:
    (function,) = loaded(DEMO_UPDATES / "cmdline")["functions"]
    control.call("activate", name="cmdline", edition=1)
    cpus = bpfmaps.possible_cpus()
    nearly = (1 << 32) - 5
    fd = bpf.open_pin(bpfmaps.PIN_DIR / "use")
    key = (function["id"] * uapi.EDITIONS_MAX + 1).to_bytes(4, "little")
    bpf.update(fd, key, nearly.to_bytes(8, "little") * 2 * cpus)
    os.close(fd)
    for _ in range(20 * cpus):
        Path("/proc/cmdline").read_bytes()
    whole = cpus * nearly + 20 * cpus
    assert uses("cmdline") == {"cmdline_proc_show": {1: (whole, whole), 2: (0, 0)}}


def test_schedule_is_redirected_and_drains(loaded: Callable[[Path], Any]) -> None:
    loaded(DEMO_UPDATES / "schedule")
    control.call("activate", name="schedule")
    first = uses("schedule")["schedule"][1]
    time.sleep(0.5)
    entered, exited = uses("schedule")["schedule"][1]
    assert entered > first[0]
    assert entered > exited, "tasks sleep inside"
    control.call("deactivate", name="schedule")
    deadline = time.monotonic() + 400
    while True:
        work.stir()
        try:
            control.call("unload", name="schedule", wait=1.0)
            break
        except control.Remote as error:
            assert time.monotonic() < deadline, str(error)
