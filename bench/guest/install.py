"""What it takes to redirect groups of functions, and to give them back, with few or many tasks (bench/install.py)."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.guest.measuring import SOURCES, daemon, loaded, peers, waited, written
from dynamos_ng import control, neighbours
from dynamos_ng.errors import Refusal
from dynamos_ng.image import Kernel
from dynamos_ng.lab.mass_guest import THREADS
from dynamos_ng.rewrite.clone import examine

#: How often each is done, and how long the daemon is watched.
ROUNDS, WATCHED_SECONDS = 5, 10.0


def chosen(count: int) -> list[str]:
    """Return functions that can be redirected, the same each time."""
    kernel = Kernel.live()
    unique = [name for name, times in Counter(kernel.function_names()).items() if times == 1 and name not in THREADS]
    found: dict[int, str] = {}  # by address: some have several names
    for name in sorted(unique, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if len(found) == count:
            break
        try:
            original = examine(kernel, kernel.function(name))
        except Refusal:
            continue
        if original.entry.ftrace is not None:
            found.setdefault(original.body.address, name)
    return list(found.values())


@contextmanager
def sleepers(program: Path, count: int) -> Iterator[None]:
    """Have so many threads sleep meanwhile."""
    process = subprocess.Popen([program, str(count)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        if process.stdout.readline() != b"asleep\n":
            raise RuntimeError(f"{count} threads cannot be had")
        yield
    finally:
        process.kill()
        process.wait()


def switched(name: str) -> dict[str, float]:
    """Return medians of some activations and deactivations: seconds of the call, and nanoseconds in the stop."""
    found: dict[str, list[float]] = defaultdict(list)
    for _ in range(ROUNDS):
        for verb in ("activate", "deactivate"):
            began = time.monotonic()
            change = control.call(verb, name=name)
            found[f"{verb}-s"].append(time.monotonic() - began)
            found[f"{verb}-ns"].append(change["stop_ns"])
    return {what: median(values) for what, values in found.items()}


def transition(patch: Path) -> float:
    """Return the seconds from a livepatch's loading until all tasks have made their transition."""
    folder = neighbours.LIVEPATCH / patch.stem
    began = time.monotonic()
    subprocess.run(["insmod", patch], check=True)
    waited(lambda: (folder / "transition").read_text() == "0\n", 300)
    took = time.monotonic() - began
    (folder / "enabled").write_text("0")
    waited(lambda: not folder.exists(), 300)
    subprocess.run(["rmmod", patch.stem], check=True)
    return took


def of_daemon(seconds: float) -> dict[str, float]:
    """Return the daemon's memory in bytes, and the part of a CPU that it uses."""
    before = control.call("status")["daemon"]
    began = time.monotonic()
    time.sleep(seconds)
    after = control.call("status")["daemon"]
    used = after["cpu_seconds"] - before["cpu_seconds"]
    return {"memory": after["memory"], "cpu": used / (time.monotonic() - began)}


def main() -> None:
    """Measure, and write /out/install.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--functions", type=int, nargs="+")
    parser.add_argument("--tasks", type=int, nargs="+")
    parser.add_argument("--daemon", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {"release": platform.release(), "functions": {}, "tasks": {}, "daemon": {}}
    with tempfile.TemporaryDirectory() as folder, daemon():
        work = Path(folder)
        program = work / "sleepers"
        subprocess.run(["gcc", "-O2", "-static", "-pthread", "-o", program, SOURCES / "sleepers.c"], check=True)
        names = chosen(max(options.functions))
        patch = None
        if platform.machine() == "x86_64":
            patch = peers(work / "peers") / "peer_livepatch.ko"
        for count in options.functions:
            with loaded(written(work / f"group{count}", {name: [] for name in names[:count]})) as name:
                found["functions"][count] = switched(name)
                print(count, found["functions"][count], flush=True)
                if count == min(options.functions):
                    for tasks in options.tasks:
                        with sleepers(program, tasks):
                            found["tasks"][tasks] = switched(name)
                            if patch:
                                found["tasks"][tasks]["livepatch-s"] = transition(patch)
                        print(tasks, found["tasks"][tasks], flush=True)
            if options.daemon:
                with loaded(work / f"group{count}", watch=True) as name:
                    control.call("activate", name=name)
                    found["daemon"][count] = of_daemon(WATCHED_SECONDS)
                    print(found["daemon"][count], flush=True)
    Path("/out/install.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
