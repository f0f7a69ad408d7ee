"""The text of a 32-bit update, and what gas makes of it; bytes beside disassembly."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

from memory_kernel import relative

from dynamos_ng.image import Kernel
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.memory import Dump
from dynamos_ng.rewrite import Constants, Redirect, check, elf, generate

TEXT, DATA = 0xC1000000, 0xC1001000
KALLSYMS = f"""\
{TEXT:08x} T _stext
{TEXT:08x} T f
{TEXT + 0x100:08x} T other
{TEXT + 0x200:08x} t __x86_return_thunk
{TEXT + 0x300:08x} T _etext
{DATA:08x} D __start___ex_table
{DATA + 12:08x} D __stop___ex_table
{DATA + 0x100:08x} D __start___jump_table
{DATA + 0x10C:08x} D __stop___jump_table
{DATA + 0x200:08x} D __start___bug_table
{DATA + 0x20C:08x} D __stop___bug_table
{DATA + 0x300:08x} D __start_ro_after_init
{DATA + 0x304:08x} D __end_ro_after_init
{DATA + 0x400:08x} D a_key
{DATA + 0x800:08x} D _end
"""
CODE = bytes.fromhex(
    "3e8d742600"  # ftrace site, idle
    "e9f6000000"  # 05: tail jump to other
    "3e8d742600"  # 0a: a static key, off, to 16
    "8b00 90"  # 0f: mov (%eax),%eax: may fault, then goes on at 14
    "0f0b"  # 12: WARN
    "31c0"  # 14: xor %eax,%eax
    "e2f7"  # 16: loop 0f
    "cd79"  # 18: int $0x79: no system call
    "c3"  # 1a: ret
    "c20800"  # 1b: ret $8
).ljust(0x100, b"\xcc")


def kernel() -> Kernel:
    image = bytearray(CODE.ljust(0x1800, b"\0"))

    def put(address: int, *parts: bytes) -> None:
        image[address - TEXT : address - TEXT + sum(map(len, parts))] = b"".join(parts)

    put(DATA, relative(DATA, TEXT + 0x0F), relative(DATA + 4, TEXT + 0x14), b"\3\0\0\0")
    put(DATA + 0x100, relative(DATA + 0x100, TEXT + 0x0A), relative(DATA + 0x104, TEXT + 0x16))
    put(DATA + 0x108, relative(DATA + 0x108, DATA + 0x400 | 1))
    put(DATA + 0x200, struct.pack("<IIHH", TEXT + 0x12, DATA + 0x700, 7, 9))
    put(DATA + 0x400, struct.pack("<iI", 1, 1))
    return Kernel(Symbols(KALLSYMS), Dump(bytes(image), TEXT))


def update(path: Path, adapts: bool = False) -> tuple[str, elf.Elf]:
    """Return the update's text, and the object that it becomes at PATH."""
    found = kernel()
    text = generate([Redirect(check(found, "f"), adapts=adapts)], [], Constants(0x40, 0x24, return_thunk=""))
    source, output = path / "update.S", path / "update.o"
    source.write_text(text)
    subprocess.run(["gcc", "-m32", "-c", "-Wa,--fatal-warnings", "-o", str(output), str(source)], check=True)
    return text, elf.Elf(output.read_bytes(), "update.o")


def table(unit: elf.Elf, name: str) -> tuple[int, list[tuple[int, str]]]:
    """Return a section's size, and offset and type of its relocations."""
    section = next(section for section in unit.sections if section.name == name)
    found = unit.relocations[section.index]
    return section.size, [(entry.offset, unit.arch.relocations[entry.type][0]) for entry in found]


def block(text: str, start: str, end: str) -> list[str]:
    found = re.search(rf"^{re.escape(start)}:\n(.*?)^{re.escape(end)}", text, re.MULTILINE | re.DOTALL)
    assert found
    return [line.strip() for line in found.group(1).splitlines() if not line.endswith(":")]


def carry_of(text: str, offset: int) -> str:
    """Return the label of the text that adds the first carry into what lies at OFFSET behind a use counter."""
    found = re.search(rf"^(\S+):\n\tincl %fs:{offset}\(", text, re.MULTILINE)
    assert found
    return found.group(1)


def direct(instruction: str, slot: str, back: int = 4) -> list[str]:
    """Return the lines of an instruction that holds an address which is known when the update is loaded."""
    return [
        f"{{disp32}} {instruction}", ".pushsection .rodata.directs", f".long 9b - {back}, {slot}", ".popsection"
    ]  # fmt: skip


LOADED = direct("mov $0, %ecx", "f_v1_use")


def test_a_counted_entry_saves_the_register_that_it_uses(tmp_path: Path) -> None:
    text, _unit = update(tmp_path)
    count = [*LOADED, "addl $1, %fs:0(%ecx)", f"jc {(carry := carry_of(text, 4))}"]
    assert block(text, ".Lf_v1.below", ".Lf_v1.c1000000")[1:] == ["push %ecx", *count, "pop %ecx"]
    assert f"jc {carry}\n{carry}.over:\n" in text, "it comes back to where it left"


def test_a_return_finds_ecx_free_and_a_tail_jump_does_not(tmp_path: Path) -> None:
    text, _unit = update(tmp_path)
    for stub, before, after in (
        (".Lf_v1.exit", [], ["ret"]),
        (".Lf_v1.tail0", ["push %ecx"], ["pop %ecx", "jmp 0xc1000100"]),
        (".Lf_v1.tail1", ["push %ecx"], ["pop %ecx", "ret $8"]),
    ):
        lines = block(text, stub, "\tint3")
        (jump,) = (line for line in lines if line.startswith("jc "))
        assert lines == [*before, *LOADED, "addl $1, %fs:8(%ecx)", jump, *after]
        carry = jump.split()[1]
        assert block(text, carry, "\tint3") == ["incl %fs:12(%ecx)", f"jmp {carry}.over"]


def test_what_the_module_completes_are_whole_words_of_instructions(tmp_path: Path) -> None:
    _text, unit = update(tmp_path)
    (code,) = (section for section in unit.sections if section.name == ".text")
    (table,) = (section for section in unit.sections if section.name == ".rodata.directs")
    fields = [entry.addend + entry.symbol.value for entry in unit.relocations[table.index] if entry.offset % 8 == 0]
    assert len(fields) == 4, "an entry, a return, two tail jumps"
    assert {code.data[at - 1 : at + 4] for at in fields} == {b"\xb9\0\0\0\0"}  # mov $0, %ecx


def test_a_handler_that_adapts_pushes_the_arguments_in_their_order(tmp_path: Path) -> None:
    text, _unit = update(tmp_path, adapts=True)
    assert block(text, "f_handler", "\t.size f_handler") == [
        "push %ecx", "push %edx", "push %eax", "mov f_adapt, %eax", "mov %esp, %edx", "call dynamos_adapt",
        "pop %eax", "pop %edx", "pop %ecx", "jmp .Lf_v1.direct", "int3",
    ]  # fmt: skip


def test_tables_have_the_shapes_of_a_32_bit_kernel(tmp_path: Path) -> None:
    _text, unit = update(tmp_path)
    assert table(unit, "__ex_table") == (12, [(0, "R_386_PC32"), (4, "R_386_PC32")])
    assert table(unit, "__jump_table") == (12, [(0, "R_386_PC32"), (4, "R_386_PC32"), (8, "R_386_PC32")])
    size, places = table(unit, "__bug_table")
    assert (size, places) == (12, [(0, "R_386_32")])
    assert table(unit, "__mcount_loc") == (4, [(0, "R_386_32")])


def test_the_description_is_laid_out_in_words_of_the_machine(tmp_path: Path) -> None:
    _text, unit = update(tmp_path)
    symbols = {symbol.name: symbol for symbol in unit.symbols}
    start, end = symbols["dynamos_functions"], symbols["dynamos_functions_end"]
    data = unit.sections[start.section].data[start.value : end.value]
    assert len(data) == 17 * 4
    assert struct.unpack_from("<III", data, 4) == (TEXT, 0x100, TEXT + 5)
    assert data[16:24] == CODE[5:10] + bytes(3)
    assert struct.unpack_from("<I", data, 32) == (1,)


def test_a_kernel_with_plain_returns_has_no_thunk() -> None:
    assert kernel().return_thunks() == frozenset()
