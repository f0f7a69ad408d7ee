"""Footprint: which part each section is, and the shapes of the maps."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import pytest

from bench import command, footprint
from dynamos_ng import bpfmaps
from dynamos_ng.arch import Arch, known

SOURCE = """
int code(void) { return 1; }
__attribute__((section(".init.text"))) int once(void) { return 2; }
int data[3] = {1}, zeros[10];
const int constant[5] = {1};
asm(".pushsection __versions,\\"a\\"; .zero 100; .popsection; .pushsection .modinfo,\\"a\\"; .zero 7; .popsection");
asm(".pushsection .orc_unwind,\\"a\\"; .zero 6; .popsection");
asm(".pushsection .orc_unwind_ip,\\"a\\"; .zero 4; .popsection");
asm(".pushsection __bug_table,\\"aw\\"; .zero 24; .popsection; .pushsection .comment2; .zero 50; .popsection");
"""


def test_every_loaded_byte_has_its_part(tmp_path: Path) -> None:
    (tmp_path / "x.c").write_text(SOURCE)
    flags = ["-O2", "-ffreestanding", "-fno-asynchronous-unwind-tables", "-fcf-protection=none"]
    path = tmp_path / "x.o"
    subprocess.run(["gcc", "-c", *flags, "-o", path, tmp_path / "x.c"], check=True)
    sizes = footprint.sections(path)
    assert {name: size for name, (size, part) in sizes.items() if part == "dropped"} == {
        "__versions": 100, ".modinfo": 7, ".init.text": sizes[".init.text"][0],
    }  # fmt: skip
    values = {figure.name.rpartition("/")[2]: figure.value for figure in footprint.of_module("k", sizes)}
    assert values["unwind"] == 10
    assert values["tables"] == 24 + sum(sizes[name][0] for name in sizes if name.startswith(".note"))
    assert values["zeros"] == 40
    assert values["data"] == 12 + 20
    assert values["kept"] == sum(values[name] for name in ("code", "data", "unwind", "tables"))
    said = subprocess.run(["size", path], capture_output=True, text=True, check=True).stdout.splitlines()[1].split()
    assert values["as-size-counts"] == int(said[0]) + int(said[1])


@pytest.mark.parametrize("arch", known.ALL, ids=lambda arch: arch.name)
def test_a_further_edition_has_its_price(arch: Arch, tmp_path: Path) -> None:
    values = {figure.name.rpartition("/")[2]: figure.value for figure in footprint.of_editions(arch, tmp_path)}
    # A slot, five words that describe it, and a word where its ftrace site is; on i386, two more for each count.
    assert values["tables"] == (11 if arch.name == "i386" else 7) * arch.word
    assert 30 < values["added"] < 100


def test_maps_are_as_large_as_they_are_made() -> None:
    arch = next(arch for arch in known.ALL if arch.name == ("x86_64" if platform.machine() == "x86_64" else "i386"))
    values = {figure.name.rpartition("/")[2]: figure.value for figure in footprint.of_maps(arch)}
    for name in ("policy", "editions", "use", "must_update"):
        shape = bpfmaps.SHAPES[name]
        assert values[name] == shape.value_size * shape.max_entries, name


def test_kernels_are_chosen_by_name() -> None:
    parser = command.parser([footprint])
    assert parser.parse_args(["--kernel", "6.1", "--kernel", "7.2"]).kernel == ["6.1", "7.2"]
    with pytest.raises(SystemExit):
        parser.parse_args(["--kernel", "2.4"])
