"""What cannot be redirected or cloned is refused, with the function, the address and the reason."""

from __future__ import annotations

from typing import Any

import pytest
from memory_kernel import ENTRY_STATE, MODULE, NOP5, TEXT, MemoryKernel

from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite import check
from dynamos_ng.rewrite.kernel import Bug, Fixup, StaticCall, StaticKey

DEEP = bytes.fromhex("100000000500")  # one word more on the stack


def refused(code: str, **tables: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        check(MemoryKernel({"f": code}, **tables), "f")
    assert caught.value.function == "f"
    return caught.value


def test_accepts_the_plainest_function() -> None:
    original = check(MemoryKernel({"f": NOP5 + "31c0 c3 cc cc"}), "f")
    assert original.entry.ftrace == TEXT
    assert original.entry.site == TEXT + 5
    assert original.entry.expected == bytes.fromhex("31c0c3cccc")


def test_too_short_for_a_trampoline() -> None:
    refusal = refused(NOP5 + "31c0 c3 cc")  # nop5; xor %eax,%eax; ret; int3
    assert "too short" in refusal.reason
    assert refusal.address == TEXT + 5


def test_padding_may_hold_the_trampolines_end() -> None:
    assert check(MemoryKernel({"f": "31c0 c3 9090"}), "f").entry.site == TEXT


@pytest.mark.parametrize("first", ["f30f1efa", "0f1f4000", "660f1f00", "0f1f40d6"])  # endbr64, and what seals it
def test_site_comes_after_endbr_and_ftrace(first: str) -> None:
    original = check(MemoryKernel({"f": first + NOP5 + "31c0 c3 cc cc"}), "f")
    assert (original.entry.ftrace, original.entry.site) == (TEXT + 4, TEXT + 9)


@pytest.mark.parametrize("caller", ["ftrace_caller", "ftrace_regs_caller", "ftrace_graph_caller"])
def test_a_call_into_ftrace_is_the_ftrace_site(caller: str) -> None:
    kernel = MemoryKernel({"f": "e8 fb 0f 00 00 31c0 c3 cc cc"}, symbols={caller: TEXT + 0x1000})
    assert check(kernel, "f").entry.ftrace == TEXT


def test_a_call_out_of_the_kernel_is_the_ftrace_site() -> None:
    away = (MODULE - TEXT - 5).to_bytes(4, "little").hex()
    assert check(MemoryKernel({"f": "e8" + away + "31c0 c3 cc cc"}), "f").entry.ftrace == TEXT


def test_a_first_call_to_a_function_is_no_ftrace_site() -> None:
    kernel = MemoryKernel({"f": "e8 fb 0f 00 00 31c0 c3 cc cc"}, symbols={"other": TEXT + 0x1000})
    assert check(kernel, "f").entry.ftrace is None


def test_a_static_key_in_front_is_no_ftrace_site_and_forbids_the_trampoline() -> None:
    key = StaticKey(TEXT, TEXT + 7, TEXT + 0x8000, branch=False, jumps=False)
    refusal = refused(NOP5 + "31c0 c3 cc cc", keys=[key])
    assert "static key's site" in refusal.reason


def test_branch_into_the_trampolines_bytes() -> None:
    refusal = refused(NOP5 + "ffc8 85c0 75fa c3")  # 5: dec %eax; test %eax,%eax; jne 5; ret
    assert "branch into" in refusal.reason
    assert refusal.address == TEXT + 9


def test_a_call_of_itself_is_no_branch_into_the_trampoline() -> None:
    assert check(MemoryKernel({"f": "e8 fb ff ff ff c3"}), "f").entry.site == TEXT


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"keys": [StaticKey(TEXT + 5, TEXT + 10, 0, branch=False, jumps=False)]}, "static key's site"),
        ({"keys": [StaticKey(TEXT + 10, TEXT + 6, 0, branch=False, jumps=False)]}, "static key leads into"),
        ({"calls": [StaticCall(TEXT + 5, 0, tail=False)]}, "static call's site"),
        ({"fixups": [Fixup(TEXT + 10, TEXT + 7, 0)]}, "exception's way out"),
        ({"locks": [TEXT + 9]}, "lock that is off"),
    ],
)
def test_tables_that_point_into_the_trampolines_bytes(tables: dict[str, Any], words: str) -> None:
    assert words in refused(NOP5 + NOP5 + "9090909090 c3", **tables).reason


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({"fixups": [Fixup(TEXT + 11, TEXT + 0x5000, 0)]}, "exception table entry"),
        ({"bugs": [Bug(TEXT + 12, 0, 1, 1)]}, "bug table entry"),
        ({"keys": [StaticKey(TEXT + 11, TEXT + 0x5000, 0, branch=False, jumps=False)]}, "static key"),
        ({"calls": [StaticCall(TEXT + 14, 0, tail=False)]}, "static call points outside"),
    ],
)
def test_table_entries_that_do_not_fit_the_code(tables: dict[str, Any], words: str) -> None:
    assert words in refused(NOP5 + "9090909090 90 8b07 85c0 6690 c3", **tables).reason


def test_what_is_entered_without_a_stack_is_no_function() -> None:
    assert "no function" in refused(NOP5 + "31c0 c3 cc cc", unwind=[(TEXT, bytes(6))]).reason


def test_an_edition_in_c_of_what_calls_nothing() -> None:
    """gcc tells the callers which registers it leaves alone, unless it has an ftrace site."""

    def check_editions(code: str) -> None:
        check(MemoryKernel({"f": code, "other": NOP5 + "c3 cc cc cc cc cc"}), "f").check_editions()

    with pytest.raises(Refusal, match="no ftrace site and calls nothing"):
        check_editions("31c0 31c0 31c0 c3 cc cc")
    check_editions(NOP5 + "31c0 31c0 31c0 c3 cc cc")
    check_editions("31c0 31c0 e8 f7000000 c3")


def test_what_ftrace_copies() -> None:
    with pytest.raises(Refusal, match="ftrace copies it"):
        check(MemoryKernel({"ftrace_caller": NOP5 + "31c0 c3 cc cc"}), "ftrace_caller")


def test_noinstr_and_the_like() -> None:
    assert refused(NOP5 + "31c0 c3 cc cc", forbidden="noinstr code").reason == "noinstr code"


def test_an_unknown_instruction() -> None:
    refusal = refused(NOP5 + "31c0 31c0 9090 06 c3")  # push %es
    assert "unknown instruction 06" in refusal.reason
    assert refusal.address == TEXT + 11


def test_an_instruction_that_cannot_be_moved() -> None:
    refusal = refused(NOP5 + "31c0 31c0 31c0 cb")  # lret
    assert "far return" in refusal.reason
    assert refusal.address == TEXT + 11


def test_a_kprobe_inside() -> None:
    refusal = refused(NOP5 + "31c0 31c0 31c0 cc 31c0 c3")
    assert "kprobe" in refusal.reason
    assert refusal.address == TEXT + 11


def test_a_kprobe_over_the_first_byte_of_what_then_cannot_be_read() -> None:
    # b: mov $6,%ecx, its first byte replaced: 06 starts no instruction
    refusal = refused(NOP5 + "31c0 31c0 31c0 cc 06000000 c3")
    assert "kprobe" in refusal.reason
    assert refusal.address == TEXT + 11


def test_a_kprobe_where_only_a_branch_leads() -> None:
    # 5: test; je f; xor; xor; ret; f: int3 (behind a ret, as padding would be); ret
    assert "kprobe" in refused(NOP5 + "85c0 7405 31c0 31c0 c3 cc c3").reason


def test_a_kprobe_where_only_a_static_key_or_an_exception_leads() -> None:
    code = NOP5 + "31c0 31c0 31c0" + NOP5 + "8b00 c3 cc c3"  # b: the key's site; 10: may fault; 13: int3
    key = StaticKey(TEXT + 0xB, TEXT + 0x13, 0, branch=False, jumps=False)
    assert "kprobe" in refused(code, keys=[key]).reason
    assert "kprobe" in refused(code, fixups=[Fixup(TEXT + 0x10, TEXT + 0x13, 0)]).reason
    check(MemoryKernel({"f": code}), "f")


def test_breakpoints_behind_a_return_are_padding() -> None:
    check(MemoryKernel({"f": NOP5 + "85c0 7405 31c0 c3 cc cc 31c0 c3"}), "f")


def test_code_that_runs_on_into_the_next_symbol() -> None:
    assert "runs on" in refused(NOP5 + "31c0 31c0 31c0").reason


def test_a_way_out_at_a_depth_that_nobody_knows() -> None:
    assert "how deep" in refused(NOP5 + "4883e4f0 ffe0", unwind=()).reason  # and $-16,%rsp; jmp *%rax
    check(MemoryKernel({"f": NOP5 + "5589e5 90 5d ffe0"}, unwind=()), "f")


def test_a_stack_aligned_otherwise_is_followed_back() -> None:
    # lea 8(%rsp),%r10; and $-32,%rsp; push -8(%r10); push %rbp; mov %rsp,%rbp; leave; lea -8(%r10),%rsp; ret
    code = NOP5 + "4c8d542408 4883e4e0 41ff72f8 55 4889e5 c9"
    check(MemoryKernel({"f": code + "498d62f8 c3"}, unwind=()), "f")
    assert "not as at entry" in refused(code + "498d62f0 c3", unwind=()).reason


def test_a_way_out_within_a_frame_without_unwind_data() -> None:
    assert "stack not as at entry" in refused(NOP5 + "53 31c0 31c0 c3", unwind=()).reason


def test_an_indirect_jump_within_a_frame() -> None:
    refusal = refused(NOP5 + "53 31c0 31c0 ffe0", unwind=[(TEXT, ENTRY_STATE), (TEXT + 6, DEEP)])
    assert "stack not as at entry" in refusal.reason


def test_an_indirect_tail_call_is_accepted() -> None:
    check(MemoryKernel({"f": NOP5 + "31c0 31c0 ffe0"}), "f")


def test_a_return_within_a_frame() -> None:
    refusal = refused(NOP5 + "53 31c0 31c0 c3", unwind=[(TEXT, ENTRY_STATE), (TEXT + 6, DEEP)])
    assert "stack not as at entry" in refusal.reason


def test_an_indirection_table_shorter_than_its_bound() -> None:
    # cmp $1,%eax; ja; mov table(,%rax,8),%rax; jmp *%rax; the only entry inside the function leads to its own ret
    table = TEXT + 0x8000
    code = NOP5 + "83f801 7708" + "488b04c5" + (table & 0xFFFFFFFF).to_bytes(4, "little").hex() + "ffe0 c3 c3"
    refusal = refused(code, data={table: (TEXT + 20).to_bytes(8, "little")})
    assert "1 entries inside the function, and 2 can be asked for" in refusal.reason


def test_an_indirection_table_that_is_not_found() -> None:
    # lea 0(%rip),%rdx; movslq (%rdx,%rax,4),%rax; add %rdx,%rax; jmp *%rax: what is there is no table
    refusal = refused(NOP5 + "9090 488d1500010000 48630482 4801d0 ffe0 c3", data={TEXT + 0x10E: bytes(0x100)})
    assert "indirection table of this jump was not found" in refusal.reason


def test_an_absolute_address_of_its_own_interior() -> None:
    # add $f+5,%eax; pop; ret: not just a number that an instruction holds
    refusal = refused(NOP5 + "05" + (TEXT + 5 & 0xFFFFFFFF).to_bytes(4, "little").hex() + "58 c3")
    assert "inside the function" in refusal.reason
    assert refusal.address == TEXT + 5


def test_a_branch_of_compiled_code_into_another_function() -> None:
    jump = "e9" + (0x107 - 14).to_bytes(4, "little").hex()
    with pytest.raises(Refusal, match="not the start of a function"):
        check(MemoryKernel({"f": NOP5 + "31c0 31c0" + jump, "g": NOP5 + "31c0 31c0 c3"}), "f")


def test_its_own_address_as_data_stays_the_originals() -> None:
    check(MemoryKernel({"f": NOP5 + "48c7c0" + (TEXT & 0xFFFFFFFF).to_bytes(4, "little").hex() + "c3"}), "f")


def test_a_load_from_its_own_code() -> None:
    refusal = refused(NOP5 + "8b05 faffffff 31c0 c3")  # mov -6(%rip),%eax: itself
    assert refusal.address == TEXT + 5
    assert "inside the function" in refusal.reason


def test_branch_to_the_middle_of_another_function() -> None:
    refusal = refused(NOP5 + "31c0 85c0 0f84 f1000000 c3", symbols={"g": TEXT + 0x100 - 2})
    assert "g+0x2" in refusal.reason


def test_branch_to_where_no_instruction_begins() -> None:
    refusal = refused(NOP5 + "31c0 31c0 31c0 74ff 31c0 c3")  # je into itself
    assert "no instruction begins" in refusal.reason


def test_already_redirected() -> None:
    away = (MODULE - TEXT - 10).to_bytes(4, "little", signed=False).hex()
    refusal = refused(NOP5 + "e9" + away + "c3", symbols={"f_handler": MODULE})
    assert "already redirected" in refusal.reason
    assert "some_module" in refusal.reason


def test_a_short_branch_out_of_the_function() -> None:
    refusal = refused(NOP5 + "31c0 31c0 31c0 e363 c3", symbols={"g": TEXT + 0x70})
    assert "short branch" in refusal.reason


def test_a_known_kprobe_is_told_before_what_it_makes_of_the_code() -> None:
    refusal = refused(NOP5 + "31c0 31c0 31c0 cc 06 c3", probes=[TEXT + 11])  # the rest of an instruction behind it
    assert refusal.reason == "a kprobe stands in it"
    assert refusal.address == TEXT + 11


@pytest.mark.parametrize("slot", [0, 0x7C])
def test_an_optimised_kprobe_inside(slot: int) -> None:
    # 11: jmp to the kprobe's own code, in a page that has a symbol of its own
    away = (MODULE + slot - TEXT - 16).to_bytes(4, "little").hex()
    refusal = refused(NOP5 + "31c0 31c0 31c0 e9" + away + "c3", symbols={"kprobe_optinsn_page": MODULE})
    assert "kprobe_optinsn_page of some_module" in refusal.reason
    assert refusal.address == TEXT + 11
