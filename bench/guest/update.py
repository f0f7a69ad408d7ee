"""The steps from an update's source to its being active (bench/update.py)."""

from __future__ import annotations

import json
import platform
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

from bench.guest.calls import SOURCE, TINY
from bench.guest.measuring import daemon, written
from dynamos_ng import control
from dynamos_ng.build import update

#: What build() does, in its order, by the name that it has there.
STEPS = {"read": "Kernel.live", "examine": "examine", "compile": "_compile", "generate": "generate", "link": "_link"}


@contextmanager
def timed(times: dict[str, float]) -> Iterator[None]:
    """Have the time of each step of a build noted."""
    olds: list[tuple[Any, str, Any]] = []

    def noting(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            began = time.monotonic()
            try:
                return function(*arguments, **named)
            finally:
                times[step] += time.monotonic() - began

        return run

    for step, path in STEPS.items():
        holder, _, name = path.rpartition(".")
        where = getattr(update, holder) if holder else update
        olds.append((where, name, where.__dict__[name]))
        setattr(where, name, noting(step, getattr(where, name)))
    try:
        yield
    finally:
        for where, name, old in olds:
            setattr(where, name, old)


def main() -> None:
    """Measure some rounds, the first of which does not count, and write /out/update.json."""
    rounds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder, daemon():
        for number in range(int(sys.argv[1]) + 1):
            name = f"round{number}"
            source = written(Path(folder) / name, {TINY: [2]}, f"/* {number} */\n{SOURCE}")
            times: dict[str, float] = defaultdict(float)
            began = time.monotonic()
            with timed(times):
                module = update.build(source, Path(folder))
            built = time.monotonic()
            control.call("load", path=str(module), watch=False)
            loaded = time.monotonic()
            control.call("activate", name=name)
            times |= {"load": loaded - built, "activate": time.monotonic() - loaded}
            control.call("unload", name=name, wait=60.0)
            for step, seconds in (times | {"built": built - began}).items():
                rounds[step] += [seconds] * (number > 0)
    found = {step: median(seconds) for step, seconds in rounds.items()}
    built = found.pop("built")
    Path("/out/update.json").write_text(json.dumps({"release": platform.release(), "built": built, "steps": found}))


if __name__ == "__main__":
    main()
