"""Symbols and tables of a small kernel made by hand."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from memory_kernel import relative

from dynamos_ng.errors import ImageError, Refusal
from dynamos_ng.image import PARKED, Kernel
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.memory import Dump, Elf, Kcore
from dynamos_ng.rewrite.kernel import Bug, Fixup, StaticCall, StaticKey

TEXT = 0xFFFFFFFF81000000
DATA = TEXT + 0x1000
KALLSYMS = f"""\
0000000000001000 A current_task
{TEXT:016x} T _stext
{TEXT:016x} T first
{TEXT:016x} t first_alias
{TEXT + 0x40:016x} t twin
{TEXT + 0x80:016x} t twin
{TEXT + 0x100:016x} T multi_cpu_stop
{TEXT + 0x140:016x} t called_by_the_loop
{TEXT + 0x180:016x} T __x86_return_thunk
{TEXT + 0x1C0:016x} T __noinstr_text_start
{TEXT + 0x1C0:016x} t quiet
{TEXT + 0x200:016x} T __noinstr_text_end
{TEXT + 0x200:016x} t blacklisted
{TEXT + 0x400:016x} T _etext
{DATA:016x} D x86_return_thunk
{DATA + 0x100:016x} D __start___ex_table
{DATA + 0x118:016x} D __stop___ex_table
{DATA + 0x200:016x} D __start___jump_table
{DATA + 0x230:016x} D __stop___jump_table
{DATA + 0x300:016x} D __start___bug_table
{DATA + 0x30C:016x} D __stop___bug_table
{DATA + 0x400:016x} D __start_static_call_sites
{DATA + 0x408:016x} D __stop_static_call_sites
{DATA + 0x500:016x} D __start_orc_unwind_ip
{DATA + 0x50C:016x} D __stop_orc_unwind_ip
{DATA + 0x600:016x} D __start_orc_unwind
{DATA + 0x700:016x} b uniproc_patched
{DATA + 0x708:016x} D __cpu_possible_mask
{DATA + 0x800:016x} D __smp_locks
{DATA + 0x804:016x} D __smp_locks_end
{DATA + 0x900:016x} d a_key
{DATA + 0xA00:016x} D __start_ro_after_init
{DATA + 0xA00:016x} d a_fixed_key
{DATA + 0xA10:016x} D __end_ro_after_init
{DATA + 0x1000:016x} B _end
{0xFFFFFFFFC0000000:016x} t of_a_module\t[thing]
"""
BLACKLIST = f"0x{TEXT + 0x200:016x}-0x{TEXT + 0x240:016x}\tblacklisted\n"


@pytest.fixture
def memory() -> bytearray:
    image = bytearray(b"\xcc" * 0x1000 + bytes(0x1000))

    def put(address: int, data: bytes) -> None:
        image[address - TEXT : address - TEXT + len(data)] = data

    put(TEXT + 0x100, b"\xe8" + relative(TEXT + 0x105, TEXT + 0x140) + b"\xc3")
    put(DATA, struct.pack("<Q", TEXT + 0x300))
    # two entries, in no order
    put(DATA + 0x100, relative(DATA + 0x100, TEXT + 0x50) + relative(DATA + 0x104, TEXT + 0x58) + b"\7\0\0\0")
    put(DATA + 0x10C, relative(DATA + 0x10C, TEXT + 0x10) + relative(DATA + 0x110, TEXT + 0x18) + b"\3\0\0\0")
    put(DATA + 0x200, relative(DATA + 0x200, TEXT + 0x60) + relative(DATA + 0x204, TEXT + 0x70))
    put(DATA + 0x208, struct.pack("<q", (DATA + 0x900 | 1) - (DATA + 0x208)))
    put(DATA + 0x210, relative(DATA + 0x210, TEXT + 0x20) + relative(DATA + 0x214, TEXT + 0x30))
    put(DATA + 0x218, struct.pack("<q", (DATA + 0x900 | 2) - (DATA + 0x218)))
    put(DATA + 0x220, relative(DATA + 0x220, TEXT + 0x28) + relative(DATA + 0x224, TEXT + 0x30))
    put(DATA + 0x228, struct.pack("<q", DATA + 0xA00 - (DATA + 0x228)))
    put(DATA + 0x900, struct.pack("<iIQ", 1, 0, DATA | 1))  # a key that begins as true
    put(DATA + 0x300, relative(DATA + 0x300, TEXT + 0x44) + relative(DATA + 0x304, DATA) + struct.pack("<HH", 7, 9))
    put(DATA + 0x400, relative(DATA + 0x400, TEXT + 0x48) + relative(DATA + 0x404, DATA + 0x900 | 1))
    for i, offset in enumerate((0, 4, 0x40)):
        put(DATA + 0x500 + 4 * i, relative(DATA + 0x500 + 4 * i, TEXT + offset))
        put(DATA + 0x600 + 6 * i, bytes([8 * i + 8, 0, 0, 0, 5, 0]))
    put(DATA + 0x800, relative(DATA + 0x800, TEXT + 0x64))
    return image


@pytest.fixture
def kernel(memory: bytearray) -> Kernel:
    return Kernel(Symbols(KALLSYMS), Dump(bytes(memory), TEXT), BLACKLIST)


def test_a_function_reaches_to_the_next_symbol(kernel: Kernel) -> None:
    symbol = kernel.function("first")
    assert (symbol.address, symbol.size) == (TEXT, 0x40)
    assert kernel.names(TEXT) == ("_stext", "first", "first_alias")


def test_a_name_that_nobody_has(kernel: Kernel) -> None:
    with pytest.raises(Refusal, match=r"no such function in /proc/kallsyms \(similar: first, first_alias\)"):
        kernel.function("firs")


def test_an_ambiguous_name_tells_the_positions(kernel: Kernel) -> None:
    with pytest.raises(Refusal, match=f"1 = {TEXT + 0x40:#x}, 2 = {TEXT + 0x80:#x}"):
        kernel.function("twin")
    assert kernel.function("twin", 2).address == TEXT + 0x80
    with pytest.raises(Refusal, match="no position 3"):
        kernel.function("twin", 3)


def test_a_function_of_a_module(kernel: Kernel) -> None:
    with pytest.raises(Refusal, match="module thing"):
        kernel.function("of_a_module")
    assert kernel.symbols.find("of_a_module", "thing")[0].module == "thing"


def test_containing_finds_symbol_and_offset(kernel: Kernel) -> None:
    symbol = kernel.containing(TEXT + 0x45)
    assert symbol is not None
    assert (symbol.name, symbol.address) == ("twin", TEXT + 0x40)
    assert kernel.containing(0x10) is None


def test_forbidden_places(kernel: Kernel) -> None:
    assert kernel.forbidden(TEXT, TEXT + 0x40) == ""
    assert kernel.forbidden(TEXT + 0x1C0, TEXT + 0x200) == "noinstr code"
    assert "not to be probed" in kernel.forbidden(TEXT + 0x200, TEXT + 0x210)
    assert "freed after boot" in kernel.forbidden(DATA, DATA + 8)


def test_what_waiting_cpus_run_is_forbidden(kernel: Kernel) -> None:
    assert kernel.forbidden(TEXT + 0x100, TEXT + 0x140) == PARKED
    assert kernel.forbidden(TEXT + 0x140, TEXT + 0x180) == PARKED


def test_return_thunks_are_those_in_text_and_the_chosen_one(kernel: Kernel) -> None:
    assert kernel.return_thunks() == {TEXT + 0x180, TEXT + 0x300}


def test_exception_entries_are_sorted(kernel: Kernel) -> None:
    assert kernel.fixups(TEXT, TEXT + 0x100) == [
        Fixup(TEXT + 0x10, TEXT + 0x18, 3),
        Fixup(TEXT + 0x50, TEXT + 0x58, 7),
    ]
    assert kernel.fixups(TEXT + 0x11, TEXT + 0x50) == []


def test_static_keys_know_their_initial_form(kernel: Kernel) -> None:
    assert kernel.static_keys(TEXT, TEXT + 0x100) == [
        StaticKey(TEXT + 0x20, TEXT + 0x30, DATA + 0x900, branch=False, jumps=True),
        StaticKey(TEXT + 0x60, TEXT + 0x70, DATA + 0x900, branch=True, jumps=False),
    ]


def test_bugs_and_static_calls(kernel: Kernel) -> None:
    assert kernel.bugs(TEXT, TEXT + 0x100) == [Bug(TEXT + 0x44, DATA, 7, 9)]
    assert kernel.static_calls(TEXT, TEXT + 0x100) == [StaticCall(TEXT + 0x48, DATA + 0x900, tail=True)]


def test_bug_entries_of_a_kernel_with_formats_are_longer(memory: bytearray) -> None:
    at, table = DATA + 0x300 - TEXT, b""
    for place in (DATA + 0x300, DATA + 0x310):
        table += relative(place, TEXT + 0x44) + relative(place + 4, DATA + 8) + relative(place + 8, DATA)
        table += struct.pack("<HH", 7, 9)
    memory[at : at + len(table)] = table
    longer = KALLSYMS.replace(f"{DATA + 0x30C:016x}", f"{DATA + 0x320:016x}")
    bugs = Kernel(Symbols(longer), Dump(bytes(memory), TEXT)).bugs(TEXT, TEXT + 0x100)
    assert bugs == [Bug(TEXT + 0x44, DATA, 7, 9, DATA + 8)] * 2


def test_the_first_unwind_entry_is_the_one_in_force(kernel: Kernel) -> None:
    assert [place for place, _state in kernel.orc(TEXT + 2, TEXT + 0x50)] == [TEXT, TEXT + 4, TEXT + 0x40]
    assert kernel.orc(TEXT + 4, TEXT + 0x40) == [(TEXT + 4, bytes([16, 0, 0, 0, 5, 0]))]
    assert kernel.orc(TEXT - 8, TEXT - 4) == []


def test_locks_are_bare_only_while_one_cpu_runs(memory: bytearray) -> None:
    smp = Kernel(Symbols(KALLSYMS), Dump(bytes(memory), TEXT))
    assert smp.bare_locks(TEXT, TEXT + 0x100) == []
    memory[DATA + 0x700 - TEXT] = 1
    memory[DATA + 0x708 - TEXT] = 0b11
    assert Kernel(Symbols(KALLSYMS), Dump(bytes(memory), TEXT)).bare_locks(TEXT, TEXT + 0x100) == [TEXT + 0x64]
    memory[DATA + 0x708 - TEXT] = 0b1  # where there can be no other CPU, the list of them is freed
    memory[DATA + 0x800 - TEXT : DATA + 0x804 - TEXT] = b"\0\0\0\x80"
    assert Kernel(Symbols(KALLSYMS), Dump(bytes(memory), TEXT)).bare_locks(TEXT, TEXT + 0x100) == []


def test_hidden_addresses_say_who_may_see_them() -> None:
    with pytest.raises(ImageError, match="run as root"):
        Symbols("0000000000000000 T _stext\n0000000000000000 T _etext\n")


def test_kcore_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="root only, and not under lockdown"):
        Kcore(tmp_path / "kcore")


def test_bytes_come_from_the_segment_that_holds_them(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<Q", header, 32, 64)
    struct.pack_into("<HH", header, 54, 56, 2)
    segments = struct.pack("<IIQQQQQQ", 1, 5, 176, TEXT, 0, 4, 4, 1)
    segments += struct.pack("<IIQQQQQQ", 1, 6, 180, DATA, 0, 4, 4, 1)
    path.write_bytes(bytes(header) + segments + b"codedata")
    image = Elf(path)
    assert image.read(TEXT + 1, 3) == b"ode"
    assert image.read(DATA, 4) == b"data"
    with pytest.raises(ImageError, match="no 4 bytes"):
        image.read(TEXT + 1, 4)


def test_a_file_that_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(b"MZ")
    with pytest.raises(ImageError, match="not an ELF file"):
        Elf(path)


LOW = 0xC1000000
LISTED = f"""\
{LOW:08x} T _stext
{LOW:08x} T first
{LOW + 0x40:08x} t second
{LOW + 0x100:08x} T static_key_slow_inc
{LOW + 0x200:08x} T _etext
{0xF8000000:08x} t of_a_module\t[thing]
"""


def elf32(sections: dict[str, tuple[int, bytes]]) -> bytes:
    """Return a 32-bit vmlinux with these sections, each at its address in a segment of its own."""
    at, names = 52 + 32 * len(sections), b"\0"
    headers, segments, body = [bytes(40)], b"", b""
    for name, (address, data) in {**sections, ".shstrtab": (0, b"")}.items():
        place = len(names)
        names += name.encode() + b"\0"
        content = data if address else names
        headers.append(struct.pack("<10I", place, 1, 2, address, at + len(body), len(content), 0, 0, 1, 0))
        if address:
            segments += struct.pack("<8I", 1, at + len(body), address, address, len(data), len(data), 7, 1)
        body += content
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, 0, 52, at + len(body), 0, 52, 32, len(sections), 40,
                          len(headers), len(headers) - 1)  # fmt: skip
    return header + segments + body + b"".join(headers)


def sections32(moved: int, build_id: bytes = b"same") -> dict[str, tuple[int, bytes]]:
    """Return the sections of a kernel that runs MOVED bytes from where it was linked for."""
    text, data = LOW + moved, LOW + moved + 0x1000
    code = bytearray(b"\xcc" * 0x200)
    keys = b""
    for i in range(80):
        site, target = text + 0x40 + 5 * (i % 8), text + 0x80
        code[site - text : site - text + 5] = b"\x3e\x8d\x74\x26\0"
        place = data + 12 + 12 * i
        keys += relative(place, site) + relative(place + 4, target) + relative(place + 8, data + 0xC00 | 1)
    rodata = b"not a table!" + keys
    faults = relative(data + 0x900, text + 0x44) + relative(data + 0x904, text + 0x50) + b"\3\0\0\0"
    return {
        ".text": (text, bytes(code)),
        ".rodata": (data, rodata.ljust(0x800, b"\xff")),
        ".data": (data + 0xC00, struct.pack("<iI", 1, 1)),
        "__ex_table": (data + 0x900, faults),
        "__bug_table": (data + 0xA00, struct.pack("<IIHH", text + 0x48, data, 7, 9)),
        ".notes": (data + 0xB00, struct.pack("<III", 4, 4, 3) + b"GNU\0" + build_id),
    }  # fmt: skip


@pytest.mark.parametrize("moved", [0, 0x1200000])
def test_tables_of_a_32_bit_kernel_that_does_not_list_them(moved: int, tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(elf32(sections32(0)))
    (tmp_path / "memory").write_bytes(elf32(sections32(moved)))
    (tmp_path / "kallsyms").write_text(
        "\n".join(f"{int(line[:8], 16) + moved:08x}{line[8:]}" for line in LISTED.splitlines())
    )
    kernel = Kernel.saved(tmp_path / "kallsyms", Elf(tmp_path / "memory"), image=tmp_path / "vmlinux")
    text, data = LOW + moved, LOW + moved + 0x1000
    assert (kernel.arch.name, kernel.function("first").size) == ("i386", 0x40)
    assert kernel.fixups(text, text + 0x100) == [Fixup(text + 0x44, text + 0x50, 3)]
    assert kernel.bugs(text, text + 0x100) == [Bug(text + 0x48, data, 7, 9)]
    assert len(kernel.static_keys(text, text + 0x100)) == 80
    key = StaticKey(text + 0x40, text + 0x80, data + 0xC00, branch=True, jumps=False)
    assert kernel.static_keys(text, text + 0x45) == [key] * 10
    assert not kernel.orc(text, text + 0x100)
    assert not kernel.static_calls(text, text + 0x100)


def test_a_vmlinux_of_another_kernel(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(elf32(sections32(0, b"else")))
    (tmp_path / "memory").write_bytes(elf32(sections32(0)))
    (tmp_path / "kallsyms").write_text(LISTED)
    kernel = Kernel.saved(tmp_path / "kallsyms", Elf(tmp_path / "memory"), image=tmp_path / "vmlinux")
    with pytest.raises(ImageError, match="not the image of the running kernel: their build IDs differ"):
        kernel.fixups(LOW, LOW + 0x100)


def test_tables_that_nobody_tells(tmp_path: Path) -> None:
    (tmp_path / "memory").write_bytes(elf32(sections32(0)))
    with pytest.raises(ImageError, match="vmlinux or vmlinuz is needed"):
        Kernel(Symbols(LISTED), Elf(tmp_path / "memory")).bugs(LOW, LOW + 0x100)
