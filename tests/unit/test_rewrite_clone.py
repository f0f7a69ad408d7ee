"""What a clone, its stubs and its tables are made of; bytes beside disassembly."""

from __future__ import annotations

import struct
from typing import Any

import pytest
from memory_kernel import ENTRY_STATE, MODULE, NOP5, TEXT, MemoryKernel, assemble, section

from dynamos_ng.arch.x86_64 import ARCH
from dynamos_ng.errors import Refusal, UsageError
from dynamos_ng.rewrite import Constants, Redirect, check, elf, generate
from dynamos_ng.rewrite.kernel import Bug, Fixup, StaticCall, StaticKey
from dynamos_ng.rewrite.update import Variable

CONSTANTS = Constants(current=0x1FB80, tgid=0x974)
FRAME = bytes.fromhex("100000000500")


def update(code: str, name: str = "f", **kernel: Any) -> elf.Elf:
    """Return the assembled update of one function."""
    memory = MemoryKernel({name: code}, **kernel)
    text = generate([Redirect(check(memory, name))], [], CONSTANTS)
    return assemble(preprocessed(text))


def preprocessed(text: str) -> str:
    """Return the text for gas alone, as for a kernel whose loader writes the ftrace nop."""
    return text.replace("#ifdef CC_USING_NOP_MCOUNT", ".if 0").replace("#else", ".else").replace("#endif", ".endif")


def symbol(unit: elf.Elf, name: str) -> elf.Symbol:
    return next(item for item in unit.symbols if item.name == name)


def image(unit: elf.Elf, name: str = "f_v1") -> bytes:
    """Return the clone's bytes: past the call of __fentry__ and the 11 that count."""
    start = symbol(unit, name)
    return section(unit, ".text").data[start.value + 11 + 5 : start.value + start.size]


def relocations(unit: elf.Elf, name: str = ".text") -> dict[int, tuple[str, str, int]]:
    """Return type, symbol and addend of a section's relocations by offset."""
    found = unit.relocations.get(section(unit, name).index, ())
    return {r.offset: (unit.arch.relocations[r.type][0], r.symbol.name, r.addend) for r in found}


def test_a_handler_begins_with_a_line_of_the_caches() -> None:
    unit = update(NOP5 + "31c0 c3 cc cc")
    start = symbol(unit, "f_handler")
    assert section(unit, ".text").data[start.value : start.value + start.size] == bytes.fromhex("eb3e cc")
    assert start.value % 64 == 0
    assert symbol(unit, "f_v1").value == start.value + 64


def test_the_handler_jumps_past_an_endbr() -> None:
    unit = update("f30f1efa" + NOP5 + "31c0 c3 cc cc")
    start, clone = symbol(unit, "f_handler"), symbol(unit, "f_v1")
    code = section(unit, ".text").data
    assert code[clone.value : clone.value + 4] == bytes.fromhex("f30f1efa"), "it may be called by an indirect branch"
    jump = start.value + start.size - 3
    assert code[jump] == 0xEB
    assert jump + 2 + code[jump + 1] == clone.value + 4


def test_a_handler_that_adapts_hands_the_arguments_to_the_kernel_module() -> None:
    memory = MemoryKernel({"f": NOP5 + "31c0 c3 cc cc"}, unwind=[(TEXT, ENTRY_STATE)])
    unit = assemble(preprocessed(generate([Redirect(check(memory, "f"), adapts=True)], [], CONSTANTS)))
    start = symbol(unit, "f_handler")
    code = section(unit, ".text").data[start.value : start.value + start.size]
    assert code == bytes.fromhex(
        "4151 4150 51 52 56 57"  # push %r9, %r8, %rcx, %rdx, %rsi, %rdi
        "488b3d00000000"  # mov f_adapt(%rip),%rdi
        "4889e6"  # mov %rsp,%rsi
        "e800000000"  # call dynamos_adapt
        "5f 5e 5a 59 4158 4159"  # pop them
        "eb1f cc"  # jmp f_v1
    )
    call = start.value + code.index(bytes.fromhex("e800000000")) + 1
    assert relocations(unit)[call] == ("R_X86_64_PLT32", "dynamos_adapt", -4)
    at = symbol(unit, "dynamos_functions").value + 12 * 8
    slot = ("R_X86_64_64", ".data..ro_after_init", symbol(unit, "f_adapt").value)
    assert relocations(unit, ".data..ro_after_init")[at] == slot
    places = [
        entry[2] + (0 if entry[1] == ".text" else symbol(unit, entry[1]).value)
        for _offset, entry in sorted(relocations(unit, ".orc_unwind_ip").items())
    ]
    raw = section(unit, ".orc_unwind").data
    deepest = max(
        int.from_bytes(raw[6 * i : 6 * i + 2], "little") for i, place in enumerate(places) if place <= call + 4
    )
    assert deepest == int.from_bytes(ENTRY_STATE[:2], "little") + 6 * 8, "a stack is unwound through the call"


def test_what_may_not_be_c_cannot_adapt() -> None:
    memory = MemoryKernel({"f": "31c0 31c0 c3"})
    with pytest.raises(Refusal, match="no ftrace site") as caught:
        generate([Redirect(check(memory, "f"), adapts=True)], [], CONSTANTS)
    assert (caught.value.function, caught.value.address) == ("f", TEXT)


def test_the_first_return_becomes_the_exit_stub() -> None:
    assert image(update(NOP5 + "31c0 c3 cc cc")) == bytes.fromhex(
        "31c0"  # xor %eax,%eax
        "6549ff4208"  # incq %gs:8(%r10): it has been there since the entry
        "e900000000"  # jmp __x86_return_thunk
        "cc"
    )


@pytest.mark.parametrize("what", ["4531d2", "e8 f40f0000"])  # xor %r10d,%r10d; call g
def test_what_may_change_the_entrys_register_has_the_exit_load_it_again(what: str) -> None:
    unit = update(NOP5 + "31c0" + what + "c3", symbols={"g": TEXT + 0x1000})
    assert image(unit).endswith(bytes.fromhex("4c8b1d00000000 6549ff4308 e900000000 cc"))


def test_further_returns_jump_to_the_exit_stub() -> None:
    # test %edi,%edi; je 11; ret; xor %eax,%eax; ret; and without a plain return, the stub stands at the end
    first = bytes.fromhex("6549ff4208 e900000000 cc")
    code = NOP5 + "85ff 7401 c3 31c0 c3"
    assert image(update(code)) == bytes.fromhex("85ff 740b") + first + bytes.fromhex("31c0 ebf1")
    branch = NOP5 + "85ff 0f84 f30f0000 ebfe"  # test %edi,%edi; je srso_return_thunk; jmp .
    unit = update(branch, symbols={"srso_return_thunk": TEXT + 0x1000}, thunks=["srso_return_thunk"])
    assert image(unit) == bytes.fromhex("85ff 7402 ebfe") + first


def test_the_stubs_return_is_a_listed_site() -> None:
    unit = update(NOP5 + "31c0 c3 cc cc")
    (offset, (kind, _name, addend)), *rest = relocations(unit, ".return_sites").items()
    code = section(unit, ".text").data
    assert (offset, kind, rest) == (0, "R_X86_64_PC32", [])
    assert code[addend] == 0xE9
    assert relocations(unit)[addend + 1] == ("R_X86_64_PLT32", "__x86_return_thunk", -4)


def test_a_kernel_without_return_thunk_gets_a_plain_return() -> None:
    memory = MemoryKernel({"f": "31c0 31c0 c3"})
    text = generate([Redirect(check(memory, "f"))], [], Constants(0, 0, return_thunk=""))
    unit = assemble(text)
    assert section(unit, ".text").data[symbol(unit, "f_v1").value :].count(b"\xc3") == 1
    assert not [item for item in unit.sections if item.name == ".return_sites"]


def test_a_jump_to_a_return_thunk_is_a_return() -> None:
    code = NOP5 + "31c0 31c0 e9 f20f0000"  # jmp srso_return_thunk
    unit = update(code, symbols={"srso_return_thunk": TEXT + 0x1000}, thunks=["srso_return_thunk"])
    assert image(unit).startswith(bytes.fromhex("31c0 31c0 6549ff4208"))


def test_calls_and_tail_jumps_go_to_absolute_addresses() -> None:
    # 5: call g; 10: jmp h
    code = NOP5 + "e8 f60f0000 e9 f10f0000"
    unit = update(code, symbols={"g": TEXT + 0x1000, "h": TEXT + 0x1000})
    start = symbol(unit, "f_v1").value + 16
    found = relocations(unit)
    assert found[start + 1] == ("R_X86_64_PC32", "", TEXT + 0x1000 - 4 - (1 << 64))
    tail = [offset for offset, entry in found.items() if entry[2] == TEXT + 0x1000 - 4 - (1 << 64)]
    assert len(tail) == 2
    assert image(unit)[5:7] == b"\xeb\x00", "the jump goes to a stub that counts the exit"


def test_a_call_in_which_the_task_ends_is_counted_as_an_exit() -> None:
    # 5: test edi,edi; 7: je 14; 9: call NAME; 14: ret
    code = NOP5 + "85ff 7405 e8 f20f0000 c3"
    counts = bytes.fromhex("4c8b1d 00000000 6549ff43 08")
    ends = image(update(code, symbols={"kthread_exit": TEXT + 0x1000}))
    assert ends[4:16] == counts
    assert ends[16] == 0xE8
    assert ends.count(counts[-5:]) == 2, "there, and in the exit stub"
    assert image(update(code, symbols={"another": TEXT + 0x1000})).count(counts[-5:]) == 1


def test_a_conditional_tail_call_goes_through_a_stub() -> None:
    unit = update(NOP5 + "85ff 0f85 f30f0000 31c0 c3", symbols={"g": TEXT + 0x1000})
    code = image(unit)
    assert code[:2] == bytes.fromhex("85ff")
    assert code[2] == 0x75, "jne to the stub"
    stub = 4 + code[3]
    assert code[stub : stub + 5] == bytes.fromhex("6549ff4208"), "the stub counts before it leaves"


def test_an_indirect_tail_call_counts_with_the_other_register() -> None:
    code = image(update(NOP5 + "4531d2 41ffe3"))  # xor %r10d,%r10d; jmp *%r11
    assert code.endswith(bytes.fromhex("4c8b1500000000 6549ff4208 41ffe3 cc"))  # mov …,%r10; incq %gs:8(%r10)


def test_a_rip_relative_operand_keeps_its_target() -> None:
    # cmpl $5,0x100(%rip): the displacement is followed by an immediate
    unit = update(NOP5 + "833d 00010000 05 c3")
    start = symbol(unit, "f_v1").value + 16
    assert relocations(unit)[start + 2] == ("R_X86_64_PC32", "", TEXT + 12 + 0x100 - 5 - (1 << 64))
    assert image(unit)[:7] == bytes.fromhex("833d 00000000 05")


def test_inner_branches_are_resized() -> None:
    # 5: test; jne past 16 one-byte nops
    code = image(update(NOP5 + "85ff 0f85 10000000" + "90" * 16 + "c3"))
    assert code[:4] == bytes.fromhex("85ff 7510"), "a near branch becomes a short one"
    assert code[4:20] == b"\x90" * 16


def test_a_loop_is_written_around_its_reach() -> None:
    code = image(update(NOP5 + "31c0 31c0 31c0 ffc0 e2fc c3"))  # 11: inc %eax; loop 11
    assert code[:14] == bytes.fromhex("31c0 31c0 31c0 ffc0 e202 eb02 ebf8")  # loop +2; jmp +2; jmp back


def test_the_cold_part_follows_the_main_part() -> None:
    # 5: test; jne f.cold; 13: xor; ret.   f.cold: mov $1,%eax; jmp 13
    functions = {"f": NOP5 + "85ff 0f85 f3000000 31c0 c3", "f.cold": "b801000000 e9 03ffffff"}
    memory = MemoryKernel(functions)
    original = check(memory, "f")
    assert [part.name for part in original.body.parts] == ["f", "f.cold"]
    text = generate([Redirect(original)], [], CONSTANTS)
    unit = assemble(preprocessed(text))
    code = image(unit)
    assert code[:9] == bytes.fromhex("85ff 750d 31c0 6549ff"), "the exit stub is in the main part"
    assert code[17:] == bytes.fromhex("b801000000 ebec")


def test_a_static_key_is_emitted_in_its_initial_form() -> None:
    # 10: nopw (2 bytes) that a key turns into a jump to 14
    key = StaticKey(TEXT + 10, TEXT + 14, TEXT + 0x8000, branch=True, jumps=True)
    unit = update(NOP5 + "9090909090 6690 31c0 c3", keys=[key])
    start = symbol(unit, "f_v1").value + 16
    assert image(unit)[5:10] == bytes.fromhex("e9 02000000"), "five bytes, jumping over the xor"
    assert relocations(unit, "__jump_table") == {
        0: ("R_X86_64_PC32", ".text", start + 5),
        4: ("R_X86_64_PC32", ".text", start + 12),
        8: ("R_X86_64_PC64", "", TEXT + 0x8000 + 1 - (1 << 64)),
    }


def test_a_static_key_that_starts_as_a_nop_is_a_nop_again() -> None:
    # 10: the key is on now: jmp 14
    key = StaticKey(TEXT + 10, TEXT + 14, TEXT + 0x8000, branch=False, jumps=False)
    assert image(update(NOP5 + "9090909090 eb02 31c0 c3", keys=[key]))[5:10] == bytes.fromhex(NOP5)


def test_a_static_call_is_listed_with_its_key() -> None:
    call = StaticCall(TEXT + 10, TEXT + 0x8000, tail=False)
    unit = update(NOP5 + "9090909090 e8 f10f0000 c3", calls=[call], symbols={"g": TEXT + 0x1000})
    start = symbol(unit, "f_v1").value + 16
    assert relocations(unit, ".static_call_sites") == {
        0: ("R_X86_64_PC32", ".text", start + 5),
        4: ("R_X86_64_PC32", "", TEXT + 0x8000 - (1 << 64)),
    }


@pytest.mark.parametrize("site", [NOP5, "2e2e2e31c0", "6748 0fb93a"])
def test_a_static_call_to_nothing_keeps_its_bytes(site: str) -> None:
    call = StaticCall(TEXT + 10, TEXT + 0x8000, tail=False)
    moved = image(update(NOP5 + "9090909090" + site + "c3", calls=[call]))
    assert moved[5:10] == bytes.fromhex(site)
    assert bytes.fromhex("4c8b1d 00000000 6549ff43 08") in moved, "one that is switched on destroys registers"


@pytest.mark.parametrize("site", ["e9 f10f0000", "c3 cccccccc"])
def test_a_static_tail_call_is_listed_in_its_stub(site: str) -> None:
    call = StaticCall(TEXT + 10, TEXT + 0x8000, tail=True)
    unit = update(
        NOP5 + "9090909090" + site, calls=[call], symbols={"g": TEXT + 0x1000, "r": TEXT + 0x2000}, thunks=["r"]
    )
    found = relocations(unit, ".static_call_sites")
    place = found[0][2]
    code = section(unit, ".text").data
    assert code[place] == 0xE9
    assert code[place - 5 : place] == bytes.fromhex("6549ff4208"), "after the exit was counted"
    assert found[4] == ("R_X86_64_PC32", "", TEXT + 0x8000 + 1 - (1 << 64))


def test_exception_entries_point_into_the_clone() -> None:
    # 10: mov (%rdi),%eax faults, 12: xor is its way out
    unit = update(NOP5 + "9090909090 8b07 31c0 c3", fixups=[Fixup(TEXT + 10, TEXT + 12, 3)])
    start = symbol(unit, "f_v1").value + 16
    assert relocations(unit, "__ex_table") == {
        0: ("R_X86_64_PC32", ".text", start + 5),
        4: ("R_X86_64_PC32", ".text", start + 7),
    }
    assert section(unit, "__ex_table").data[8:] == struct.pack("<I", 3)


def test_a_call_that_is_noted_on_its_way_stays_so() -> None:
    noting = "90909090909090 6548c13d0000000005"  # seven nops; sarq $5,%gs:0(%rip): runs into g
    kernel = MemoryKernel(
        {"f": NOP5 + "9090909090 e8 f8010000 31c0 c3", "h": "c3", "__pfx_g": noting, "g": NOP5 + "c3"},
    )
    kernel.symbols["g"] = kernel.symbols["__pfx_g"] + 16
    padding = kernel.symbols["g"] - 9
    original = check(kernel, "f")
    assert [part.name for part in original.body.parts] == ["f"]
    assert f"\tcall {padding:#x}" in generate([Redirect(original)], [], CONSTANTS)


def test_indirect_branches_go_through_pads_where_their_place_matters() -> None:
    code = NOP5 + "9090909090 41ffd3 ffe0"  # call *%r11; jmp *%rax
    kernel = MemoryKernel({"f": code}, pads={"rax": TEXT + 0x2000, "r11": TEXT + 0x2040})
    text = generate([Redirect(check(kernel, "f"))], [], CONSTANTS)
    assert f"\tcall {TEXT + 0x2040:#x}\t" in text
    assert f"\tjmp {TEXT + 0x2000:#x}\n" in text
    assert "0x41,0xff,0xd3" not in text


def test_a_pad_outside_the_kernels_text_is_a_way_through_a_register() -> None:
    distance = (MODULE - (TEXT + 15)).to_bytes(4, "little").hex()
    kernel = MemoryKernel({"f": NOP5 + "9090909090 e8" + distance + "c3"}, data={MODULE: bytes.fromhex("ffe2cc")})
    assert check(kernel, "f").ways[MODULE].register == "rdx"
    other = MemoryKernel({"f": NOP5 + "9090909090 e8" + distance + "c3"}, data={MODULE: bytes.fromhex("90c3cc")})
    with pytest.raises(Refusal, match="not the start of a function"):
        check(other, "f")


def test_a_function_without_symbol_behind_it_is_left_out() -> None:
    # What the unwind table knows nothing of: push %rbx; ret
    kernel = MemoryKernel({"f": NOP5 + "31c0 c3 cc 53 c3"}, unwind=[(TEXT, ENTRY_STATE), (TEXT + 9, bytes(6))])
    assert check(kernel, "f").body.instructions[-1].end == TEXT + 8


def test_a_bug_entry_has_a_format_where_the_kernels_have_one() -> None:
    bug = Bug(TEXT + 10, TEXT + 0x9000, 77, 0x901, TEXT + 0x9100)
    unit = update(NOP5 + "9090909090 0f0b c3", bugs=[bug])
    assert relocations(unit, "__bug_table") == {
        0: ("R_X86_64_PC32", ".text", symbol(unit, "f_v1").value + 16 + 5),
        4: ("R_X86_64_PC32", "", TEXT + 0x9100 - (1 << 64)),
        8: ("R_X86_64_PC32", "", TEXT + 0x9000 - (1 << 64)),
    }
    assert section(unit, "__bug_table").data[12:] == struct.pack("<HH", 77, 0x901)


def test_a_bug_entry_keeps_file_line_and_flags() -> None:
    unit = update(NOP5 + "9090909090 0f0b c3", bugs=[Bug(TEXT + 10, TEXT + 0x9000, 1234, 0x909)])
    start = symbol(unit, "f_v1").value + 16
    assert relocations(unit, "__bug_table") == {
        0: ("R_X86_64_PC32", ".text", start + 5),
        4: ("R_X86_64_PC32", "", TEXT + 0x9000 - (1 << 64)),
    }
    assert section(unit, "__bug_table").data[8:] == struct.pack("<HH", 1234, 0x909)


def test_the_ftrace_site_is_listed() -> None:
    unit = update(NOP5 + "31c0 c3 cc cc")
    start = symbol(unit, "f_v1").value  # ftrace accepts a site at a function's start alone
    assert relocations(unit, "__mcount_loc") == {0: ("R_X86_64_64", ".text", start)}
    assert relocations(unit)[start + 1] == ("R_X86_64_PLT32", "__fentry__", -4)


def test_whoever_uses_the_ftrace_site_leaves_no_trace_in_a_clone() -> None:
    rest = "31c0 90 90 90 c3 cc cc"
    plain = update(NOP5 + rest)
    away = MODULE - TEXT - 5
    for opcode, name in (("e8", "ftrace_trampoline"), ("e8", "bpf_trampoline_1"), ("e9", "bpf_trampoline_1")):
        used = update(opcode + away.to_bytes(4, "little", signed=True).hex() + rest, symbols={name: MODULE})
        assert section(used, ".text").data == section(plain, ".text").data
        assert relocations(used) == relocations(plain)


def test_unwind_entries_follow_the_instructions() -> None:
    # 5: push %rbx; 6: xor; 8: pop %rbx; 9: ret
    states = [(TEXT, ENTRY_STATE), (TEXT + 6, FRAME), (TEXT + 9, ENTRY_STATE)]
    unit = update(NOP5 + "53 31c0 5b c3 cc", unwind=states)
    clone = symbol(unit, "f_v1")
    places = [
        entry[2] + (0 if entry[1] == ".text" else symbol(unit, entry[1]).value)
        for _offset, entry in sorted(relocations(unit, ".orc_unwind_ip").items())
    ]
    raw = section(unit, ".orc_unwind").data
    entries = list(zip(places, [raw[at : at + 6] for at in range(0, len(raw), 6)], strict=True))
    assert (symbol(unit, "f_handler").value, ENTRY_STATE) in entries
    assert (clone.value, ENTRY_STATE) in entries
    assert (clone.value + 11 + 6, FRAME) in entries
    assert (clone.value + 11 + 9, ENTRY_STATE) in entries
    assert (clone.value + clone.size, bytes(6)) in entries, "what follows is nobody's"


def test_a_function_without_ftrace_site_keeps_registers_and_flags() -> None:
    unit = update("31c0 31c0 c3")
    text = section(unit, ".text").data
    clone = symbol(unit, "f_v1")
    moved = text[clone.value : clone.value + clone.size]
    assert moved.startswith(bytes.fromhex("0f1f440000 4152 9c 4c8b15"))  # nop; push %r10; pushfq; mov …,%r10
    assert bytes.fromhex("4153 9c 4c8b1d 00000000 6549ff4308 9d 415b e9") in moved


def test_a_lock_that_is_off_on_one_cpu_is_on_in_the_clone() -> None:
    code = NOP5 + "31c0 31c0 31c0 3eff07 3eff05 e5feffff c3"  # ds incl (%rdi), and TEXT - 0x100: locks, switched off
    on = image(update(code, locks=[TEXT + 11, TEXT + 14]))
    assert bytes.fromhex("f0ff07 f0ff05") in on
    assert bytes.fromhex("3eff07 3eff05") in image(update(code))


def test_the_description_names_the_original() -> None:
    unit = update(NOP5 + "31c0 c3 cc cc")
    slots = section(unit, ".data..ro_after_init")
    at = symbol(unit, "dynamos_functions").value
    assert symbol(unit, "dynamos_functions_end").value - at == 16 * 8
    row = slots.data[at : at + 14 * 8]
    words = struct.unpack("<14Q", row)
    assert words[1:4] == (TEXT, 10, TEXT + 5)
    assert row[32:40] == bytes.fromhex("31c0c3cccc000000")
    assert words[7] == 1
    names = {r[1] + f"+{r[2]}" for r in relocations(unit, ".data..ro_after_init").values()}
    assert "f_handler+0" in names
    assert "f_row+0" in names


def test_a_function_that_never_leaves_is_marked() -> None:
    unit = update(NOP5 + "31c0 31c0 31c0 eb fe")  # jmp self
    at = symbol(unit, "dynamos_functions_end").value
    number, _start, _end, flags, _use = struct.unpack_from("<5Q", section(unit, ".data..ro_after_init").data, at)
    assert (number, flags) == (1, 1)


def test_the_same_function_twice_is_a_wrong_description() -> None:
    original = check(MemoryKernel({"f": NOP5 + "31c0 c3 cc cc"}), "f")
    with pytest.raises(UsageError, match="twice"):
        generate([Redirect(original), Redirect(original, label="g")], [], CONSTANTS)


def test_an_edition_that_no_source_defines() -> None:
    original = check(MemoryKernel({"f": NOP5 + "31c0 c3 cc cc"}), "f")
    with pytest.raises(UsageError, match="f_v2: no such function"):
        generate([Redirect(original, {2: "f_v2"})], [], CONSTANTS)


def test_an_indirection_table_is_cloned() -> None:
    table = TEXT + 0x8000
    # nop; nop; mov table(,%rax,8),%rax; jmp *%rax; ret; xor %eax,%eax; ret
    code = NOP5 + "9090" + "488b04c5" + (table & 0xFFFFFFFF).to_bytes(4, "little").hex() + "ffe0 c3 31c0 c3"
    data = b"".join(to.to_bytes(8, "little") for to in (TEXT + 17, TEXT + 18, TEXT + 17, TEXT + 0x5000))
    unit = update(code, data={table: data})
    assert section(unit, ".rodata").size == 24, "it ends where an entry lies outside the function"
    start = symbol(unit, "f_v1").value + 11 + 5
    moved = [addend - start for _at, (_kind, _name, addend) in sorted(relocations(unit, ".rodata").items())]
    assert moved[0] == moved[2] == 12
    assert moved[1] == 12 + 11, "the return before it has become the exit stub"
    assert (start + 6, ("R_X86_64_32S", ".rodata", 0)) in relocations(unit).items()
    assert image(unit)[10:12] == bytes.fromhex("ffe0"), "the jump stays inside and counts no exit"


def test_an_indirection_table_of_distances_is_cloned() -> None:
    # nop; nop; lea table(%rip),%rdx; movslq (%rdx,%rax,4),%rax; add %rdx,%rax; jmp *%rax; ret
    table = TEXT + 0x10E
    code = NOP5 + "9090 488d1500010000 48630482 4801d0 ffe0 c3"
    data = b"".join(distance.to_bytes(4, "little", signed=True) for distance in (TEXT + 23 - table, 8))
    unit = update(code, data={table: data})
    start = symbol(unit, "f_v1").value + 11 + 5
    assert relocations(unit, ".rodata") == {0: ("R_X86_64_PC32", ".text", start + 18)}
    assert relocations(unit)[start + 5] == ("R_X86_64_PC32", ".rodata", -4)


def test_an_interior_address_that_an_instruction_holds_moves_along() -> None:
    # mov $f+5,%rax; ret
    unit = update(NOP5 + "48c7c0" + (TEXT + 5 & 0xFFFFFFFF).to_bytes(4, "little").hex() + "c3")
    start = symbol(unit, "f_v1").value + 11 + 5
    assert relocations(unit)[start + 3] == ("R_X86_64_32S", ".text", start)


def test_code_that_runs_on_into_the_next_symbol_takes_it_along() -> None:
    first = bytes.fromhex("31c0 31c9 31d2".replace(" ", "")) + b"\x90" * (0x100 - 6)
    memory = MemoryKernel({"f": first, "g": "ffc0 c3"})
    unit = assemble(preprocessed(generate([Redirect(check(memory, "f"))], [], CONSTANTS)))
    start = symbol(unit, "f_v1")
    code = section(unit, ".text").data[start.value : start.value + start.size]
    assert bytes.fromhex("31c031c931d2eb00ffc0") in code


def test_code_where_a_fault_is_caught_is_taken_along() -> None:
    # f: mov (%rdi),%eax; ret; faults are caught at the start of another symbol; h: or $-1,%eax; ret
    kernel = MemoryKernel(
        {"f": "9090909090 8b07 c3", "h": "83c8ff c3"}, fixups=[Fixup(TEXT + 5, TEXT + 0x100, 3)]
    )
    assert [part.name for part in check(kernel, "f").body.parts] == ["f", "h"]


def test_xens_emulation_prefix_stays_one_with_its_instruction() -> None:
    assert image(update(NOP5 + "9090 0f0b78656e 0fa2 c3"))[:9] == bytes.fromhex("9090 0f0b78656e 0fa2")


def test_variables_alone_make_an_update() -> None:
    limit = Variable("limit", hex(TEXT + 16), bytes((7, 0, 0, 0)), bytes((9, 0, 0, 0)))
    variables = [limit, Variable("b", "b", b"\x01")]
    unit = assemble(preprocessed(generate([], [], CONSTANTS, variables=variables, arch=ARCH)))
    at, end = symbol(unit, "dynamos_variables").value, symbol(unit, "dynamos_variables_end").value
    table = section(unit, ".rodata").data[at:end]
    rows = list(struct.iter_unpack("<4Q8s8s", table))
    assert [row[1:] for row in rows] == [
        (TEXT + 16, 4, 1, bytes((7, *[0] * 7)), bytes((9, *[0] * 7))),
        (0, 1, 0, bytes((1, *[0] * 7)), bytes(8)),
    ]
    assert relocations(unit, ".rodata")[at + 48 + 8][1] == "b", "what only the loader knows is left to it"
    assert symbol(unit, "dynamos_functions").value == symbol(unit, "dynamos_functions_end").value
