"""The demo's steps, inside the guest: each is a function that returns what was seen, or raises Failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule

from dynamos_ng import control
from dynamos_ng.build.update import build
from dynamos_ng.cli import tables
from dynamos_ng.demo import load
from dynamos_ng.errors import DynamosError

UPDATES = Path(__file__).with_name("updates")
BUILT = Path("/run/dynamos-demo")
#: What the function that reads from a pipe is called, by the folder with the update for it.
PIPE_READ = {"pipe": "pipe_read", "anon_pipe": "anon_pipe_read"}

console = Console(highlight=False)

Figures = dict[str, Any]


class Failed(Exception):
    """A step that was not seen to work."""


def expect(true: bool, what: str) -> None:
    """Print what was seen; raise Failed if it is not what the step promises."""
    console.print(f"  [{'green' if true else 'red'}]{'✓' if true else '✗'}[/] {what}")
    if not true:
        raise Failed(what)


def brought(name: str) -> Any:
    """Build an update for this kernel and load it."""
    started = time.monotonic()
    module = build(UPDATES / name, BUILT)
    built = time.monotonic()
    result = control.call("load", path=str(module))
    console.print(f"  built {module.name} in {built - started:.1f} s, loaded in {time.monotonic() - built:.1f} s")
    return result


def brought_pipe() -> str:
    """Build and load the update of the function that reads from a pipe; return its name in this kernel."""
    function = load.named(*PIPE_READ.values())
    brought(next(folder for folder, name in PIPE_READ.items() if name == function))
    return function


def changed(verb: str, name: str, **arguments: Any) -> Any:
    """Make a change and show it as the command line would."""
    result = control.call(verb, name=name, **arguments)
    tables.change(result)
    return result


def uses(function: str) -> dict[int, tuple[int, int]]:
    """Return entered and exited by edition."""
    for update in control.call("status")["updates"]:
        for status in update["functions"]:
            if status["function"]["name"] == function:
                return {use["number"]: (use["entered"], use["exited"]) for use in status["uses"]}
    raise Failed(f"{function} is not loaded")


def cmdline() -> Figures:
    """(a) Two processes read /proc/cmdline at the same moment and see different editions"""
    brought("cmdline")
    changed("activate", "cmdline", classes=[1])
    with load.reader_of("/proc/cmdline") as plain, load.reader_of("/proc/cmdline") as chosen:
        control.call("policy_process", pid=chosen.pid, policy_class=1)
        seen = load.read_together(plain, chosen)
        console.print(f"  PID {plain.pid}, class 0: {seen[0].strip()!r}")
        console.print(f"  PID {chosen.pid}, class 1: {seen[1].strip()!r}")
        expect("edition=2" not in seen[0] and "edition=2" in seen[1], "each sees the edition of its class")
    counts = uses("cmdline_proc_show")
    expect(counts == {1: (2, 2), 2: (1, 1)}, f"one call in v1, and one in v2, which calls v1, were counted: {counts}")
    changed("deactivate", "cmdline")
    expect("edition=2" not in Path("/proc/cmdline").read_text(), "the original is back for everybody")
    changed("unload", "cmdline", wait=5.0)
    expect(not control.call("status")["updates"], "the update is unloaded")
    return {"v1": counts[1], "v2": counts[2]}


def pipe() -> Figures:
    """(b) pipe_read is redirected while readers sleep inside it and data flows"""
    function = brought_pipe()
    with load.sleeping_reader(), load.Pipes(6) as pipes:
        asleep = control.call("quiescence", function=function, seconds=0.0)
        inside = sum(1 for holder in asleep["walk"]["holders"] if holder["edition"] == 0)
        expect(inside > 0, f"{inside} tasks sleep inside the original {function}")
        changed("activate", "pipe")
        pipes.flow(2.0)
        counts = uses(function)[1]
        expect(counts[0] > 100, f"{counts[0]} calls went through the clone")
        changed("deactivate", "pipe")
        pipes.flow(0.5)
        moved, intact = pipes.finish()
    expect(intact, f"{moved} bytes went through 6 pipes; every checksum is intact")
    changed("unload", "pipe", wait=60.0)
    expect(not control.call("status")["updates"], "the update is unloaded")
    return {"entered": counts[0], "bytes": moved}


def schedule() -> Figures:
    """(c) schedule, which never quiesces, is redirected and counted"""
    brought("schedule")
    changed("activate", "schedule")
    before = uses("schedule")[1]
    time.sleep(1.0)
    inside = control.call("quiescence", function="schedule", seconds=1.0)
    after = uses("schedule")[1]
    tables.quiescence([inside])
    expect(after[0] > before[0], f"schedule was entered {after[0] - before[0]} times in v1 meanwhile")
    sleeping = sum(1 for holder in inside["walk"]["holders"] if holder["edition"] == 1)
    expect(sleeping > 0 and after[0] > after[1], f"{sleeping} tasks sleep inside the clone: it never quiesces")
    changed("deactivate", "schedule")
    drained = _drain("schedule", 300.0)
    console.print(f"  the last of them left {drained:.1f} s after the trampoline was gone; unloaded")
    return {"entered": after[0], "sleeping": sleeping, "drain_seconds": round(drained, 2)}


def _drain(name: str, patience: float) -> float:
    """Unload a deactivated update, stirring sleepers by ordinary means; return the seconds it took."""
    started = time.monotonic()
    while True:
        load.stir()
        try:
            changed("unload", name, wait=2.0)
            return time.monotonic() - started
        except DynamosError as error:
            if time.monotonic() - started > patience:
                raise Failed(str(error)) from None


def removal() -> Figures:
    """(d) A removal waits for quiescence; one is refused after 5 s, naming the sleeper"""
    brought_pipe()
    changed("activate", "pipe")
    with load.sleeping_reader() as sleeper:
        sleeper.wake_after(2.0)
        started = time.monotonic()
        changed("unload", "pipe", wait=5.0)
        waited = time.monotonic() - started
    expect(waited > 1.0, f"a removal waited {waited:.1f} s until the reader left the clone, then succeeded")
    brought_pipe()
    changed("activate", "pipe")
    with load.sleeping_reader() as sleeper:
        started = time.monotonic()
        try:
            control.call("unload", name="pipe", wait=5.0)
            raise Failed("the removal succeeded while a task slept in the clone")
        except DynamosError as error:
            refused = time.monotonic() - started
            console.print(str(error), style="yellow", markup=False)
            expect(f"TID {sleeper.pid} " in str(error), f"refused after {refused:.1f} s, naming the sleeper")
        snapshot = control.call("status")
        expect(snapshot["updates"][0]["state"] == "redirected", "the update stayed active")
        sleeper.wake()
        changed("unload", "pipe", wait=60.0)
    expect(not control.call("status")["updates"], "once that task had woken, the removal succeeded")
    return {"waited_seconds": round(waited, 2), "refused_after_seconds": round(refused, 2)}


STEPS: tuple[tuple[str, Callable[[], Figures]], ...] = (
    ("cmdline", cmdline),
    ("pipe", pipe),
    ("schedule", schedule),
    ("removal", removal),
)


@contextmanager
def daemon() -> Iterator[None]:
    """Run dynamosd for the length of the demo."""
    log = BUILT / "dynamosd.log"
    with log.open("w") as file:
        process = subprocess.Popen([sys.executable, "-m", "dynamos_ng.daemon"], stderr=file)
    try:
        try:
            control.wait_for(process)
        except DynamosError:
            raise Failed(f"dynamosd did not start: {log.read_text()}") from None
        yield
    finally:
        process.terminate()
        process.wait(30)


def main(argv: list[str]) -> int:
    """Run every step, write the report, and return 0 only if all were seen to work."""
    BUILT.mkdir(parents=True, exist_ok=True)
    report: list[dict[str, Any]] = []
    console.print(f"kernel {os.uname().release}, {os.cpu_count()} CPUs; starting dynamosd …")
    try:
        with daemon():
            for name, step in STEPS:
                console.print(Rule(step.__doc__ or name, align="left"))
                started = time.monotonic()
                entry: dict[str, Any] = {"name": name, "ok": False}
                report.append(entry)
                try:
                    entry["figures"] = step()
                    entry["ok"] = True
                except (Failed, DynamosError) as error:
                    console.print(f"  failed: {error}", style="red", markup=False)
                    entry["error"] = str(error)
                entry["seconds"] = round(time.monotonic() - started, 1)
    except Failed as error:
        console.print(f"failed: {error}", style="red", markup=False)
    ok = len(report) == len(STEPS) and all(entry["ok"] for entry in report)
    console.print(Rule())
    for entry in report:
        word = "[green]ok[/]" if entry["ok"] else "[red]failed[/]"
        console.print(f"  {entry['name']:<10} {word:<6} {entry['seconds']:6.1f} s")
    Path(argv[1]).write_text(json.dumps({"ok": ok, "steps": report}, indent=2) + "\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv))
