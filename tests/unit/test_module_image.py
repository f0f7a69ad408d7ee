"""Symbols and tables of a small loaded module made by hand, at odd addresses as the loader gives them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from memory_kernel import relative

from dynamos_ng.errors import Refusal
from dynamos_ng.image import Kernel
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.memory import Dump
from dynamos_ng.model import Area, Module
from dynamos_ng.module_image import ModuleImage
from dynamos_ng.rewrite.clone import examine
from dynamos_ng.rewrite.kernel import Bug, Fixup, StaticCall, StaticKey, Symbol

CODE = 0xFFFFFFFFC0100000
DATA = CODE + 0x1002
TEXT = 0xFFFFFFFF81000000
KALLSYMS = f"""\
{TEXT:016x} T _stext
{TEXT:016x} T of_the_kernel
{TEXT + 0x100:016x} T _etext
{TEXT + 0x200:016x} D __start___ex_table
{TEXT + 0x200:016x} D __stop___ex_table
{TEXT + 0x210:016x} D __start_ro_after_init
{TEXT + 0x220:016x} D __end_ro_after_init
{CODE - 0x100:016x} t used\t[library]
{CODE - 0x80:016x} t unused\t[stranger]
{CODE:016x} t first\t[thing]
{CODE + 0x40:016x} t begins_with_used\t[thing]
{CODE + 0x60:016x} t begins_with_unused\t[thing]
{CODE + 0x80:016x} t twin\t[thing]
{CODE + 0xA0:016x} t twin\t[thing]
{CODE + 0xC0:016x} t __SCT__call\t[thing]
{CODE + 0x100:016x} t last\t[thing]
{CODE + 0x9000:016x} t far_away\t[stranger]
"""


def area(offset: int, size: int) -> Area:
    return Area(DATA + offset, size)


THING = Module(
    "thing", 77, 16, Area(CODE, 0x140), area(0x700, 0x10), area(0x100, 12), area(0x200, 16), area(0x300, 16),
    area(0x400, 8), Area(0, 0), Area(0, 0),
)  # fmt: skip


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleImage:
    sections = tmp_path / "thing" / "sections"
    sections.mkdir(parents=True)
    for name, offset in ((".text", -2), (".smp_locks", 0x800), (".data", 0x80C)):
        (sections / name).write_text(f"{DATA + offset:#x}\n")
    monkeypatch.setattr("dynamos_ng.module_image.SECTIONS", tmp_path)
    memory = bytearray(b"\xcc" * 0x1000 + bytes(0x1000))

    def put(address: int, data: bytes) -> None:
        memory[address - CODE : address - CODE + len(data)] = data

    put(CODE + 0x40, b"\xe9" + relative(CODE + 0x41, CODE - 0x100 - 4))
    put(CODE + 0x60, b"\xe9" + relative(CODE + 0x61, CODE - 0x80 - 4))
    put(CODE + 0x100, b"\x31\xc0\x31\xd2\x31\xc9\xc3" + bytes(0x39))  # the section ends in zeros
    put(DATA + 0x100, relative(DATA + 0x100, CODE + 0x10) + relative(DATA + 0x104, CODE + 0x18) + b"\3\0\0\0")
    put(DATA + 0x200, relative(DATA + 0x200, CODE + 0x20) + relative(DATA + 0x204, CODE + 0x30))
    put(DATA + 0x208, struct.pack("<q", DATA + 0x600 - (DATA + 0x208)))
    put(DATA + 0x600, struct.pack("<iIQ", 1, 0, DATA | 1))
    put(DATA + 0x300, relative(DATA + 0x300, CODE + 0x24) + relative(DATA + 0x304, DATA) + relative(DATA + 0x308, DATA))
    put(DATA + 0x30C, struct.pack("<HH", 7, 1))
    put(DATA + 0x400, relative(DATA + 0x400, CODE + 0x28) + relative(DATA + 0x404, DATA + 0x602 | 1))
    # Two locks, one of them switched off, and what aligns the next section.
    put(CODE + 0x80, b"\x3e\xff\x07\xc3")
    put(DATA + 0x800, relative(DATA + 0x800, CODE + 0xA0) + relative(DATA + 0x804, CODE + 0x80))
    kernel = Kernel(Symbols(KALLSYMS), Dump(bytes(memory), CODE))
    return ModuleImage(kernel, THING, ["library"])


def test_tables_lie_where_struct_module_says(image: ModuleImage) -> None:
    assert image.fixups(CODE, CODE + 0x100) == [Fixup(CODE + 0x10, CODE + 0x18, 3)]
    assert image.static_keys(CODE, CODE + 0x100) == [
        StaticKey(CODE + 0x20, CODE + 0x30, DATA + 0x600, branch=False, jumps=True)
    ]
    assert image.bugs(CODE, CODE + 0x100) == [Bug(CODE + 0x24, DATA, 7, 1, DATA)]
    assert image.orc(CODE, CODE + 0x100) == []


def test_a_static_call_has_its_flags_in_the_address_and_not_in_the_distance(image: ModuleImage) -> None:
    assert image.static_calls(CODE, CODE + 0x100) == [StaticCall(CODE + 0x28, DATA + 0x602 & ~3, tail=True)]


def test_data_of_the_module_and_of_the_kernel_may_be_read_only(image: ModuleImage) -> None:
    assert image.read_only(DATA + 0x700)
    assert image.read_only(TEXT + 0x210)
    assert not image.read_only(DATA + 0x600)


def test_names_are_the_modules_own(image: ModuleImage) -> None:
    assert image.function("first") == Symbol("first", CODE, 0x40, "thing")
    assert image.function("twin", 2).address == CODE + 0xA0
    with pytest.raises(Refusal, match="no such function in module thing"):
        image.function("of_the_kernel")


def test_text_is_the_kernels_the_modules_and_that_of_modules_it_uses(image: ModuleImage) -> None:
    assert image.in_text(TEXT)
    assert image.in_text(CODE)
    assert image.in_text(CODE - 0x100)
    assert not image.in_text(CODE - 0x80)


def test_the_last_function_ends_with_the_modules_code(image: ModuleImage) -> None:
    found = image.containing(CODE + 0x110)
    assert found == Symbol("last", CODE + 0x100, 0x40, "thing")
    assert found is not None
    assert [i.text for i in examine(image, found).body.instructions][-1].startswith("ret")


def test_a_tail_call_of_a_used_module_is_one_and_a_jump_to_a_stranger_is_a_redirection(image: ModuleImage) -> None:
    assert examine(image, image.function("begins_with_used")).body.instructions
    with pytest.raises(Refusal, match=r"already redirected: it begins with a jump to .* unused of module stranger"):
        examine(image, image.function("begins_with_unused"))


def test_forbidden_places(image: ModuleImage) -> None:
    assert image.forbidden(CODE, CODE + 0x40) == ""
    assert image.forbidden(CODE + 0xC0, CODE + 0x100) == "a static call trampoline"
    assert "not in the code of module thing" in image.forbidden(TEXT, TEXT + 0x10)


def test_locks_that_are_switched_off_on_one_processor(image: ModuleImage) -> None:
    assert image.bare_locks(CODE, CODE + 0x100) == [CODE + 0x80]
