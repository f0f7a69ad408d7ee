"""The guest's part of a mass redirect: choose functions, redirect them under load, take everything back.

Reads /out/plan.json and writes what it has done to /out/report.json step by step, for a kernel may die at any of them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dynamos_ng import bpfmaps, modules, uapi
from dynamos_ng.build import dynamos_ko
from dynamos_ng.build.description import module_name
from dynamos_ng.build.update import build
from dynamos_ng.demo.load import stir
from dynamos_ng.device import Device
from dynamos_ng.errors import Busy, DynamosError, KernelRefused, Refusal
from dynamos_ng.image import Kernel
from dynamos_ng.kprobes import tracefs
from dynamos_ng.lab.mass import OUT_OF_REACH, PLAN, REPORT, UPDATE
from dynamos_ng.lab.stress import Load
from dynamos_ng.model import Function
from dynamos_ng.rewrite.clone import examine

#: A task that stands inside the bytes to be overwritten is waited for this long.
STOP_SECONDS = 30.0
DRAIN_SECONDS = 240.0
#: Short looks at what the kernel does, for the tracer's buffer holds less than a second of it.
LOOKS = 8
LOOK_SECONDS = 0.05
BUFFER_KB = 200
#: One in so many is chosen among functions that the load was not seen to call.
COLD_ONE_IN = 10
#: The life of a kernel thread, and where an idle one sleeps: who is in a clone of these stays there for minutes, or for
#: ever.
THREADS = frozenset(
    {"kthread", "worker_thread", "kthread_worker_fn", "rescuer_thread", "smpboot_thread_fn", "schedule"}
)


class Misbehaved(Exception):
    """Something that a kernel with correct clones does not do."""


@dataclass
class Report:
    """What was done so far; `entered` counts calls by function."""

    names: list[str] = field(default_factory=list)
    seen: int = 0
    hot: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    entered: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def write(self) -> None:
        """Put it where the host finds it whole even if this guest dies meanwhile."""
        partial = REPORT.with_suffix(".partial")
        partial.write_text(json.dumps(asdict(self)))
        partial.rename(REPORT)


def busy(seed: int) -> Counter[str]:
    """Return how often the load was seen to call each function that has an ftrace site."""
    found: Counter[str] = Counter()
    trace = tracefs()
    (trace / "tracing_on").write_text("0")
    (trace / "options/context-info").write_text("0")
    (trace / "buffer_size_kb").write_text(str(BUFFER_KB))
    (trace / "current_tracer").write_text("function")
    try:
        with Load(seed) as load:
            for _ in range(LOOKS):
                (trace / "trace").write_text("")
                (trace / "tracing_on").write_text("1")
                time.sleep(LOOK_SECONDS)
                (trace / "tracing_on").write_text("0")
                with (trace / "trace").open() as lines:
                    found.update(line.partition("<-")[0].strip() for line in lines if "<-" in line)
            load.finish()
    finally:
        (trace / "current_tracer").write_text("nop")
        (trace / "options/context-info").write_text("1")
        (trace / "tracing_on").write_text("1")
    return found


def ranked(names: Iterable[str], seed: int) -> list[str]:
    """Return names in an order that the seed gives: what one run saw and another did not moves no other name."""
    return sorted(names, key=lambda name: hashlib.sha256(f"{seed} {name}".encode()).digest())


def choose(kernel: Kernel, hot: Counter[str], count: int, seed: int, report: Report) -> None:
    """Put COUNT functions that can be cloned into the report, most of them hot; what is refused is told as well."""
    every = Counter(kernel.function_names())
    unique = {name for name, times in every.items() if times == 1 and name not in THREADS}
    cold = count // COLD_ONE_IN
    for names, wanted in ((unique & hot.keys(), count - cold), (unique - hot.keys(), cold)):
        taken = 0
        for name in ranked(names, seed):
            if taken == wanted:
                break
            try:
                examine(kernel, kernel.function(name))
            except Refusal as error:
                report.refused[name] = error.reason
                continue
            report.names.append(name)
            taken += 1
    report.hot = [name for name in report.names if name in hot]


def redirect(device: Device, functions: Sequence[Function], update: int) -> None:
    """Activate a group, with an UPDATE's id all that belongs to it, waiting for tasks that stand in the way."""
    deadline = time.monotonic() + STOP_SECONDS
    while True:
        try:
            device.activate(functions, update)
            return
        except KernelRefused as error:
            if "try again" not in str(error) or time.monotonic() > deadline:
                raise
        stir()


def inside(device: Device, maps: bpfmaps.Maps, module: str) -> str:
    """Return what the counters and the stacks say of who is still in an update."""
    functions = [function for function in device.functions() if function.update == module]
    uses = [(f.name, e.number, *maps.use(f.id, e.number)) for f in functions for e in f.editions]
    counted = [
        f"{name} v{number}: {entered} in, {exited} out" for name, number, entered, exited in uses if entered != exited
    ]
    walk = device.stacks([(function.handler, function.end) for function in functions])
    held = [f"{h.pid} ({h.comm}) at {h.address:#x}" for h in walk.holders]
    return "; ".join(counted + held)


def remove(device: Device, maps: bpfmaps.Maps, module: str) -> None:
    """Retire an update and unload it; Misbehaved if it is still in use after a long time."""
    deadline = time.monotonic() + DRAIN_SECONDS
    while True:
        try:
            device.retire(module)
            break
        except Busy as error:
            if time.monotonic() > deadline:
                raise Misbehaved(
                    f"not removed after {DRAIN_SECONDS:g} s: {error}; {inside(device, maps, module)}"
                ) from None
        stir()
        print(".", end="", flush=True)  # wakes the task that passes the output on
    modules.unload(module)


def timed(report: Report, step: str, started: float) -> float:
    """Note how long a step took, and return the time at which the next one starts."""
    now = time.monotonic()
    report.seconds[step] = round(now - started, 2)
    report.write()
    print(f"{step} {now - started:.1f} s", flush=True)
    return now


def run(plan: dict[str, Any], report: Report) -> None:
    """Do all of it; Misbehaved, or a dead kernel, if anything goes wrong."""
    seed, started = int(plan["seed"]), time.monotonic()
    dynamos_ko.ensure_loaded()
    report.names = list(plan["names"])
    if not report.names and not UPDATE.is_dir():
        hot = busy(seed)
        report.seen = len(hot)
        started = timed(report, "look", started)
        choose(Kernel.live(), hot, int(plan["functions"]), seed, report)
        started = timed(report, "choose", started)
    if not UPDATE.is_dir():
        UPDATE.mkdir()
        tables = "".join(f'[[function]]\nname = "{name}"\n' for name in report.names)
        (UPDATE / "update.toml").write_text(f'name = "mass"\n{tables}')
    path = build(UPDATE, Path("/tmp"))
    started = timed(report, "build", started)
    module = module_name(path.stem)
    with Device() as device, bpfmaps.open_maps(device.info().map_ids) as maps:
        device.set_maps(*maps.fds)
        modules.load(path)
        loaded = [function for function in device.functions() if function.update == module]
        report.names = report.names or [function.name for function in loaded]
        chosen = [function for function in loaded if function.name in set(report.names)]
        whole = next(update.id for update in device.updates() if update.module == module)
        update = whole if chosen == loaded else 0  # a part of one is no activation of it
        started = timed(report, "load", started)
        for function in chosen:
            maps.set_row(function.id, bytes([function.newest]) * uapi.CLASSES)
        with Load(seed) as load:
            time.sleep(1)
            redirect(device, chosen, update)
            started = timed(report, "activate", started)
            time.sleep(float(plan["seconds"]))
            report.entered = {
                function.name: sum(maps.use(function.id, edition.number)[0] for edition in function.editions)
                for function in chosen
            }
            started = timed(report, "redirected", started)
            device.deactivate(chosen, update)
            report.wrong = load.finish()
        started = timed(report, "deactivate", started)
        remove(device, maps, module)
    timed(report, "remove", started)
    if report.wrong:
        raise Misbehaved("; ".join(report.wrong))
    idle = [name for name in report.hot if not report.entered.get(name)]
    if len(idle) > len(report.hot) // 2:
        raise Misbehaved(f"most functions that the load calls were not entered: {', '.join(idle[:10])}, …")


def main() -> int:
    """Run the plan; returns 0, 1 if the kernel misbehaved, or OUT_OF_REACH if it could not be tried."""
    report = Report()
    try:
        run(json.loads(PLAN.read_text()), report)
        return 0
    except Misbehaved as error:
        print(error)
        return 1
    except DynamosError as error:
        print(error)
        return OUT_OF_REACH
    finally:
        report.write()


if __name__ == "__main__":
    sys.exit(main())
