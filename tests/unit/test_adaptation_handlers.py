"""What a module file carries of its adaptation handlers, and what constants C gives them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from memory_kernel import assemble

from dynamos_ng.build import adaptation
from dynamos_ng.build.adaptation import Carried
from dynamos_ng.build.description import Handler
from dynamos_ng.errors import UsageError
from dynamos_ng.rewrite import Object

CARRIED = Carried(
    {0xFFFFFFFF81000000: Handler("a.bpf.c", "choose"), 0xC1000000: Handler("b.bpf.c", "other")},
    {"a.bpf.c": 'int choose(void *ctx)\n{\n\treturn "\u00e4"[0];\n}\n', "b.bpf.c": ""},
    {"OFFSET": 40},
)


def test_what_is_written_is_read(tmp_path: Path) -> None:
    unit = assemble("\n".join([*adaptation.text(CARRIED), ""]))
    (section,) = [section for section in unit.sections if section.name == adaptation.SECTION]
    assert section.flags == 0, "the kernel's loader passes it over"
    (tmp_path / "update.ko").write_bytes(unit.raw)
    assert adaptation.read(tmp_path / "update.ko") == CARRIED


def test_an_update_without_handlers_carries_nothing(tmp_path: Path) -> None:
    assert adaptation.text(Carried()) == []
    (tmp_path / "update.ko").write_bytes(assemble("\tret\n").raw)
    assert adaptation.read(tmp_path / "update.ko") == Carried()


@pytest.mark.parametrize("text", ["not JSON", "[]", "{}", '{"handlers": [[1]]}'])
def test_a_section_that_is_something_else_is_told(tmp_path: Path, text: str) -> None:
    unit = assemble(f"\t.section {adaptation.SECTION}\n\t.ascii {json.dumps(text)}\n")
    (tmp_path / "update.ko").write_bytes(unit.raw)
    with pytest.raises(UsageError, match="adaptation handlers cannot be read"):
        adaptation.read(tmp_path / "update.ko")


def test_constants_of_c_are_found_by_their_prefix() -> None:
    lines = [
        f"\t.globl {name}\n\t.type {name}, @object\n\t.size {name}, 8\n{name}:\t.quad {value}\n"
        for name, value in (("dynamos_constant_A", 7), ("other", 8), ("dynamos_constant_B", 1 << 40))
    ]
    unit = assemble("\t.section .rodata\n\t.quad 1\n" + "".join(lines))
    assert adaptation.constants([Object(unit.raw, "o.o")]) == {"A": 7, "B": 1 << 40}
