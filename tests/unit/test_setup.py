"""Starting on a machine that has almost nothing."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
from pathlib import Path

import pytest

from dynamos_ng import setup
from dynamos_ng.errors import MissingTool

ROOT = Path(__file__).parents[2]


def test_missing_programs_and_files_name_their_packages() -> None:
    wanted = {"sh": "dash", "no-such-program": "first", "/no/such/file": "second", "/bin/sh": "dash"}
    assert setup.missing_debian(wanted) == ["first", "second"]


@pytest.mark.parametrize(
    ("requirement", "expected"),
    [
        ("pytest", True),
        ("pytest>=7", True),
        ("pytest>=7,<1000", True),
        ("pytest>=1000", False),
        ("pytest>=1,<2", False),
        ("no-such-distribution>=1", False),
    ],
)
def test_a_requirement_is_met_or_not(requirement: str, expected: bool) -> None:
    assert setup.satisfied(requirement) is expected


def test_every_requirement_of_the_project_can_be_judged() -> None:
    assert [setup.satisfied(requirement) for requirement in setup.requirements()] == [True] * len(setup.requirements())


def test_without_apt_the_message_tells_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup, "SYSTEM_PATH", ())
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(MissingTool, match=r"no apt-get .* by hand: .*mmdebstrap arch-test"):
        setup.ensure(tests=False, yes=False, again=["demo"])


def test_a_person_is_asked_and_may_refuse(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return "n\n"

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(setup, "SYSTEM_PATH", ())
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(MissingTool, match="nothing was installed"):
        setup.ensure(tests=False, yes=False, again=["demo"])
    said = capsys.readouterr().err
    assert "mmdebstrap arch-test" in said
    assert "Install them now? [Y/n]" in said


@pytest.mark.parametrize("name", ["__main__.py", "__init__.py"])
def test_an_old_python_can_read_what_it_is_given_first(name: str) -> None:
    ast.parse((ROOT / "dynamos_ng" / name).read_text(), feature_version=(3, 8))


def test_an_old_python_is_told_so() -> None:
    program = (
        "import sys; sys.version_info = (3, 9, 2, 'final', 0); import runpy; sys.argv = ['dynamos_ng', 'test'];"
        "runpy.run_module('dynamos_ng', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dynamos: this is Python 3.9; Python 3.11 or newer is needed\n"


@pytest.mark.parametrize(
    ("argument", "status", "said"),
    [("--help", 0, ""), ("status", 1, "dynamos: the Python package "), ("survey", 1, "dynamos: the Python package ")],
)
def test_without_python_packages_there_is_one_clear_line(argument: str, status: int, said: str) -> None:
    """-S and -I leave nothing but the standard library."""
    program = "import sys; sys.path.insert(0, '.'); from dynamos_ng.__main__ import main; sys.exit(main(sys.argv[1:]))"
    argv = [sys.executable, "-I", "-S", "-c", program, argument]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == bool(said)
    assert ("usage:" in done.stdout) is not bool(said)
