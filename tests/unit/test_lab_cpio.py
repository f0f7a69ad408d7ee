"""The cpio writer, beside two programs that read what it writes."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest

from dynamos_ng.lab.cpio import Archive


def sample() -> tuple[Archive, dict[str, bytes]]:
    """Return an archive of files whose sizes and names end at every offset within a word."""
    source = random.Random(7)
    archive = Archive()
    files = {f"deep/er/{'n' * size}": source.randbytes(size) for size in range(1, 40)}
    files["empty"] = b""
    files["big"] = source.randbytes(200_001)
    for name, data in files.items():
        archive.file(name, data, 0o755 if name == "big" else 0o644)
    archive.link("link", "deep/er/n")
    archive.folder("private", 0o700)
    return archive, files


@pytest.mark.parametrize("reader", ["cpio -idm --quiet", "python"])
def test_what_is_written_can_be_read_back(tmp_path: Path, reader: str) -> None:
    archive, files = sample()
    if reader == "python":
        assert read(archive.finish()) == {
            **{name: (0o100755 if name == "big" else 0o100644, data) for name, data in files.items()},
            "link": (0o120777, b"deep/er/n"),
            "private": (0o40700, b""),
            "deep": (0o40755, b""),
            "deep/er": (0o40755, b""),
        }
        return
    subprocess.run(reader.split(), cwd=tmp_path, input=archive.finish(), check=True)
    for name, data in files.items():
        assert (tmp_path / name).read_bytes() == data
    assert os.readlink(tmp_path / "link") == "deep/er/n"
    assert (tmp_path / "big").stat().st_mode == 0o100755
    assert (tmp_path / "private").stat().st_mode == 0o40700


def read(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Read an archive by the kernel's description of the format (buffer-format.rst)."""
    found: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        assert data[at : at + 6] == b"070701"
        words = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        name = data[at + 110 : at + 110 + words[11] - 1].decode()
        at = (at + 110 + words[11] + 3) & ~3
        if name == "TRAILER!!!":
            assert not data[at:].strip(b"\0")
            return found
        found[name] = (words[1], data[at : at + words[6]])
        at = (at + words[6] + 3) & ~3


def test_listing_agrees_with_cpio() -> None:
    archive, files = sample()
    listing = subprocess.run(
        ["cpio", "-it", "--quiet"], input=archive.finish(), capture_output=True, check=True
    ).stdout.decode()
    assert sorted(listing.split()) == sorted([*files, "deep", "deep/er", "link", "private"])


def test_equal_content_gives_equal_bytes() -> None:
    assert sample()[0].finish() == sample()[0].finish()
