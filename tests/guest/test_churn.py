"""Classes stay true while thousands of processes come and go, PIDs are used again and the daemon dies meanwhile."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon, becomes

from dynamos_ng import bpfmaps, control, host

#: Keeps COUNT children alive, each for a random time: some call exec, some as another user, some only fork. A few
#: more exit at once, so that PIDs are soon used again.
CHURN = """
import os, random, sys, time
chance, count, programs = random.Random(int(sys.argv[1])), int(sys.argv[2]), sys.argv[3:]
alive = 0
while True:
    program, life = chance.choice(programs), chance.uniform(0.1, 0.4) * count
    kind, user = chance.randrange(3), chance.randrange(3)
    if os.fork() == 0:
        if kind == 1:
            os.setuid(1000 * user)
        if kind:
            os.execv(program, [program, f"{life:.2f}"])
        time.sleep(life)
        os._exit(0)
    alive += 1
    for _ in range(3):
        if os.fork() == 0:
            os._exit(0)
    alive += 3
    while alive and os.waitpid(-1, os.WNOHANG if alive < count else 0)[0]:
        alive -= 1
"""
PROGRAMS = 8


def policy(label: str) -> str:
    """Return a policy of 20 rules: programs, users, shares of both, and paths, which only the daemon knows."""
    rules = [(f'comm = "churn{n}"', f"percent = {5 + 9 * n}", 1 + n % 3) for n in range(PROGRAMS)]
    rules += [("uid = 1000", "percent = 50", 2), ("uid = 2000", "percent = 12.5", 3)]
    rules += [(f'exe = "*/churn{n}"', "percent = 40", 2) for n in range(4)]
    rules += [(f'comm = "churn{n}"', "", 1 + n % 2) for n in range(5)]
    rules += [("uid = 1000", "", 3)]
    assert len(rules) == 20
    return "".join(
        f'[[rule]]\nname = "{label}{n}"\nmatch = {{ {match} }}\n{more}\nupdates = {{ any = {edition} }}\n'
        for n, (match, more, edition) in enumerate(rules)
    )


@contextmanager
def churning(folder: Path, count: int) -> Iterator[None]:
    """Have COUNT processes at one time, of two parents, under programs of several names."""
    for one in (folder, *folder.parents):
        one.chmod(one.stat().st_mode | 0o055)
    programs = [folder / f"churn{n}" for n in range(PROGRAMS)]
    for program in programs:
        program.write_bytes(Path("/bin/sleep").read_bytes())
        program.chmod(0o755)
    parents = [
        subprocess.Popen(
            [sys.executable, "-c", CHURN, str(seed), str(count // 2), *programs], start_new_session=True
        )
        for seed in (1, 2)
    ]
    try:
        yield
    finally:
        for parent in parents:
            os.killpg(parent.pid, signal.SIGKILL)
            parent.wait()


def explain(pid: int) -> Any:
    """Return what explain says of a process once it knows it; None if it has exited by then."""
    for _ in range(100):
        with suppress(control.Remote):
            told = control.call("policy_explain", pid=pid)
            if told["rule"]:
                return told
        if host.process(pid) is None:
            return None
        time.sleep(0.02)
    pytest.fail(f"nobody knows how {host.process(pid)} came by its class")


def look(chance: random.Random, most: int) -> Counter[str]:
    """Ask about processes that run; return how many are under each rule."""
    rules = control.call("policy_show")["in_force"]["rules"]
    classes = {one["name"]: one["policy_class"] for one in rules}
    running = host.pids()
    seen: Counter[str] = Counter()
    for pid in chance.sample(running, min(most, len(running))):
        told = explain(pid)
        if told is None or told["undecided"]:
            continue
        assert told["policy_class"] == classes[told["rule"]], told
        if "exec" in told["how"] and told["comm"].startswith("churn"):
            assert told["next_rule"] == "", f"Python decides otherwise than the kernel did: {told}"
        seen[told["rule"]] += 1
    return seen


def stale(maps: bpfmaps.Maps) -> dict[int, int]:
    """Return the classes of PIDs that no process has."""
    dead = {pid: chosen for pid, chosen in maps.classified() if not Path(f"/proc/{pid}").exists()}
    return {pid: chosen for pid, chosen in dead.items() if maps.class_of(pid) == chosen}


@pytest.mark.limit(3000)
def test_every_process_is_in_the_class_that_explain_gives(daemon: Daemon, tmp_path: Path, thorough: bool) -> None:
    # The kernel keeps PIDs below 300 for those who were there first.
    count, pid_max, wraps_wanted, rules_wanted = (2000, 4000, 4, 24) if thorough else (100, 600, 2, 10)
    chance, seen = random.Random(3), Counter[str]()
    limit, last_pid = Path("/proc/sys/kernel/pid_max"), Path("/proc/sys/kernel/ns_last_pid")
    before = limit.read_text()
    control.call("policy_apply", text=policy("a"), file="a.toml")
    try:
        limit.write_text(str(pid_max))
        with churning(tmp_path, count):
            deadline = time.monotonic() + 600
            while len(host.pids()) < count:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            seen += look(chance, 20)
            daemon.kill()
            wraps, last = 0, int(last_pid.read_text())
            while wraps < 1:  # PIDs are used again while there is no daemon
                now = int(last_pid.read_text())
                wraps, last = wraps + (now < last), now
            daemon.start()
            seen += look(chance, 20)
            control.call("policy_apply", text=policy("b"), file="b.toml")
            while wraps < wraps_wanted or len(seen) < rules_wanted:
                seen += look(chance, 20)
                now = int(last_pid.read_text())
                wraps, last = wraps + (now < last), now
        deadline = time.monotonic() + 120
        while control.call("policy_show")["in_force"]["undecided"]:
            assert time.monotonic() < deadline, "the daemon leaves processes undecided"
            time.sleep(0.1)
        with bpfmaps.open_maps() as maps:
            # The class of one that ends while the daemon judges it is taken away a moment later.
            becomes(lambda: stale(maps), {})
            bank = {one["policy_class"] // 128 for one in control.call("policy_show")["in_force"]["rules"]}
            assert {maps.class_of(pid) // 128 for pid in host.pids() if not host.is_ending(pid)} == bank
    finally:
        limit.write_text(before)
        control.call("policy_clear")
