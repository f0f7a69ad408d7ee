"""What the survey counts, what it says of a function, and what it says of files that do not serve."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from dynamos_ng import cli, survey
from dynamos_ng.image import Kernel
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.lab import saved
from dynamos_ng.memory import Dump

CHECKOUT = Path(__file__).parents[2]
REPORTS = sorted((CHECKOUT / "docs").glob("survey-*.json"))
TEXT = 0xFFFFFFFF81000000
SIZE = 0x1000
#: Where, type, name, code.
IMAGE: Sequence[tuple[int, str, str, str]] = (
    (0x000, "T", "_stext", ""),
    (0x000, "T", "traced", "0f1f440000 55 e8f5000000 5d c3"),
    (0x000, "t", "traced_alias", ""),
    (0x040, "t", "too_short", "c3"),
    (0x042, "t", "leaves", "4885ff 0f8535000000 c3"),
    (0x080, "t", "leaves.cold", "0f0b"),
    (0x0C0, "T", "__sched_text_start", ""),
    (0x100, "T", "called", "55 89f8 5d 01d0 01d0 c3"),
    (0x140, "T", "__noinstr_text_start", ""),
    (0x140, "T", "quiet", "55 89f8 5d 01d0 01d0 c3"),
    (0x180, "T", "__noinstr_text_end", ""),
    (0x180, "T", "__entry_text_start", ""),
    (0x180, "T", "entry_of_the_kernel", "c3"),
    (0x1C0, "T", "__entry_text_end", ""),
    (0x1C0, "T", "__static_call_text_start", ""),
    (0x1C0, "T", "__SCT__hook", "e9fb000000"),
    (0x200, "T", "__static_call_text_end", ""),
    (0x200, "T", "__x86_return_thunk", "c3"),
    (0x240, "t", "__pfx_called", ""),
    (0x280, "t", ".slow", "c3"),
    (0x2C0, "t", "its_static_thunk", "55 89f8 5d 01d0 01d0 c3"),
    (0x400, "T", "_etext", ""),
)
LABELS = {
    "section bound": 1, "cold part": 1, "static call trampoline": 1, "branch thunk": 1, "entry code": 1,
    "hypercall slot": 0, "padding": 1, "assembler label": 1,
}  # fmt: skip
TABLES = ("ex_table", "jump_table", "bug_table")


def text() -> bytes:
    code = bytearray(b"\xcc" * 0x400)
    for at, _kind, _name, hexadecimal in IMAGE:
        raw = bytes.fromhex(hexadecimal)
        code[at : at + len(raw)] = raw
    return bytes(code) + b"Linux version 6.1.0-test (nobody) " + bytes(SIZE)


def kallsyms() -> str:
    lines = [f"{TEXT + at:016x} {kind} {name}\n" for at, kind, name, _code in IMAGE]
    ends = [f"__{end}___{name}" for name in TABLES for end in ("start", "stop")]
    lines += [f"{TEXT + SIZE:016x} D {name}\n" for name in ends]
    return "".join([*lines, f"{TEXT + 0x400:016x} D linux_banner\n", f"{TEXT + SIZE + 8:016x} B _end\n"])


@pytest.fixture
def kernel() -> Kernel:
    return Kernel(Symbols(kallsyms()), Dump(text(), TEXT))


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Return the options for a saved image made of files."""
    (tmp_path / "image").write_bytes(saved.elf([(TEXT, text())], 8))
    (tmp_path / "kallsyms").write_text(kallsyms())
    return ["--image", str(tmp_path / "image"), "--kallsyms", str(tmp_path / "kallsyms")]


def test_functions_are_counted_and_labels_are_told(kernel: Kernel) -> None:
    who = survey.census(kernel)
    assert [function.name for function in who.functions] == [
        "traced", "too_short", "leaves", "called", "quiet", "its_static_thunk",
    ]  # fmt: skip
    assert who.labels == LABELS
    aliases = 8  # two of traced, six where bounds of areas share an address with code or each other
    assert (who.symbols, who.aliases) == (len(IMAGE) - 1, aliases)
    assert who.symbols == who.aliases + sum(who.labels.values()) + len(who.functions)


def test_findings_tell_traits_and_reasons(kernel: Kernel) -> None:
    report = survey.survey(kernel).report()
    counts = [report[name] for name in ("functions", "traceable", "cloneable", "cloneable_traceable")]
    assert counts == [6, 1, 4, 1]
    assert {kind: entry["count"] for kind, entry in report["refused"].items()} == {
        "noinstr code": 1, "too short for a trampoline": 1,
    }  # fmt: skip
    traits = {name: counts["count"] for name, counts in report["traits"].items() if counts["count"]}
    assert traits == {"ftrace site": 1, "cold part": 1, "too short": 1, "forbidden (noinstr, …)": 1}


def test_the_json_has_the_promised_figures(files: list[str], tmp_path: Path) -> None:
    output = tmp_path / "report.json"
    assert cli.main(["survey", *files, "--json", str(output)]) == 0
    report = json.loads(output.read_text())
    assert report["release"] == "6.1.0-test"
    assert report["architecture"] == "x86_64"
    assert report["seconds"] > 0
    assert report["peak_memory"] > 1 << 20
    assert report["functions"] == report["cloneable"] + sum(entry["count"] for entry in report["refused"].values())
    assert all(entry["example"] and entry["count"] >= entry["traceable"] for entry in report["refused"].values())


def test_the_tables_fit_80_columns(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["survey", *files]) == 0
    said = capsys.readouterr().out
    assert "cloneable: 4 of 6 functions, 66.67 %; 1 of 1 traceable ones, 100.00 %" in " ".join(said.split())
    assert max(map(len, said.splitlines())) <= 80


def test_why_tells_what_is_known(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["survey", *files, "--why", "leaves", "--json", "-"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [part["name"] for part in told["parts"]] == ["leaves", "leaves.cold"]
    assert told["cloneable"]
    assert cli.main(["survey", *files, "--why", "too_short"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "too short for a trampoline: 2 bytes where 5 are needed" in said


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--image", "nowhere", "--kallsyms", "kallsyms"], "nowhere: No such file or directory"),
        (["--image", "kallsyms", "--kallsyms", "kallsyms"], "kallsyms: neither a kernel image for x86 nor an ELF file"),
        (["--image", "image"], "a saved image needs its kallsyms too"),
        (["--image", "image", "--kallsyms", "nowhere"], "nowhere"),
        (["--image", "image", "--kallsyms", "zero"], "all addresses are zero: run as root"),
        (["--image", "image", "--kallsyms", "image"], "cannot be read"),
        (["--kallsyms", "kallsyms"], "belong to --image"),
        (["--image", "image", "--kallsyms", "kallsyms", "--why", "calle"], r"no such function.*similar: called"),
        (["--image", "image", "--kallsyms", "kallsyms", "--json", "none/report"], "none/report: No such file"),
    ],
)
def test_bad_input_is_told_in_one_line(
    options: list[str],
    said: str,
    files: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero").write_text("0000000000000000 T _stext\n0000000000000000 T _etext\n")
    status = cli.main(["survey", *options])
    error = capsys.readouterr().err
    assert status in (1, 2)
    assert error.startswith("dynamos: ")
    assert error.count("\n") == 1
    assert re.search(said, error)


def table(page: str, header: str) -> dict[str, list[str]]:
    """Return the cells of a page's table, and of its first line, by the first of each; HEADER is the very first."""
    text = (CHECKOUT / page).read_text()
    lines = text[text.index(f"| {header} |") :].partition("\n\n")[0].splitlines()
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {first: cells for first, *cells in rows}


@pytest.fixture(params=REPORTS, ids=[path.stem for path in REPORTS])
def published(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    """Return a kernel's name, and the report of its survey."""
    path: Path = request.param
    _survey, version, arch = path.stem.split("-")
    return f"{version} {arch}", json.loads(path.read_text())


def test_the_readme_tells_what_the_reports_do(published: tuple[str, dict[str, Any]]) -> None:
    name, report = published
    wanted = []
    for fine, count in (("cloneable", "functions"), ("cloneable_traceable", "traceable")):
        wanted += [f"{report[count]}", f"{report[fine]}, **{100 * report[fine] / report[count]:.2f} %**"]
    assert table("README.md", "Debian's kernel")[name] == wanted


def test_the_design_tells_what_the_reports_do(published: tuple[str, dict[str, Any]]) -> None:
    name, report = published
    rows = table("docs/design.md", "class of label")
    column = rows.pop("class of label").index(name)
    told = {row.removeprefix("\N{MINUS SIGN} "): cells[column] for row, cells in rows.items() if row.strip("-:")}
    one = ("entry code", "padding")
    labels = {label if label in one else f"{label}s": count for label, count in report["labels"].items()}
    wanted = {"code symbols": report["symbols"], "aliases": report["aliases"], **labels}
    assert told.pop("**functions**") == f"**{report['functions']}**"
    assert set(told) <= set(wanted)
    assert {row: int(told.get(row, 0)) for row in wanted} == wanted


def test_the_reports_keep_the_promises(published: tuple[str, dict[str, Any]]) -> None:
    _name, report = published
    assert report["cloneable"] >= 0.97 * report["functions"]
    assert report["cloneable_traceable"] >= 0.99 * report["traceable"]
    assert report["seconds"] <= 3 * report["capstone_seconds"]
    assert report["peak_memory"] < 1 << 30
    assert report["functions"] == report["cloneable"] + sum(entry["count"] for entry in report["refused"].values())
    for kind, entry in report["refused"].items():
        assert kind.strip()
        function, refused, reason = entry["example"].partition(": refused at 0x")
        assert function
        assert refused
        assert reason.partition(": ")[2].strip()
