"""What the measurements in a guest share: a daemon, updates for this kernel, and timed system calls."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from dynamos_ng import control
from dynamos_ng.build import kbuild
from dynamos_ng.build.update import build

SOURCES = Path(__file__).parents[1] / "sources"


@contextmanager
def daemon() -> Iterator[subprocess.Popen[bytes]]:
    """Run dynamosd."""
    process = subprocess.Popen([sys.executable, "-m", "dynamos_ng.daemon"], stderr=subprocess.DEVNULL)
    try:
        control.wait_for(process)
        yield process
    finally:
        process.terminate()
        process.wait()


def written(folder: Path, functions: dict[str, Sequence[int]], source: str = "", more: str = "") -> Path:
    """Write an update's folder: editions by function, one C source, and MORE lines for the last function."""
    folder.mkdir()
    tables = [f'[[function]]\nname = "{name}"\neditions = {list(some)}\n' for name, some in functions.items()]
    (folder / "update.toml").write_text(f'name = "{folder.name}"\n' + "".join(tables) + more)
    if source:
        (folder / f"{folder.name}.c").write_text(source)
    return folder


@contextmanager
def loaded(folder: Path, watch: bool = False) -> Iterator[str]:
    """Build an update and load it, with probes on its functions if they are to be watched; its name."""
    with tempfile.TemporaryDirectory() as output:
        control.call("load", path=str(build(folder, Path(output))), watch=watch)
    try:
        yield folder.name
    finally:
        # Among many functions there may be one in which we wait for this answer.
        control.call("unload", name=folder.name, wait=60.0, nudge=True)


@contextmanager
def active(folder: Path, **how: Any) -> Iterator[None]:
    """Build, load and activate an update."""
    with loaded(folder) as name:
        control.call("activate", name=name, **how)
        yield


def peers(folder: Path) -> Path:
    """Build the modules that stand for others' ways; return their folder."""
    shutil.copytree(SOURCES / "peers", folder)
    kbuild.make(folder, "modules")
    return folder


def waited(what: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


@contextmanager
def module(path: Path, *parameters: str) -> Iterator[None]:
    """Have a module in the kernel."""
    subprocess.run(["insmod", path, *parameters], check=True)
    try:
        yield
    finally:
        subprocess.run(["rmmod", path.stem], check=True)


class Calls:
    """Times system calls (sources/calls.c), in ticks: instructions where those are counted."""

    def __init__(self, folder: Path, calls: int) -> None:
        self._program = folder / "calls"
        self._calls = calls
        # Where memory lies changes how much there is to do.
        Path("/proc/sys/kernel/randomize_va_space").write_text("0")
        subprocess.run(["gcc", "-O2", "-static", "-o", self._program, SOURCES / "calls.c"], check=True)
        self._nothing = 0.0
        self._nothing = self.take("nothing")["median"]

    def take(self, name: str) -> dict[str, float]:
        """Return median and quartiles of what a call takes beyond the measuring itself."""
        argv = [str(self._program), name, str(self._calls)]
        lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
        ticks = [int(line) - self._nothing for line in lines[self._calls // 10 :]]
        low, _, high = quantiles(ticks, n=4)
        return {"median": median(ticks), "low": low, "high": high, "least": min(ticks)}

    def compare(self, name: str, rounds: int, switch: Callable[[bool], object]) -> dict[str, Any]:
        """Take a call in turn as it is and with what SWITCH puts there: what drifts is in both.

        Returns medians over the rounds: of the call as it is, and of what is added to it; and all of them.
        """
        pairs = []
        for _ in range(rounds):
            before = self.take(name)["median"]
            switch(True)
            pairs.append((before, self.take(name)["median"]))
            switch(False)
        added = median(after - before for before, after in pairs)
        return {"before": median(before for before, _ in pairs), "added": added, "rounds": pairs}
