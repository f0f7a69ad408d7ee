"""Reports: figures with their targets, the machine that they come from, and how quiet it was; kept as JSON.

::

    {"schema": 1, "benchmark": NAME, "claim": …, "date": …, "seconds": …, "machine": {…},
     "noise": {"quiet": true, "reasons": [], …}, "figures": [FIGURE, …], "details": {…}}

Each figure has name, value, unit, target and met. `bound` says whether the target is the most or the least that is
allowed; a figure without a target has null for target and met. `low` and `high` say how far the value varied, `least`
what the smallest times alone would give. On a noisy machine nothing is met or missed: met is null.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from dynamos_ng.errors import UsageError

SCHEMA = 1
MOST, LEAST = "most", "least"
_KEYS: dict[str, type | tuple[type, ...]] = {
    "schema": int, "benchmark": str, "claim": str, "date": str, "seconds": (int, float), "machine": dict,
    "noise": dict, "figures": list, "details": dict,
}  # fmt: skip


def _first(path: str, prefix: str) -> str:
    """Return what follows PREFIX and a colon in a file, or ""."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(prefix)), "")


def _said(*argv: str) -> str:
    """Return the first line that a program prints, or ""."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False, cwd=Path(__file__).parent)
    except OSError:
        return ""
    return done.stdout.partition("\n")[0].strip() if done.returncode == 0 else ""


def _machine() -> dict[str, Any]:
    """Return what this machine is, as far as it matters to a figure."""
    vulnerabilities = Path("/sys/devices/system/cpu/vulnerabilities")
    return {
        "processor": _first("/proc/cpuinfo", "model name"),
        "family": "/".join(_first("/proc/cpuinfo", key) for key in ("cpu family", "model\t", "stepping")),
        "virtual": "hypervisor" in _first("/proc/cpuinfo", "flags").split(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2),
        "kernel": re.match(r"[\d.]*", platform.release())[0],  # type: ignore[index]
        "gcc": _said("gcc", "-dumpfullversion"),
        "mitigations": {
            path.name: text
            for path in sorted(vulnerabilities.glob("*"))
            if (text := path.read_text().strip()) != "Not affected"
        },
        "commit": _said("git", "-c", "safe.directory=*", "describe", "--always", "--dirty"),
    }


@dataclass(frozen=True)
class Figure:
    """One measured number. `text` says in words what it is."""

    name: str
    value: float
    unit: str
    text: str = ""
    target: float | None = None
    bound: str = MOST
    low: float | None = None
    high: float | None = None
    least: float | None = None

    def __post_init__(self) -> None:
        if self.bound not in (MOST, LEAST):
            raise ValueError(f"bound {self.bound}")
        for name in ("value", "low", "high", "least"):
            if isinstance(number := getattr(self, name), float):
                object.__setattr__(self, name, _rounded(number))

    def met(self, quiet: bool = True) -> bool | None:
        """Return whether the target is reached; None without a target, or if the machine was not QUIET."""
        if self.target is None or not quiet:
            return None
        return self.value <= self.target if self.bound == MOST else self.value >= self.target


@dataclass(frozen=True)
class Noise:
    """Whether the machine let itself be measured; `reasons` say what was in the way, `measured` the numbers."""

    reasons: tuple[str, ...] = ()
    measured: dict[str, float] = field(default_factory=dict)

    @property
    def quiet(self) -> bool:
        """Return whether the figures decide anything."""
        return not self.reasons


@dataclass(frozen=True)
class Report:
    """What one benchmark found."""

    benchmark: str
    claim: str
    figures: tuple[Figure, ...]
    noise: Noise = field(default_factory=Noise)
    seconds: float = 0.0
    machine: dict[str, Any] = field(default_factory=_machine)
    details: dict[str, Any] = field(default_factory=dict)
    date: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @property
    def missed(self) -> tuple[Figure, ...]:
        """Return the figures that do not reach their targets."""
        return tuple(figure for figure in self.figures if figure.met(self.noise.quiet) is False)

    def to_json(self) -> str:
        """Return the report as text."""
        figures = [{**asdict(figure), "met": figure.met(self.noise.quiet)} for figure in self.figures]
        measured = {name: _rounded(number) for name, number in self.noise.measured.items()}
        noise = {"quiet": self.noise.quiet, "reasons": list(self.noise.reasons), **measured}
        value = {
            "schema": SCHEMA, "benchmark": self.benchmark, "claim": self.claim, "date": self.date,
            "seconds": round(self.seconds, 1), "machine": self.machine, "noise": noise, "figures": figures,
            "details": self.details,
        }  # fmt: skip
        return json.dumps(value, indent=1, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> Path:
        """Write the report into FOLDER, in place of the last one of its name; return the file."""
        path = folder / f"{self.benchmark}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_text(self.to_json())
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}: give another folder with --output") from None
        return path


def read(path: Path) -> Report:
    """Return a report that `write` wrote; UsageError says what is wrong with another file."""
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: not a benchmark's report: {error}") from None
    for key, kind in _KEYS.items():
        if not isinstance(value, dict) or not isinstance(value.get(key), kind):
            raise UsageError(f"{path}: not a benchmark's report: {key} is missing, or is of another type")
    if value["schema"] != SCHEMA:
        raise UsageError(f"{path}: schema {value['schema']}: this version reads {SCHEMA}")
    noise = dict(value["noise"])
    quiet, reasons = noise.pop("quiet", None), tuple(noise.pop("reasons", ()))
    if quiet is not (not reasons):
        raise UsageError(f"{path}: noise: quiet is {quiet}, and the reasons against it are {list(reasons)}")
    return Report(
        value["benchmark"], value["claim"], tuple(_figures(path, value["figures"], quiet)), Noise(reasons, noise),
        value["seconds"], value["machine"], value["details"], value["date"],
    )  # fmt: skip


def _figures(path: Path, values: list[Any], quiet: bool) -> Iterable[Figure]:
    for value in values:
        try:
            met = value.pop("met")
            figure = Figure(**value)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{path}: {value}: not a figure: {error}") from None
        if figure.met(quiet) is not met:
            raise UsageError(f"{path}: {figure.name}: met is {met}, which does not follow from value and target")
        yield figure


def _rounded(number: float) -> float:
    """Return a number with five digits, which no measurement exceeds."""
    return float(f"{number:.5g}")
