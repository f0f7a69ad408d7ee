"""Completion, by a real bash."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from dynamos_ng.cli import completion, main, parser

COMPLETE = """
source /dev/stdin <<< "$SCRIPT"
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_dynamos
printf '%s\\n' "${COMPREPLY[@]}"
"""


def completed(line: str, modules: Path = Path("/sys/module")) -> list[str]:
    """Return what bash offers at the end of a line, if these are the kernel's modules."""
    script = completion.script(parser())
    assert "/sys/module/" in script
    environment = {"SCRIPT": script.replace("/sys/module/", f"{modules}/"), "PATH": "/usr/bin:/bin"}
    command = ["bash", "-c", COMPLETE, "bash", *line.split(" ")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("dynamos act", ["activate"]),
        ("dynamos de", ["deactivate"]),
        ("dynamos policy s", ["show", "set"]),
        ("dynamos policy set --c", ["--comm", "--class"]),
        ("dynamos activate x --confirm", ["--confirm-within"]),
        ("dynamos activate x --confirm-within 60s --e", ["--edition"]),
        ("dynamos lab run --kernel 6.1", ["6.1", "6.12", "6.1-i386"]),
        ("dynamos lab m", ["mass", "matrix"]),
        ("dynamos nonsense x", []),
    ],
)
def test_what_is_offered(line: str, offered: list[str]) -> None:
    assert sorted(completed(line)) == sorted(offered)


def test_every_verb_is_offered() -> None:
    shown = parser().format_help()
    offered = completed("dynamos ")
    assert len(offered) > 15
    assert all(re.search(rf"^ +{verb}\b", shown, re.MULTILINE) for verb in offered)


def test_loaded_updates_are_offered(tmp_path: Path) -> None:
    for name in ("dynamos", "dynamos_cmdline", "dynamos_pipe_gauge", "ext4"):
        (tmp_path / name).mkdir()
    assert completed("dynamos unload ", tmp_path) == ["cmdline", "pipe_gauge"]
    assert completed("dynamos activate pi", tmp_path) == ["pipe_gauge"]


def test_the_verb_prints_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion"]) == 0
    assert capsys.readouterr() == (completion.script(parser()), "")
