"""Compiled editions: what is moved, what stays, and where the tables point afterwards."""

from __future__ import annotations

import pytest
from memory_kernel import ENTRY_STATE, NOP5, MemoryKernel, assemble, section

from dynamos_ng.errors import BuildError, Refusal, UsageError
from dynamos_ng.rewrite import Constants, Object, Redirect, check, elf, generate

HEAD = """
	.text
	.globl f_v2
	.type f_v2, @function
f_v2:
"""
TAIL = "\t.size f_v2, . - f_v2\n"
ADDRESSES = {"kernel_function": 0xFFFFFFFF81234560, "__fentry__": 0xFFFFFFFF81076640}


def built(text: str, editions: dict[int, str] | None = None) -> elf.Elf:
    """Return the assembled update whose edition 2 of f comes from an object made of TEXT."""
    unit = assemble(text)
    redirect = Redirect(check(MemoryKernel({"f": NOP5 + "31c0 c3 cc cc"}), "f"), editions or {2: "f_v2"})
    generated = generate([redirect], [Object(unit.raw, "o.o")], Constants(0, 0), ADDRESSES.get)
    return assemble(
        generated.replace("#ifdef CC_USING_NOP_MCOUNT", ".if 0").replace("#else", ".else").replace("#endif", ".endif")
    )


def test_static_keys_that_others_define_are_told() -> None:
    table = '\t.section __jump_table,"aw"\n' + "".join(
        f"\t.long .Lone - ., .Ltwo - .\n\t.quad {key} - .\n" for key in ("outside", "own", "outside + 1")
    )
    unit = assemble(HEAD + ".Lone: nop\n.Ltwo: ret\n" + TAIL + table + "\t.data\nown:\t.quad 0, 0\n")
    assert Object(unit.raw, "o.o").static_keys() == {"outside"}


def symbol(unit: elf.Elf, name: str) -> elf.Symbol:
    return next(item for item in unit.symbols if item.name == name)


def code(unit: elf.Elf, name: str = "f_v2") -> bytes:
    """Return an edition's bytes past its counted entry."""
    found = symbol(unit, name)
    return section(unit, ".text").data[found.value + 11 : found.value + found.size]


def targets(unit: elf.Elf, name: str) -> list[str]:
    """Return what a section's relocations refer to: symbol, or .text with the offset from f_v2."""
    base = symbol(unit, "f_v2").value
    found = []
    for entry in unit.relocations.get(section(unit, name).index, ()):
        if entry.symbol.name == ".text":
            found.append(f"f_v2+{entry.addend - base:#x}")
        else:
            found.append(f"{entry.symbol.name}+{entry.addend:#x}")
    return found


def refused(text: str) -> Refusal:
    with pytest.raises(Refusal) as caught:
        built(text)
    assert caught.value.function == "f_v2"
    return caught.value


def test_returns_and_tail_calls_are_counted() -> None:
    unit = built(HEAD + "\ttest %edi, %edi\n\tje kernel_function\n\txor %eax, %eax\n\tjmp __x86_return_thunk\n" + TAIL)
    moved = code(unit)
    assert moved[:2] == bytes.fromhex("85ff")
    assert moved[2] == 0x74
    assert moved[4:9] == bytes.fromhex("31c0 6549ff"), "the return is the exit stub"
    assert moved.count(bytes.fromhex("6549ff42 08")) == 2, "an exit stub and a tail stub"


def test_a_call_in_which_the_task_ends_is_counted_as_an_exit() -> None:
    unit = built(HEAD + "\ttest %edi, %edi\n\tje .Lback\n\tcall do_exit\n.Lback:\tret\n" + TAIL)
    moved = code(unit)
    assert moved[4:].startswith(bytes.fromhex("4c8b1d 00000000 6549ff43 08 e8"))
    assert moved.count(bytes.fromhex("6549ff43 08")) == 2, "there, and in the exit stub"


def test_the_old_place_leads_to_the_edition_and_keeps_its_size() -> None:
    body = "\txor %eax, %eax\n\txor %edx, %edx\n\tret\n"
    after = "\t.type g, @function\ng:\tnop\n\tcall f_v2\n\tret\n\t.size g, . - g\n"
    unit = built(HEAD + body + TAIL + after)
    text = section(unit, ".text").data
    here = symbol(unit, "g").value
    assert text[here - 5] == 0xE9
    assert text[here : here + 2] == b"\x90\xe8"


def test_an_operand_keeps_its_relocation() -> None:
    unit = built(HEAD + "\tmov $datum+3, %rdi\n\tmov datum(%rip), %eax\n\tret\n" + TAIL + "\t.data\ndatum:\t.quad 7\n")
    start = symbol(unit, "f_v2").value + 11
    found = {r.offset - start: (unit.arch.relocations[r.type][0], r.symbol.name, r.addend)
             for r in unit.relocations[section(unit, ".text").index]}  # fmt: skip
    assert found[3] == ("R_X86_64_32S", ".data", 3)
    assert found[9] == ("R_X86_64_PC32", ".data", -4)


def test_an_address_is_stored_at_an_address() -> None:
    """Two relocations with nothing between, as gcc has it for `pointer = &datum`."""
    unit = built(HEAD + "\tmovq $datum, datum(%rip)\n\tnop\n\tret\n" + TAIL + "\t.data\ndatum:\t.quad 7\n")
    start = symbol(unit, "f_v2").value + 11
    at = {r.offset - start: r.addend for r in unit.relocations[section(unit, ".text").index]}
    assert (at[3], at[7]) == (-8, 0)
    assert code(unit)[:12] == bytes.fromhex("48c705 00000000 00000000 90")


def test_a_kernel_symbol_becomes_an_address_and_an_unknown_one_stays() -> None:
    unit = built(HEAD + "\tcall kernel_function\n\tcall unknown_function\n\tret\n" + TAIL)
    start = symbol(unit, "f_v2").value + 11
    found = {r.offset - start: (r.symbol.name, r.addend) for r in unit.relocations[section(unit, ".text").index]}
    assert found[1] == ("", 0xFFFFFFFF81234560 - 4 - (1 << 64))
    assert found[6] == ("unknown_function", -4)


def test_an_edition_calls_the_original() -> None:
    unit = built(HEAD + "\tcall f_v1\n\tret\n" + TAIL)
    start = symbol(unit, "f_v2").value + 11
    found = {r.offset - start: (r.symbol.name, r.addend) for r in unit.relocations[section(unit, ".text").index]}
    assert found[1] == ("f_v1", -4)


def test_bug_and_exception_entries_follow_the_instructions() -> None:
    unit = built(
        HEAD + "1:\tmov (%rdi), %eax\n2:\tud2\n3:\tret\n" + TAIL
        + '\t.section __ex_table,"a"\n\t.long 1b - ., 3b - ., 3\n'
        + '\t.section __bug_table,"aw"\n\t.long 2b - ., file - .\n\t.short 12, 9\n'
        + "\t.data\nfile:\t.asciz \"f.c\"\n"
    )  # fmt: skip
    assert targets(unit, "__ex_table") == ["f_v2+0xb", "f_v2+0xf"]
    assert targets(unit, "__bug_table") == ["f_v2+0xd", ".data+0x0"]


def test_return_sites_of_changed_instructions_are_dropped() -> None:
    unit = built(
        HEAD + "\txor %eax, %eax\n\txor %eax, %eax\n1:\tjmp __x86_return_thunk\n" + TAIL
        + "\t.type g, @function\ng:\n2:\tjmp __x86_return_thunk\n\t.size g, . - g\n"
        + '\t.section .return_sites,"a"\n\t.long 1b - ., 2b - .\n'
    )  # fmt: skip
    sites = [r.symbol.value + r.addend for r in unit.relocations[section(unit, ".return_sites").index]]
    text = section(unit, ".text").data
    assert all(text[site] == 0xE9 for site in sites)
    # the stubs of f_v1 and f_v2, and g
    assert len(sites) == 3
    assert symbol(unit, "g").value in sites


def test_the_ftrace_site_stands_first() -> None:
    unit = built(
        HEAD + "1:\tcall __fentry__\n\txor %eax, %eax\n\tret\n" + TAIL + '\t.section __mcount_loc,"a"\n\t.quad 1b\n'
    )
    assert section(unit, ".text").data[symbol(unit, "f_v2").value] == 0xE8
    assert "f_v2+0x0" in targets(unit, "__mcount_loc")


def test_a_static_keys_site_becomes_five_bytes() -> None:
    unit = built(
        HEAD + "\txor %eax, %eax\n\txor %eax, %eax\n1:\t.byte 0x66, 0x90\n\tret\n2:\tud2\n" + TAIL
        + '\t.section __jump_table,"aw"\n\t.long 1b - ., 2b - .\n\t.quad key - .\n\t.data\nkey:\t.quad 0\n'
    )  # fmt: skip
    assert code(unit)[4:9] == bytes.fromhex(NOP5)
    site, target, key = targets(unit, "__jump_table")
    assert (site, key) == ("f_v2+0xf", ".data+0x0")
    assert code(unit)[int(target[5:], 16) - 11 :].startswith(b"\x0f\x0b")


def test_a_static_tail_call_is_listed_where_the_stub_jumps() -> None:
    unit = built(
        HEAD + "\txor %eax, %eax\n1:\tjmp kernel_function\n" + TAIL
        + '\t.section .static_call_sites,"aw"\n\t.long 1b - ., key + 1 - .\n\t.data\nkey:\t.quad 0\n'
    )  # fmt: skip
    site = int(targets(unit, ".static_call_sites")[0][5:], 16)
    stub = section(unit, ".text").data[symbol(unit, "f_v2").value + site - 5 :]
    assert stub.startswith(bytes.fromhex("6549ff4208 e9")), "the exit is counted, then the site"


def test_jumps_inside_an_alternative_keep_their_size() -> None:
    unit = built(
        HEAD + "\txor %eax, %eax\n\txor %eax, %eax\n1:\t.byte 0xe9\n\t.long 2f - . - 4\n\tnop\n2:\tret\n" + TAIL
        + '\t.section .altinstructions,"a"\n\t.long 1b - ., 3f - .\n\t.short 5\n\t.byte 5, 0\n'
        + '\t.section .altinstr_replacement,"ax"\n3:\n'
    )  # fmt: skip
    assert code(unit)[4:9] == bytes.fromhex("e9 01000000")


def test_what_the_loader_may_write_a_call_over_has_the_exit_load_its_counter() -> None:
    body = HEAD + "\txor %eax, %eax\n1:\t.nops 5\n\tret\n" + TAIL
    table = '\t.section .altinstructions,"a"\n\t.long 1b - ., 3f - .\n\t.short 5\n\t.byte 5, 0\n'
    table += '\t.section .altinstr_replacement,"ax"\n3:\n'
    assert bytes.fromhex("6549ff42 08") in code(built(body))
    assert bytes.fromhex("4c8b1d 00000000 6549ff43 08") in code(built(body + table))


def test_unwind_entries_of_what_stays_and_of_what_moved() -> None:
    frame = "0x10,0,0,0,5,0"
    entry = "8,0,0,0,5,0"
    unit = built(
        HEAD + "\tpush %rbx\n1:\txor %eax, %eax\n\tpop %rbx\n2:\tret\n\tnop\n" + TAIL
        + "\t.type g, @function\ng:\txor %eax, %eax\n\tret\n3:\t.size g, . - g\n"
        + '\t.section .orc_unwind_ip,"a"\n\t.long f_v2 - ., 1b - ., 2b - ., 3b - .\n'
        + f'\t.section .orc_unwind,"a"\n\t.byte {entry}\n\t.byte {frame}\n\t.byte {entry}\n\t.byte 0,0,0,0,0,0\n'
    )  # fmt: skip
    places = [
        r.symbol.value + r.addend if r.symbol.name != ".text" else r.addend
        for r in unit.relocations[section(unit, ".orc_unwind_ip").index]
    ]
    raw = section(unit, ".orc_unwind").data
    states = {place: raw[6 * i : 6 * i + 6] for i, place in enumerate(places)}
    edition, rest = symbol(unit, "f_v2").value, symbol(unit, "g").value
    assert states[edition] == ENTRY_STATE
    assert states[edition + 11 + 1] == bytes([16, 0, 0, 0, 5, 0])
    assert states[edition + 11 + 4] == ENTRY_STATE
    in_force = max(place for place in states if place <= rest)
    assert states[in_force] == ENTRY_STATE, "g has no entry of its own: it relied on the edition's last one"
    assert states[rest + 3] == bytes(6)


def test_a_reference_from_data_is_to_the_counted_entry() -> None:
    unit = built(HEAD + "\txor %eax, %eax\n\txor %eax, %eax\n\tret\n" + TAIL + "\t.data\n\t.quad f_v2\n")
    assert targets(unit, ".data") == ["f_v2+0x0"]


def test_a_local_edition_gets_a_global_label() -> None:
    text = HEAD.replace("\t.globl f_v2\n", "") + "\txor %eax, %eax\n\txor %eax, %eax\n\tret\n" + TAIL
    assert symbol(built(text), "f_v2").bind == elf.GLOBAL


def test_an_edition_under_another_name() -> None:
    text = (HEAD + "\txor %eax, %eax\n\txor %eax, %eax\n\tret\n" + TAIL).replace("f_v2", "mine")
    unit = built(text, {2: "mine"})
    assert symbol(unit, "mine").value == symbol(unit, "f_v2").value


def test_an_indirect_jump_is_refused() -> None:
    refusal = refused(HEAD + "\txor %eax, %eax\n\txor %eax, %eax\n\tjmp *%rax\n" + TAIL)
    assert "indirect jump" in refusal.reason
    assert refusal.address == 4


def test_an_edition_too_short_to_leave_a_jump_behind() -> None:
    assert "too short" in refused(HEAD + "\tret\n" + TAIL).reason


def test_a_branch_into_another_function() -> None:
    refusal = refused(
        HEAD + "\txor %eax, %eax\n\txor %eax, %eax\n\tjmp g+1\n" + TAIL
        + "\t.type g, @function\ng:\tnop\n\tret\n\t.size g, . - g\n"
    )  # fmt: skip
    assert "not the start of a function" in refusal.reason


def test_data_that_refers_into_an_instruction() -> None:
    body = HEAD + "\txor %eax, %eax\n\txor %eax, %eax\n\tret\n" + TAIL
    assert "middle of an instruction" in refused(body + "\t.data\n\t.quad f_v2 + 1\n").reason


def test_sources_with_a_module_init() -> None:
    text = HEAD + "\txor %eax, %eax\n\txor %eax, %eax\n\tret\n" + TAIL
    text += "\t.globl init_module\n\t.type init_module, @function\ninit_module:\tret\n\t.size init_module, 1\n"
    with pytest.raises(UsageError, match="module_init"):
        built(text)


def test_a_symbol_that_two_sources_define() -> None:
    unit = assemble("\t.data\n\t.globl shared\n\t.type shared, @object\nshared:\t.quad 1\n\t.size shared, 8\n")
    with pytest.raises(BuildError, match=r"shared: defined in a\.o and in b\.o"):
        generate([], [Object(unit.raw, "a.o"), Object(unit.raw, "b.o")], Constants(0, 0))


def test_a_file_that_is_no_object() -> None:
    with pytest.raises(BuildError, match="not a relocatable object"):
        Object(b"\x7fELF\x01\x01" + bytes(64), "a.o")


def test_thread_local_data_is_refused() -> None:
    unit = assemble('\t.section .tdata,"awT",@progbits\n\t.quad 1\n')
    with pytest.raises(BuildError, match="thread-local"):
        generate([], [Object(unit.raw, "a.o")], Constants(0, 0))
