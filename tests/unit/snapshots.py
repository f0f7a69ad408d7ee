"""Snapshots of a kernel that never was: what tests of the dashboard show."""

from __future__ import annotations

from collections.abc import Sequence

from dynamos_ng.latency import EditionLatency, Latency
from dynamos_ng.model import (
    CallCounts,
    Cost,
    Edition,
    EditionUse,
    Event,
    Function,
    FunctionState,
    FunctionStatus,
    Holder,
    PendingUpdate,
    Phase,
    Policy,
    Quiescence,
    SampledStack,
    Snapshot,
    StackWalk,
    UpdateStatus,
)

IDLE = Phase(0, consistent=False, phased=False, must_update=False, pinned=0)
DELAYED = Phase(1, False, True, True, 0, 0, Holder(7, 7, "cat", 20, 1))
#: Classes 4 to 7 get edition 2.
ROW = bytes([1] * 4 + [2] * 4 + [1] * 248)
BEGIN = 1_700_000_000.0


def status(name: str, entered: Sequence[int], inside: int = 0, **more: object) -> FunctionStatus:
    """Return a function with so many entries of each edition, and so many calls in flight in the first."""
    number = sum(map(ord, name))
    editions = tuple(Edition(n + 1, 16, 24) for n in range(len(entered)))
    function = Function(
        number, name, "dynamos_u", FunctionState.REDIRECTED, 0xFFFFFFFF81000000 + number, 96, 0, 4096 + number, 0,
        b"", b"", editions, module=str(more.get("module", "")),
    )  # fmt: skip
    uses = tuple(EditionUse(n + 1, count, count - (0 if n else inside)) for n, count in enumerate(entered))
    probes = CallCounts(int(str(more["probes"])), 0, 0) if "probes" in more else None
    notes = (str(more["note"]),) if "note" in more else ()
    return FunctionStatus(function, uses, ROW, probes, notes)


def snapshot(second: int, functions: int = 0, state: FunctionState = FunctionState.REDIRECTED) -> Snapshot:
    """Return what is to be seen at a second: three updates, the last of them with so many functions."""
    pipe = status("pipe_read", (40 * second, 0, 0), 3, probes=40 * second, note="kprobe p:x is silent")
    many = tuple(status(f"many_{n:03}", (n * second,)) for n in range(functions))
    return Snapshot(
        (
            UpdateStatus("cmdline", state, IDLE, (status("cmdline_proc_show", (1000 * second, 7 * second), 1),)),
            UpdateStatus("pipe", state, DELAYED, (pipe, status("pipe_write", (0, 0, 0), module="ext4"))),
            UpdateStatus("mass", FunctionState.DRAINING, IDLE, many),
        ),
        "bcc",
        (PendingUpdate("fix", "/fix", ("dm_mod",)),),
        taken=BEGIN + second,
        uptime=5000.0 + second,
        daemon=Cost(1, 0.012 * second, 61_000_000),
        watcher=Cost(2, 0.034 * second, 41_000_000),
        events=(
            Event(BEGIN, "root (dynamos 12)", "activate cmdline", "[enabled], 350 µs in the stop"),
            Event(BEGIN + 1, "root (dynamos 13)", "unload cmdline", "refused: still in use", refused=True),
        ),
        policy=Policy(((143, 1, "bash"), (144, 1, "less")), (("less", 4),), (("cmdline_proc_show", ROW),)),
        quiescence=(quiescence("pipe_read"),),
        latency=(Latency("pipe_read", 1.0, (EditionLatency(1, 900, 9, 0, ((240, 900),)),)),),
    )


def quiescence(function: str, holders: int = 4) -> Quiescence:
    """Return what is known of a function with holders."""
    inside = tuple(
        Holder(100 + n, 100 + n, "rea\x1b[31mder", 1, 1, function, n % 2, (), ("__schedule+0x1", "schedule+0x5"))
        for n in range(holders)
    )
    walk = StackWalk(inside, holders, 60, 300, 250_000)
    sampled = (SampledStack(5, ("copy_page+0x4", "pipe_read_v1+0x2")),)
    return Quiescence(function, FunctionState.REDIRECTED, (EditionUse(1, 9, 5),), walk, None, 7, sampled)
