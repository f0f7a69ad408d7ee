"""Kernel C is clean under the kernel's own checkpatch."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "kmod").rglob("*.[ch]"))
EXAMPLES = sorted((ROOT / "dynamos_ng").rglob("*.[ch]"))
PACKAGE = "linux-source-6.1"
SCRIPTS = ("checkpatch.pl", "spelling.txt", "const_structs.checkpatch")


@pytest.fixture(scope="module")
def checkpatch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return checkpatch.pl as the kernel's source package has it, kept in the cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "dynamos_ng" / "checkpatch"
    if not (cache / SCRIPTS[-1]).exists():
        work = tmp_path_factory.mktemp("source")
        subprocess.run(["apt-get", "-q", "download", PACKAGE], cwd=work, check=True)
        (package,) = work.glob("*.deb")
        subprocess.run(["dpkg-deb", "-x", package, work / "root"], check=True)
        (archive,) = (work / "root" / "usr" / "src").glob("*.tar.xz")
        members = [f"{PACKAGE}/scripts/{name}" for name in SCRIPTS]
        cache.mkdir(parents=True, exist_ok=True)
        subprocess.run(
            ["tar", "-xJf", archive, "-C", cache, "--strip-components=2", "--occurrence=1", *members],
            check=True,
        )
    return cache / SCRIPTS[0]


def test_checkpatch_has_nothing_to_say(checkpatch: Path) -> None:
    assert len(SOURCES) > 10
    run(checkpatch, *SOURCES)


def test_checkpatch_has_nothing_to_say_of_examples(checkpatch: Path) -> None:
    """An example declares in its C file what is no header's matter: editions, and symbols that the kernel keeps."""
    assert EXAMPLES
    run(checkpatch, "--ignore", "AVOID_EXTERNS", *EXAMPLES)


def run(checkpatch: Path, *arguments: object) -> None:
    done = subprocess.run(
        ["perl", checkpatch, "--no-tree", "--terse", "--no-summary", "--file", *map(str, arguments)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.stdout == ""
    assert done.returncode == 0, done.stderr
