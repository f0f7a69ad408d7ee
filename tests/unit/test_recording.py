"""Recordings: what is packed and torn is read back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from dynamos_ng.errors import UsageError
from dynamos_ng.jsonlines import PACKED, Lines, content, numbered
from dynamos_ng.model import Snapshot
from dynamos_ng.recording import NAME, Recorder, Recording
from dynamos_ng.wire import plain


def record(folder: Path, *seconds: int) -> None:
    """Have two daemons record snapshots, in files that are soon full."""
    for some in (seconds[:2], seconds[2:]):
        with Lines(folder, NAME, kept=9, size=400, packs=True) as lines:
            for n in some:
                lines.append(plain(Snapshot((), "bcc", taken=float(n), uptime=n / 2)), sync=False)


def test_snapshots_are_read_back_one_by_one_and_torn_ones_counted(tmp_path: Path) -> None:
    record(tmp_path, *range(9))
    *full, newest = numbered(tmp_path, NAME)
    assert full
    assert all(file.suffix == PACKED for file in full)
    assert len(list(tmp_path.iterdir())) == len(full) + 1
    assert all(file.stat().st_mode & 0o077 == 0 for file in tmp_path.iterdir())
    newest.write_bytes(newest.read_bytes()[:-3])
    recording = Recording(tmp_path)
    assert (len(recording), recording.torn) == (8, 1)
    assert [recording.snapshot(n) for n in (7, 0)] == [
        Snapshot((), "bcc", taken=7.0, uptime=3.5), Snapshot((), "bcc")
    ]  # fmt: skip
    assert [recording.snapshot(n).taken for n in range(8)] == list(range(8))


def test_a_file_that_is_packed_meanwhile_or_was_cut_off_in_it_is_read_once(tmp_path: Path) -> None:
    record(tmp_path, *range(3))
    (first, *_) = numbered(tmp_path, NAME)
    plain_name = first.with_suffix("")
    plain_name.write_bytes(content(first))
    assert len(Recording(tmp_path)) == 3, "both are there"
    plain_name.unlink()
    assert content(plain_name), "it was there a moment ago"


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    record(tmp_path, *range(3))
    (first, *_) = numbered(tmp_path, NAME)
    first.write_bytes(first.read_bytes()[:-9])
    with pytest.raises(UsageError, match="damaged"):
        Recording(tmp_path)


@pytest.mark.parametrize(("text", "said"), [("", "there are no snapshots"), ('{"updates": 3}\n', "snapshot 1")])
def test_a_file_that_holds_no_snapshot_is_told(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "file").write_text(text)
    with pytest.raises(UsageError, match=said):
        Recording(tmp_path / "file").snapshot(0)


def test_a_recorder_writes_until_it_is_closed(tmp_path: Path) -> None:
    taken: list[Snapshot] = []

    def take() -> Snapshot:
        taken.append(Snapshot((), "bcc", taken=float(len(taken))))
        if len(taken) > 3:
            enough.set()
        return taken[-1]

    enough = threading.Event()
    with Recorder(tmp_path, 0.01, take):
        assert enough.wait(60)
    recording = Recording(tmp_path)
    assert [recording.snapshot(n) for n in range(len(recording))] == taken
