"""The survey: which of a kernel's functions can be cloned, what is special about each, and why the others are refused.

Functions are counted, not symbols. Every code symbol between `_stext` and `_etext` belongs to one address; further
symbols at an address are aliases. An address is no function if all its symbols are labels of one of these classes:

- ``section bound``: put there by the linker script (`_stext`, `__sched_text_end`, …)
- ``cold part``: `NAME.cold`, which the compiler split from a function; it is cloned with that function
- ``static call trampoline``: between `__static_call_text_start` and `_end`; the kernel writes its jump
- ``branch thunk``: between `__indirect_thunk_start` and `_end`, or named as a return or indirect branch thunk
- ``entry code``: between `__entry_text_start` and `_end`, where the processor enters the kernel; no C calls it
- ``hypercall slot``: in the page that a hypervisor fills
- ``padding``: `__pfx_NAME`, the bytes before a function
- ``assembler label``: begins with a dot, as no function can

All other addresses are functions: noinstr code, functions in assembler, and assembler's inner labels that nothing tells
from these.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from dynamos_ng.arch import DIRECT, Kind
from dynamos_ng.errors import ImageError, Refusal
from dynamos_ng.image import Kernel
from dynamos_ng.kallsyms import Named
from dynamos_ng.rewrite import Original, examine, reader, safety
from dynamos_ng.rewrite.kernel import Kernel as Code
from dynamos_ng.rewrite.kernel import Symbol
from dynamos_ng.rewrite.reader import Body

LABELS = (
    "section bound", "cold part", "static call trampoline", "branch thunk", "entry code", "hypercall slot", "padding",
    "assembler label",
)  # fmt: skip
#: What a function can hold, in the order of the table.
TRAITS = (
    "ftrace site", "jumps out", "cold part", "WARN or BUG", "static key", "static call", "exception table entry",
    "indirect jump", "indirection table", "short-only branch", "several entrypoints", "branch into trampoline",
    "too short", "its address as data", "never returns", "forbidden (noinstr, …)",
)  # fmt: skip
_BOUND = re.compile(r"_s?text|_[se]text|__\w+_text_(start|end)|__indirect_thunk_(start|end)")
_COLD = re.compile(r".+\.cold(\.\d+)?")
_THUNK = re.compile(r"__x86_(indirect|return)\w*|(retbleed|srso|srso_alias|its)_(untrain_ret|safe_ret|return_thunk)")
_AREAS = (
    ("__static_call_text_start", "__static_call_text_end", "static call trampoline"),
    ("__indirect_thunk_start", "__indirect_thunk_end", "branch thunk"),
    ("__entry_text_start", "__entry_text_end", "entry code"),
)
_PAGE = 4096
_CHUNK = 64


@dataclass(frozen=True)
class Census:
    """Who is counted: code symbols of the text, aliases among them, labels by class, and the functions."""

    symbols: int
    aliases: int
    labels: dict[str, int]
    functions: tuple[Symbol, ...]


class Finding(NamedTuple):
    """What is known of a function: its traits as bits in the order of TRAITS; `kind` and `reason` are "" if it can be
    cloned.

    `inside` holds the targets of its jumps into the middle of other functions.
    """

    symbol: Symbol
    traits: int
    kind: str
    reason: str
    inside: tuple[int, ...]

    @property
    def traceable(self) -> bool:
        """Return whether it has a ftrace site."""
        return bool(self.traits & 1)


@dataclass(frozen=True)
class Survey:
    """All findings of a kernel, with the costs: wall and processor seconds, and bytes of memory at their peak."""

    release: str
    architecture: str
    census: Census
    findings: tuple[Finding, ...]
    seconds: float
    cpu_seconds: float
    peak_memory: int

    def report(self) -> dict[str, Any]:
        """Return the figures as plain values for JSON."""
        functions = self.findings
        fine = [one for one in functions if not one.kind]
        refused: dict[str, dict[str, Any]] = {}
        for one in functions:
            if one.kind:
                entry = refused.setdefault(one.kind, {"count": 0, "traceable": 0, "example": one.reason})
                entry["count"] += 1
                entry["traceable"] += one.traceable
        return {
            "release": self.release,
            "architecture": self.architecture,
            "symbols": self.census.symbols,
            "aliases": self.census.aliases,
            "labels": self.census.labels,
            "functions": len(functions),
            "traceable": sum(one.traceable for one in functions),
            "cloneable": len(fine),
            "cloneable_traceable": sum(one.traceable for one in fine),
            "traits": {
                name: {
                    "count": sum(one.traits >> bit & 1 for one in functions),
                    "cloneable": sum(one.traits >> bit & 1 for one in fine),
                }
                for bit, name in enumerate(TRAITS)
            },
            "plain": {
                "count": sum(one.traits <= 1 for one in functions),
                "cloneable": sum(one.traits <= 1 for one in fine),
            },
            "refused": dict(sorted(refused.items(), key=lambda item: (-item[1]["count"], item[0]))),
            "seconds": round(self.seconds, 2),
            "cpu_seconds": round(self.cpu_seconds, 2),
            "peak_memory": self.peak_memory,
        }


def census(kernel: Kernel) -> Census:
    """Return who is counted, by the rule that this module's docstring tells."""
    code = [symbol for symbol in kernel.symbols.code() if kernel.in_text(symbol.address)]
    areas = []
    for first, last, words in _AREAS:
        start, end = kernel.symbols.address(first), kernel.symbols.address(last)
        if start is not None and end is not None:
            areas.append((start, end, words))
    page = kernel.symbols.address("hypercall_page")
    if page is not None:
        areas.append((page, page + _PAGE, "hypercall slot"))
    labels: Counter[str] = Counter()
    functions = []
    addresses = 0
    for address, group in groupby(code, key=lambda symbol: symbol.address):
        addresses += 1
        names = list(group)
        area = next((words for start, end, words in areas if start <= address < end), "")
        kinds = {named.name: _label(named, area) for named in names}
        name = next((name for name, kind in kinds.items() if not kind), None)
        if name is None:
            labels[max(kinds.values(), key=LABELS.index)] += 1
        else:
            functions.append(Symbol(name, address, kernel.symbols.after(address) - address))
    return Census(len(code), len(code) - addresses, {name: labels[name] for name in LABELS}, tuple(functions))


def _label(named: Named, area: str) -> str:
    """Return the class of label that a symbol in AREA belongs to, "" for a function."""
    name = named.name
    if _BOUND.fullmatch(name):
        return "section bound"
    if area:
        return area
    if name.startswith("."):
        return "assembler label"
    if name.startswith("__pfx_"):
        return "padding"
    if _COLD.fullmatch(name):
        return "cold part"
    return "branch thunk" if _THUNK.fullmatch(name) else ""


def look(kernel: Code, symbol: Symbol) -> tuple[Finding, Original | None, Body | None]:
    """Examine a function; return what is found, and its original and body as far as they can be had."""
    original: Original | None = None
    body: Body | None = None
    kind = reason = ""
    try:
        original = examine(kernel, symbol)
        body = original.body
    except Refusal as refusal:
        kind, reason = refusal.kind, str(refusal)
        with suppress(Refusal):
            body = reader.read(kernel, symbol)
    traits, inside = _traits(kernel, body, original)
    if kind in _TOLD:
        traits.add(_TOLD[kind])
    if kernel.forbidden(symbol.address, symbol.end):
        traits.add("forbidden (noinstr, …)")
    bits = sum(1 << bit for bit, name in enumerate(TRAITS) if name in traits)
    return Finding(symbol, bits, kind, reason, tuple(inside)), original, body


#: What a refusal says of the function by itself.
_TOLD = {
    "too short for a trampoline": "too short",
    "its address used as data": "its address as data",
    "branch into the trampoline's bytes": "branch into trampoline",
    "runs on into the next symbol": "several entrypoints",
}


def _traits(kernel: Code, body: Body | None, original: Original | None) -> tuple[set[str], list[int]]:
    """Return what a function holds, and the places inside other functions that it jumps to."""
    if body is None or not body.parts[0].instructions:
        return set(), []
    first = [i for i in body.parts[0].instructions[:2] if i.code not in kernel.arch.endbr][:1]
    traits = {"ftrace site"} if first and safety.is_ftrace_site(kernel, first[0]) else set()
    traits.update("cold part" if _COLD.fullmatch(part.name) else "several entrypoints" for part in body.parts[1:])
    traits.update(name for name, table in _tables(kernel).items() if any(table(p.address, p.end) for p in body.parts))
    inside, leaves = _branches(kernel, body, traits)
    if not leaves:
        traits.add("never returns")
    if original is not None and original.indirection.tables:
        traits.add("indirection table")
    return traits, inside


def _tables(kernel: Code) -> dict[str, Callable[[int, int], Sequence[object]]]:
    """Return the kernel's tables of places in its code, by the trait that an entry means."""
    return {
        "WARN or BUG": kernel.bugs,
        "static key": kernel.static_keys,
        "static call": kernel.static_calls,
        "exception table entry": kernel.fixups,
    }


def _branches(kernel: Code, body: Body, traits: set[str]) -> tuple[list[int], bool]:
    """Add what the branches tell to TRAITS; return targets inside other functions, and whether anything leaves."""
    thunks = kernel.return_thunks()
    start, site = body.address, body.address + kernel.arch.trampoline
    inside: list[int] = []
    leaves = False
    for instruction in body.special:
        kind, target = instruction.kind, instruction.target
        if kind is Kind.RETURN:
            leaves = True
        elif kind is Kind.JUMP_INDIRECT:
            traits.add("indirect jump")
            leaves = True
        elif kind in DIRECT and target is not None:
            if kind is Kind.LOOP:
                traits.add("short-only branch")
            if start < target < site:
                traits.add("branch into trampoline")
            if kind is Kind.CALL or target in body.boundaries:
                continue
            if any(part.address <= target < part.limit for part in body.parts):
                continue
            leaves = True
            if target not in thunks:
                traits.add("jumps out")
                names = kernel.names(target)
                if not names:
                    inside.append(target)
                elif any("indirect_thunk" in name for name in names):
                    traits.add("indirect jump")
    return inside, leaves


def release(kernel: Kernel) -> str:
    """Return the release that the kernel's own banner tells; ImageError if there is none."""
    wanted = b"Linux version "
    banner = kernel.symbols.address("linux_banner")
    place = banner if banner is not None else kernel.symbols.address("_etext")
    raw = b""
    while place is not None and len(raw) < 1 << 24:
        try:
            raw += kernel.read(place + len(raw), _PAGE)
        except ImageError:
            break
        if (at := raw.find(wanted)) >= 0 and len(raw) > at + 256:
            return raw[at + len(wanted) :].split(b" ")[0].decode()
    raise ImageError("the image holds no banner that tells its release")


#: What worker processes work on: they are forked, and inherit it.
_work: tuple[Kernel, Sequence[Symbol]] | None = None


#: What a finding says besides its symbol.
_Told = tuple[int, str, str, tuple[int, ...]]


def _look_at(start: int) -> list[_Told]:
    """Return findings without their symbols, which the asker has: less to hand over."""
    assert _work is not None
    kernel, functions = _work
    found = [look(kernel, symbol)[0] for symbol in functions[start : start + _CHUNK]]
    return [(one.traits, one.kind, one.reason, one.inside) for one in found]


def survey(kernel: Kernel, progress: Callable[[int, int], None] = lambda _done, _total: None) -> Survey:
    """Look at all functions, with a process per CPU; PROGRESS is told how many are done, of how many."""
    began, cpu = time.monotonic(), _cpu()
    with ThreadPoolExecutor(1) as beside:
        tables = beside.submit(kernel.bugs, 0, 0)  # a vmlinux may have to be unpacked for the first of them
        who = census(kernel)
        tables.result()
    found: list[Finding] = []
    processes = min(os.cpu_count() or 1, 2)
    for chunk in _chunks(kernel, who.functions, processes):
        symbols = who.functions[len(found) : len(found) + len(chunk)]
        found += [Finding(symbol, *told) for symbol, told in zip(symbols, chunk, strict=True)]
        progress(len(found), len(who.functions))
    entered = {target for one in found for target in one.inside}
    several = 1 << TRAITS.index("several entrypoints")
    owners = {owner.address for owner in map(kernel.containing, entered) if owner is not None}
    findings = tuple(
        one._replace(traits=one.traits | several) if one.symbol.address in owners else one for one in found
    )
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if processes > 1:
        memory += processes * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return Survey(
        release(kernel), kernel.arch.name, who, findings, time.monotonic() - began, _cpu() - cpu, memory * 1024
    )


def _chunks(kernel: Kernel, functions: Sequence[Symbol], processes: int) -> Iterator[list[_Told]]:
    global _work  # noqa: PLW0603 - forked processes find it here
    _work = kernel, functions
    try:
        yield _look_at(0)  # reads the kernel's tables before the fork, once for all
        starts = range(_CHUNK, len(functions), _CHUNK)
        if processes == 1:
            yield from map(_look_at, starts)
            return
        gc.freeze()
        with multiprocessing.get_context("fork").Pool(processes, gc.disable) as pool:
            yield from pool.imap(_look_at, starts, chunksize=4)
            pool.close()
            pool.join()
    finally:
        gc.unfreeze()
        _work = None


def _cpu() -> float:
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usage)


def why(kernel: Code, name: str) -> dict[str, Any]:
    """Return all that is known of one function: parts, entry, what it holds, cloneable or the refusal."""
    symbol = kernel.function(name)
    finding, original, body = look(kernel, symbol)
    parts = body.parts if body else ()
    return {
        "function": name,
        "address": f"{symbol.address:#x}",
        "aliases": [other for other in kernel.names(symbol.address) if other != name],
        "parts": [
            {"name": part.name, "address": f"{part.address:#x}", "size": part.end - part.address,
             "instructions": len(part.instructions)}
            for part in parts
        ],
        "traceable": finding.traceable,
        "trampoline": f"{original.entry.site:#x}" if original else None,
        "traits": [trait for bit, trait in enumerate(TRAITS) if finding.traits >> bit & 1],
        "tables": {what: sum(len(at(p.address, p.end)) for p in parts) for what, at in _tables(kernel).items()},
        "cloneable": not finding.kind,
        "refusal": finding.reason or None,
        "refused_as": finding.kind or None,
    }  # fmt: skip
