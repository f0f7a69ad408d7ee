"""The guard's notes, and whose files may be loaded at boot."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamos_ng.boot import Notes, check_safe
from dynamos_ng.errors import UsageError


def test_notes_count_and_are_forgotten(tmp_path: Path) -> None:
    notes = Notes(tmp_path / "notes.json")
    notes.add("one")
    notes.add("one")
    notes.add("two")
    assert Notes(tmp_path / "notes.json").read() == {"one": 2, "two": 1}
    notes.drop("one", "nobody")
    assert notes.read() == {"two": 1}
    notes.drop()
    assert notes.read() == {}


@pytest.mark.parametrize("text", ["", "[]", "7", '{"one": {}}', '{"one": null}', "{"])
def test_a_damaged_file_holds_no_notes(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "notes.json"
    file.write_text(text)
    assert Notes(file).read() == {}
    assert "is damaged" in caplog.text
    Notes(file).add("one")
    assert Notes(file).read() == {"one": 1}


def test_root_alone_may_write_what_is_loaded_at_boot(tmp_path: Path) -> None:
    folder = tmp_path / "update"
    folder.mkdir()
    file = folder / "a.c"
    file.write_text("")
    check_safe(folder)
    for path, mode in ((file, 0o646), (folder, 0o775), (tmp_path, 0o757)):
        before = path.stat().st_mode
        path.chmod(mode)
        with pytest.raises(UsageError, match=f"^{path}: others than root may write there"):
            check_safe(folder)
        path.chmod(before)
    check_safe(folder)
    (folder / "b.c").symlink_to("/etc/passwd")
    with pytest.raises(UsageError, match="it is a symbolic link"):
        check_safe(folder)
