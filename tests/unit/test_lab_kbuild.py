"""The lab's builds for guests: what was built before is not built again, and nothing else is taken for it."""

from __future__ import annotations

import tarfile
from io import BytesIO
from pathlib import Path

import pytest

from dynamos_ng.lab import kbuild
from dynamos_ng.lab.root import Root


def request(folder: Path, text: bytes, mtime: int) -> Path:
    folder.mkdir()
    with tarfile.open(folder / "in.tar", "w") as files:
        member = tarfile.TarInfo("./one.c")
        member.size, member.mtime = len(text), mtime
        files.addfile(member, BytesIO(text))
    return folder


def test_only_the_same_files_and_arguments_are_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []

    def build(_root: Root, job: Path, _release: str, arguments: list[str]) -> tuple[int, str]:
        built.append(job.name)
        (job / "out.tar").write_bytes(job.name.encode())
        (job / "gone").write_bytes(b"")
        return (2 if "broken" in arguments else 0), f"{job.name}\n"

    monkeypatch.setattr(kbuild, "build", build)
    monkeypatch.setattr(kbuild, "_BUILT", {})
    root = Root(tmp_path / "root")
    for name, text, mtime, arguments, by in (
        ("first", b"int one;", 1, ["modules"], "first"),
        ("later", b"int one;", 2, ["modules"], "first"),
        ("other", b"int two;", 1, ["modules"], "other"),
        ("wider", b"int one;", 1, ["modules", "V=1"], "wider"),
        ("fails", b"int one;", 1, ["broken"], "fails"),
        ("again", b"int one;", 1, ["broken"], "again"),
    ):
        job = request(tmp_path / name, text, mtime)
        status, output = kbuild._build_once(root, job, "6.1", arguments)
        assert (output, (job / "out.tar").read_bytes()) == (f"{by}\n", by.encode())
        assert status == (2 if "broken" in arguments else 0)
    assert built == ["first", "other", "wider", "fails", "again"]
