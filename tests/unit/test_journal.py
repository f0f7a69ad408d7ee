"""The journal: what is written, what a crash leaves, how it is bounded, and what is told of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from dynamos_ng import cli, history, journal
from dynamos_ng.errors import DynamosError, UsageError
from dynamos_ng.journal import NAME, Entry, Journal
from dynamos_ng.jsonlines import Lines, numbered
from dynamos_ng.model import Peer

ADMIN = Peer(0, 4711, "dynamos")
HOLDER = {"pid": 7, "comm": "cat", "edition": 1, "frames": [1, 2], "stack": ["schedule+0x5"]}


def activated(holders: int = 0, functions: int = 1) -> dict[str, Any]:
    """Return the daemon's answer to an activation."""
    walk = {"holders": [HOLDER] * holders, "found": holders, "tasks": 60, "words": 3, "stop_ns": 9000}
    uses = [{"number": 1, "entered": 12, "exited": 10}]
    measured = [
        {"function": f"f{n}", "state": "redirected", "uses": uses, "walk": walk, "probes": None, "samples": None}
        for n in range(functions)
    ]
    return {
        "result": {
            "verb": "activate", "update": "fix", "state": "redirected", "before": measured, "after": measured,
            "stop_ns": 350_000, "notes": [],
        }
    }  # fmt: skip


def write(folder: Path, *answers: dict[str, Any]) -> None:
    """Have a daemon live that makes changes with these answers."""
    with Journal(folder) as kept:
        kept.note(journal.START, {"version": "1"}, {"result": {"functions": []}})
        for answer in answers:
            kept.end(kept.begin(ADMIN, "activate", {"name": "fix", "classes": [1, 2], "edition": None}), answer)


def told(*arguments: object) -> int:
    return cli.main(["history", *map(str, arguments)])


def test_a_change_is_kept_with_who_what_and_what_was_measured(tmp_path: Path) -> None:
    write(tmp_path, activated(holders=20))
    (_, entry), torn = journal.changes(tmp_path)
    assert torn == 0
    assert (entry.who, entry.verb, entry.arguments["name"]) == (ADMIN, "activate", "fix")
    assert entry.answer is not None
    (before,) = entry.answer["result"]["before"]
    assert before["uses"] == [{"number": 1, "entered": 12, "exited": 10}]
    assert before["walk"]["found"] == 20
    assert len(before["walk"]["holders"]) == journal.HOLDERS_MAX
    assert before["walk"]["holders"][0]["stack"] == ["schedule+0x5"]


def test_nobody_but_root_reads_it(tmp_path: Path) -> None:
    write(tmp_path / "journal")
    assert (tmp_path / "journal").stat().st_mode & 0o077 == 0
    assert all(file.stat().st_mode & 0o077 == 0 for file in (tmp_path / "journal").iterdir())


def test_a_line_is_on_the_disk_before_the_change_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    with Journal(tmp_path) as kept:
        kept.begin(ADMIN, "activate", {"name": "fix"})
        (file,) = numbered(tmp_path, NAME)
        assert synced[-1] == file.stat().st_size > 0


@pytest.mark.parametrize("cut", [1, 5, 60])
def test_a_torn_last_line_is_passed_over_told_and_never_overwritten(
    tmp_path: Path, cut: int, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, activated())
    (file,) = numbered(tmp_path, NAME)
    whole = file.read_bytes()
    file.write_bytes(whole[:-cut])
    write(tmp_path, activated())
    assert file.read_bytes().startswith(whole[:-cut])
    entries, torn = journal.changes(tmp_path)
    assert [entry.number for entry in entries] == [1, 2, 3, 4]
    if cut == 1:  # the newline alone was lost
        assert torn == 0
        assert entries[1].answer == activated()
        return
    assert torn == 1
    assert entries[1].cut_off, "it began, and its end is torn"
    assert entries[3].answer == activated()
    assert told("--journal", tmp_path) == 0
    said = capsys.readouterr().out
    assert "cut off: the daemon or the machine died in it" in said
    assert "1 lines are torn" in said


def test_a_change_under_way_is_told_as_such_until_the_daemon_starts_anew(tmp_path: Path) -> None:
    with Journal(tmp_path) as kept:
        kept.begin(ADMIN, "unload", {"name": "fix", "wait": None})
        (entry,) = journal.changes(tmp_path)[0]
        assert (entry.cut_off, history.outcome(entry)) == (False, "under way")
        assert [history.outcome(one) for one in kept.recent()] == ["under way"]
    with Journal(tmp_path) as kept:
        kept.note(journal.START, {"version": "1"}, {"result": {"functions": []}})
        assert kept.recent()[0].cut_off
    assert journal.changes(tmp_path)[0][0].cut_off


def test_files_are_bounded_in_size_and_number(tmp_path: Path) -> None:
    with Lines(tmp_path, NAME, size=1000, kept=3) as lines:
        for n in range(100):
            lines.append({"n": n, "text": "x" * 80}, sync=False)
    files = numbered(tmp_path, NAME)
    assert len(files) == 3
    assert all(file.stat().st_size <= 1000 for file in files)
    kept = [json.loads(line)["n"] for file in files for line in file.read_text().splitlines()]
    assert kept == list(range(kept[0], 100)), "the newest, in order"
    with Lines(tmp_path, NAME, size=1000, kept=3) as lines:
        lines.append({"n": 100}, sync=False)
    assert numbered(tmp_path, NAME)[-1].read_text().endswith('{"n":100}\n')


def test_an_answer_past_all_bounds_is_left_out_and_told(tmp_path: Path) -> None:
    write(tmp_path, activated(holders=8, functions=5000))
    entry = journal.changes(tmp_path)[0][1]
    assert entry.answer == {"result": {}, "left_out": True}
    assert max(len(line) for file in tmp_path.iterdir() for line in file.read_bytes().splitlines()) < journal.LINE_MAX


def test_what_could_not_be_written_stops_no_change_and_is_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path) as kept:
        with monkeypatch.context() as full:
            full.setattr(os, "write", lambda fd, data: raising(OSError(28, "No space left on device")))
            kept.end(kept.begin(ADMIN, "activate", {"name": "fix"}), activated())
        kept.end(kept.begin(ADMIN, "deactivate", {"name": "fix"}), activated())
    (entry,) = journal.changes(tmp_path)[0]
    assert (entry.verb, entry.lost) == ("deactivate", 2)
    assert "2 lines before it could not be written" in history.outcome(entry)


def raising(error: Exception) -> int:
    raise error


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DynamosError, match="choose another folder with --journal"):
        Journal(tmp_path / "file")


@pytest.mark.parametrize(
    ("verb", "arguments", "said"),
    [
        ("activate", {"name": "fix", "edition": None, "classes": [1, 2]}, "activate fix --class 1,2"),
        ("activate", {"name": "fix", "confirm_within": 60}, "activate fix --confirm-within 60"),
        ("activate", {"name": "fix", "confirm_within": 0}, "activate fix"),
        ("load", {"path": "/tmp/x/dynamos_fix.ko", "watch": True}, "load dynamos_fix.ko"),
        ("unload", {"name": "fix", "wait": 5.0, "nudge": True}, "unload fix --nudge"),
        ("phase", {"name": "fix", "move": "raise"}, "phase fix raise"),
        ("policy_process", {"pid": 7, "policy_class": 0}, "policy set --pid 7 --class 0"),
    ],
)
def test_what_was_asked_for_is_told_in_the_command_lines_words(verb: str, arguments: dict[str, Any], said: str) -> None:
    assert history.what(Entry(1, 0.0, ADMIN, verb, arguments)) == said


def test_history_tells_all_or_one_update_or_since(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = {"error": "activate other: refused at 0x10: no\nmore of it", "exit": 1}
    with Journal(tmp_path) as kept:
        kept.end(kept.begin(ADMIN, "load", {"path": "/x/dynamos_fix.ko"}), {"result": {"name": "fix", "functions": []}})
        kept.end(kept.begin(Peer(12345, 8, ""), "activate", {"name": "other"}), refused)
        kept.end(kept.begin(ADMIN, "activate", {"name": "fix"}), activated())
    assert told("--journal", tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 6, "two lines for each change"
    assert said[0].endswith("  load dynamos_fix.ko")
    assert said[3] == "  refused: activate other: refused at 0x10: no  by 12345 (gone 8)"
    assert said[5] == "  [enabled], 350 µs in the stop  by root (dynamos 4711)"
    assert told("fix", "--journal", tmp_path) == 0
    said = capsys.readouterr().out.splitlines()
    assert not any("other" in line for line in said)
    assert any(line.split() == ["before", "f0", "original,", "BPF", "-", "-", "-", "0"] for line in said)
    assert any(line.split() == ["v1", "12", "10", "2", "0"] for line in said)
    assert told("--journal", tmp_path, "--json", "--since", "1h") == 0
    assert [entry["verb"] for entry in json.loads(capsys.readouterr().out)["entries"]] == ["load"] + ["activate"] * 2
    assert told("--journal", tmp_path, "--since", "2999-01-01") == 0
    assert capsys.readouterr().out == "nothing is noted\n"


def test_who_may_not_read_the_journal_is_told_so(tmp_path: Path) -> None:
    write(tmp_path / "journal", activated())
    root = os.geteuid() == 0
    tmp_path.chmod(0o755)
    (tmp_path / "journal").chmod(0)
    if root:
        os.seteuid(65534)
    try:
        with pytest.raises(DynamosError, match=r"permission denied"):
            journal.changes(tmp_path / "journal")
    finally:
        if root:
            os.seteuid(0)


def test_what_is_kept_in_memory_has_no_measurements(tmp_path: Path) -> None:
    with Journal(tmp_path) as kept:
        for _ in range(2 * journal.RECENT):
            kept.end(kept.begin(ADMIN, "activate", {"name": "fix"}), activated())
        assert len(kept.recent()) == journal.RECENT
        assert kept.recent()[-1].answer == {
            "result": {"verb": "activate", "update": "fix", "state": "redirected", "stop_ns": 350_000, "notes": []}
        }


def test_history_without_a_journal_says_what_begins_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told("--journal", tmp_path / "none") == UsageError.exit_code
    assert "there is no journal yet" in capsys.readouterr().err
