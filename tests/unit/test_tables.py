"""Tables: what an administrator reads at 80 columns."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from dynamos_ng.cli import tables
from dynamos_ng.model import (
    CallCounts,
    Confirmation,
    Edition,
    EditionUse,
    Function,
    FunctionState,
    FunctionStatus,
    Holder,
    PendingUpdate,
    Phase,
    Policy,
    Quiescence,
    Snapshot,
    StackWalk,
    UpdateStatus,
)
from dynamos_ng.wire import plain

ROW = bytes([1, 2, 2]) + bytes(253)
FUNCTION = Function(
    0, "cmdline_proc_show", "dynamos_cmdline", FunctionState.REDIRECTED, 16, 16, 16, 16, 32, b"", b"",
    (Edition(1, 16, 24), Edition(2, 24, 32)),
)  # fmt: skip
PHASE = Phase(0, consistent=False, phased=False, must_update=False, pinned=0)
USES = (EditionUse(1, 1234567, 1234560), EditionUse(2, 9, 9))


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """Return what is printed on a terminal of 80 columns."""
    output = StringIO()
    monkeypatch.setattr(tables, "console", Console(width=80, file=output, highlight=False))
    return output


def lines(screen: StringIO) -> list[str]:
    found = [line.rstrip() for line in screen.getvalue().splitlines()]
    assert max(map(len, found)) <= 80
    return found


def test_status_tells_state_use_and_classes_of_each_edition(screen: StringIO) -> None:
    status = FunctionStatus(FUNCTION, USES, ROW, None)
    snapshot = Snapshot((UpdateStatus("cmdline", FunctionState.REDIRECTED, PHASE, (status,)),), "libbpf")
    tables.status(plain(snapshot))
    engine, update, _, first, second = lines(screen)
    assert engine == "probes: libbpf"
    assert update.split() == ["cmdline", "[enabled]"]
    assert first.split() == ["cmdline_proc_show", "v1", "1234567", "1234560", "7", "0,3-255"]
    assert second.split() == ["v2", "9", "9", "0", "1-2"]


@pytest.mark.parametrize(
    ("confirmation", "said"),
    [
        (Confirmation("waiting", 42), "in 42 s, unless it is confirmed: dynamos confirm cmdline"),
        (Confirmation("reverting", 0, "a hook of the update refused"), "taken back; not yet: a hook of the update"),
        (Confirmation("reverted"), "it was taken back by itself"),
    ],
)
def test_status_tells_what_becomes_of_an_update_that_is_to_be_confirmed(
    screen: StringIO, confirmation: Confirmation, said: str
) -> None:
    update = UpdateStatus("cmdline", FunctionState.REDIRECTED, PHASE, (), confirmation=confirmation)
    tables.status(plain(Snapshot((update,), "bcc")))
    assert said in " ".join(" ".join(lines(screen)).split())


@pytest.mark.parametrize(
    ("phase", "said"),
    [
        (Phase(0, consistent=True, phased=False, must_update=False, pinned=3), "3 tasks keep to v1"),
        (Phase(1, False, True, True, 0, 0, Holder(7, 7, "cat", 20, 1)), "phase 3 is wanted; TID 7 (cat) is, at 20"),
    ],
)
def test_status_tells_who_keeps_an_update_from_getting_on(screen: StringIO, phase: Phase, said: str) -> None:
    """Even where names are as long as they may be."""
    function = replace(FUNCTION, name="f" * 40)
    statuses = (FunctionStatus(function, USES, ROW, None),)
    tables.status(plain(Snapshot((UpdateStatus("u" * 40, FunctionState.REDIRECTED, phase, statuses),), "bcc")))
    text = " ".join(lines(screen))
    assert f"{'u' * 40} [enabling...]" in text
    assert "f" * 30 in text
    assert said in text


def test_status_tells_which_module_a_function_keeps_and_which_update_waits_for_one(screen: StringIO) -> None:
    status = FunctionStatus(replace(FUNCTION, name="f", module="ext4"), USES, ROW, None)
    waiting = PendingUpdate("fix", "/fix", ("dm_mod",), failure="dm_mod: too old")
    tables.status(plain(Snapshot((UpdateStatus("u", FunctionState.REDIRECTED, PHASE, (status,)),), "bcc", (waiting,))))
    text = "\n".join(lines(screen))
    assert "fix: [pending], waits for module dm_mod\n  when it was loaded last: dm_mod: too old\n" in text
    assert "u [enabled]\n" in text
    assert "\n  ext4:f " in text


def test_status_goes_on_telling_what_is_to_be_known_of_a_function(screen: StringIO) -> None:
    notes = ("probes do not count the original: the kernel allows no probes there", "livepatch fix replaces it")
    status = FunctionStatus(FUNCTION, USES, ROW, None, notes)
    tables.status(plain(Snapshot((UpdateStatus("cmdline", FunctionState.REDIRECTED, PHASE, (status,)),), "bcc")))
    text = " ".join(lines(screen))
    assert all(f"cmdline_proc_show: {note}" in text for note in notes)


def test_quiescence_names_who_is_inside_and_what_probes_missed(screen: StringIO) -> None:
    holders = tuple(
        Holder(100 + n, 100 + n, "reader", 20, 1, "cmdline_proc_show", 1, (), ("__schedule+0x1", "schedule+0x5"))
        for n in range(20)
    )
    value: Any = Quiescence(
        "cmdline_proc_show", FunctionState.REDIRECTED, USES, StackWalk(holders, 20, 60, 3000, 250_000),
        CallCounts(50, 40, 3), 7,
    )  # fmt: skip
    tables.quiescence([plain(value)])
    text = "\n".join(lines(screen))
    assert "in use; 60 stacks read, 250 µs in the stop" in text
    assert "original, BPF       50       40   3 missed" in text
    assert "100  reader  v1      __schedule < schedule" in text
    assert "and 8 more" in text


def test_policy_names_processes_rules_and_editions(screen: StringIO) -> None:
    tables.policy(plain(Policy(((143, 1, "bash"),), (("less", 4),), (("cmdline_proc_show", ROW),))))
    text = "\n".join(lines(screen))
    assert "PID 143 (bash)" in text
    assert "exec of less" in text
    assert "cmdline_proc_show  v1       0,3-255" in text
