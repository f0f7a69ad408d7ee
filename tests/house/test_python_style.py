"""The house rules for Python, kept by the tools that know them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dynamos_ng"
TESTS = ROOT / "tests"
#: More than this is seldom one idea.
LINES = 460


def run(*argv: str, **environment: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *argv],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", "--no-cache", "dynamos_ng", "tests", "bench")


def test_mypy_strict_finds_nothing_in_the_package() -> None:
    run("mypy", "--strict", "dynamos_ng")


def test_mypy_strict_finds_nothing_in_the_benchmarks() -> None:
    run("mypy", "--strict", "bench")


@pytest.mark.parametrize("folder", sorted({path.parent.name for path in TESTS.glob("*/test_*.py")}))
def test_mypy_strict_finds_nothing_in_the_tests(folder: str) -> None:
    """Tests import what lies beside them, so each folder is looked at with itself in the path."""
    run("mypy", "--strict", f"tests/{folder}", MYPYPATH=f"tests/{folder}")


def sources() -> list[Path]:
    return sorted([*PACKAGE.rglob("*.py"), *(ROOT / "bench").rglob("*.py")])


def test_a_file_holds_one_idea() -> None:
    long = {str(path.relative_to(ROOT)): n for path in sources() if (n := len(path.read_text().splitlines())) > LINES}
    assert not long
    assert not [path for path in sources() if "util" in path.stem or "helper" in path.stem]


def test_no_test_is_skipped_or_expected_to_fail() -> None:
    """A test that cannot fail is a defect."""
    found = []
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and re.fullmatch(r"skip|skipif|xfail|importorskip", node.attr):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {node.attr}")
    assert not found


def test_tests_have_names_of_their_own() -> None:
    """Files of one name in two folders would shadow each other."""
    names = [path.name for path in TESTS.rglob("test_*.py")]
    assert sorted(set(names)) == sorted(names)


@pytest.mark.parametrize("name", ["dynamos_ng", "bpf", "kmod", "tests", "README.md", "pyproject.toml", ".ci"])
def test_the_top_level_holds_what_it_must(name: str) -> None:
    assert (ROOT / name).exists()


def test_the_top_level_holds_nothing_else() -> None:
    allowed = {"dynamos_ng", "bpf", "kmod", "policies", "tests", "bench", "docs", "pyproject.toml", "README.md"}
    listed = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split("\0")
    top = {name.split("/")[0] for name in listed if name}
    assert not {name for name in top - allowed if not name.startswith(".")}
