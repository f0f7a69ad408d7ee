"""Who else changes or watches a kernel function: live patches, and kprobes in its body."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dynamos_ng.kprobes import LIST, tracefs

LIVEPATCH = Path("/sys/kernel/livepatch")

_LISTED = re.compile(r"^([0-9a-f]+)  [kr]  (\S+)\+(0x[0-9a-f]+)", re.MULTILINE)
_EVENT = re.compile(r"^[pr]\d*:(\S+) (?:\S+:)?([^\s+%]+)(?:\+(\d+))?", re.MULTILINE)  # of an address, a hash is shown


@dataclass(frozen=True)
class Kprobe:
    """A kprobe: its address, its place as symbol+offset, and the tracefs events that were defined by that place."""

    address: int
    place: str
    events: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"kprobe at {self.place}" + (f" ({', '.join(self.events)})" if self.events else "")


def parse_kprobes(listed: str, events: str) -> tuple[Kprobe, ...]:
    """Return the kprobes of debugfs's list, with the names that tracefs's kprobe_events has for their places."""
    named: dict[tuple[str, int], list[str]] = {}
    for name, symbol, offset in _EVENT.findall(events):
        named.setdefault((symbol, int(offset or 0)), []).append(name)
    found = {}
    for digits, symbol, offset in _LISTED.findall(listed):
        names = named.get((symbol, int(offset, 16)), ())
        found[int(digits, 16)] = Kprobe(int(digits, 16), f"{symbol}+{offset}", tuple(names))
    return tuple(found.values())


def kprobes() -> tuple[Kprobe, ...]:
    """Return all kprobes of this kernel; OSError where debugfs is not to be had."""
    return parse_kprobes(LIST.read_text(), (tracefs() / "kprobe_events").read_text())


def within(probes: Iterable[Kprobe], start: int, end: int) -> tuple[Kprobe, ...]:
    """Return those kprobes that stand at START or behind it and before END."""
    return tuple(probe for probe in probes if start <= probe.address < end)


def livepatches(function: str, folder: Path = LIVEPATCH, module: str = "") -> tuple[tuple[str, int], ...]:
    """Return the live patches that replace a function, of the kernel proper unless MODULE is given: name, and position
    among its namesakes.

    A patch counts from before its transition until its reversal has ended.
    """
    return tuple(
        (patch, int(position))
        for patch in _listed(folder)
        for name, _, position in (entry.rpartition(",") for entry in _listed(folder / patch / (module or "vmlinux")))
        if name == function
    )


def _listed(folder: Path) -> list[str]:
    """Return the names in a folder; none if there is no such folder any more."""
    try:
        return sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return []
