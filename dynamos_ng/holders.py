"""Who is inside: holders of code told by function, edition and stack."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType

from dynamos_ng.kallsyms import Symbols
from dynamos_ng.model import Holder, StackWalk, Update


def placed(holder: Holder, ranges: Sequence[tuple[int, int, str, int]], symbols: Symbols | None) -> Holder:
    """Say in which edition of which function a holder is, and name its frames."""
    stack = tuple(symbols.label(frame) for frame in holder.frames) if symbols else ()
    for start, end, name, edition in ranges:
        if start <= holder.address < end:
            return replace(holder, function=name, edition=edition, stack=stack)
    return replace(holder, stack=stack)


def once_each(walk: StackWalk, some: Sequence[Holder]) -> StackWalk:
    """Return a walk with SOME of its holders, the innermost of each task; those without room are counted as tasks."""
    once = {(holder.pid, holder.comm): holder for holder in reversed(some)}
    left = tuple(reversed(once.values()))
    return replace(walk, holders=left, found=len(left) + walk.found - len(walk.holders))


def disjoint(ranges: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield ranges in their order, without what an earlier one has: images of functions may overlap."""
    last = 0
    for start, end in sorted(ranges):
        if end > max(start, last):
            yield max(start, last), end
            last = end


def held(
    verb: str,
    update: Update,
    walk: StackWalk,
    wait: float,
    active: bool,
    *,
    why: str = "",
    unmoved: Mapping[int, str] = MappingProxyType({}),
) -> str:
    """Say who is in the way of a removal and what is true now: `why` it is Busy, and who could not be nudged."""
    lines = [
        f"{verb} {update.name}: still in use after {wait:g} s; "
        + ("it stays active" if active else "it stays loaded")
        + "; wait longer with --wait"
    ]
    for holder in walk.holders:
        lines.append(
            f"  TID {holder.pid} ({holder.comm}, PID {holder.tgid}) sleeps in "
            f"{holder.function} v{holder.edition} at {holder.address:#x}"
            + (f" ({unmoved[holder.pid]})" if holder.pid in unmoved else "")
        )
        lines += [f"    {frame}" for frame in holder.stack]
    if not walk.holders:
        lines += [f"  {why}"] * bool(why)
        lines.append("  no stack shows it any more: a call ended just now; try again")
    return "\n".join(lines)
