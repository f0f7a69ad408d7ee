"""Safety: everything that forbids a trampoline in a function or a clone of it, each a `Refusal` of its own."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dynamos_ng.arch import x86_64 as arch
from dynamos_ng.arch.x86_64 import Instruction, Kind
from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite.kernel import Kernel, Symbol
from dynamos_ng.rewrite.reader import Body

#: Where ftrace's own calls go, by name; its other trampolines lie outside the kernel's text.
_FTRACE = frozenset(("__fentry__", "ftrace_caller", "ftrace_regs_caller", "ftrace_stub"))
_TABLE = re.compile(r"(-?0x[0-9a-f]+)\(, ?%\w+, ?8\)")


@dataclass(frozen=True)
class Entry:
    """A function's first bytes: the ftrace site, if it has one, and where the trampoline goes."""

    ftrace: int | None
    site: int
    expected: bytes


def check_place(kernel: Kernel, symbol: Symbol) -> None:
    """Refuse functions that must not be redirected wherever their code is good."""
    if symbol.module:
        raise Refusal(symbol.name, f"it belongs to module {symbol.module}", address=symbol.address)
    if words := kernel.forbidden(symbol.address, symbol.end):
        raise Refusal(
            symbol.name, words, address=symbol.address, remedy="redirect one of its callers instead"
        )


def entry(kernel: Kernel, symbol: Symbol, body: Body) -> Entry:
    """Find the ftrace site and the trampoline's place; refuse what cannot hold a trampoline."""
    function = symbol.name
    if not body.parts[0].instructions:
        raise Refusal(function, "it has no instructions", address=symbol.address)
    instructions = list(body.parts[0].instructions)
    at = symbol.address
    if instructions[0].code in (arch.ENDBR, arch.SEALED_ENDBR):
        at = instructions.pop(0).end
    ftrace = None
    if instructions and is_ftrace_site(kernel, symbol, instructions[0]):
        ftrace = at
        at = instructions.pop(0).end
    if at + arch.TRAMPOLINE > symbol.end:
        raise Refusal(
            function, f"too short for a trampoline: {max(symbol.end - at, 0)} bytes at the trampoline's place, "
            f"{arch.TRAMPOLINE} needed", address=at, remedy="redirect one of its callers instead",
        )  # fmt: skip
    expected = kernel.read(at, arch.TRAMPOLINE)
    _check_site(kernel, symbol, body, at, instructions)
    return Entry(ftrace, at, expected)


def is_ftrace_site(kernel: Kernel, symbol: Symbol, first: Instruction) -> bool:
    """Return whether a function's first instruction is its ftrace site: idle, or calling into ftrace."""
    if first.size != 5:
        return False
    if any(key.address == first.address for key in kernel.static_keys(first.address, first.end)):
        return False
    if kernel.static_calls(first.address, first.end):
        return False
    if first.code == arch.NOP5:
        return True
    if first.kind is not Kind.CALL or first.target is None:
        return False
    return not kernel.in_text(first.target) or bool(_FTRACE.intersection(kernel.names(first.target)))


def _check_site(kernel: Kernel, symbol: Symbol, body: Body, site: int, instructions: list[Instruction]) -> None:
    """Refuse a trampoline over bytes that something else enters or patches."""
    function = symbol.name
    end = site + arch.TRAMPOLINE
    if instructions and instructions[0].kind is Kind.JUMP:
        target = instructions[0].target
        if target is not None and not kernel.in_text(target):
            raise Refusal(
                function, f"it begins with a jump out of the kernel's text, to {target:#x}: already redirected",
                address=site, remedy="unload the update (or livepatch) that redirects it",
            )  # fmt: skip
    for instruction in body.instructions:
        if instruction.kind not in arch.DIRECT or instruction.target is None:
            continue
        if instruction.kind is Kind.CALL and instruction.target == symbol.address:
            continue
        if site <= instruction.target < end:
            raise Refusal(
                function, f"branch to {instruction.target:#x}, into the trampoline's bytes",
                address=instruction.address, remedy="redirect one of its callers instead",
            )  # fmt: skip
    for what, places in (
        ("a static key's site", [key.address for key in kernel.static_keys(site - 4, end)]),
        ("the target of a static key", [key.target for key in kernel.static_keys(symbol.address, symbol.end)]),
        ("a static call's site", [call.address for call in kernel.static_calls(site - 4, end)]),
        ("an exception's way out", [fixup.fixup for fixup in kernel.fixups(symbol.address, symbol.end)]),
    ):
        reach = 4 if what.endswith("site") else 0
        for place in places:
            if site - reach <= place < end:
                raise Refusal(
                    function, f"{what} lies in the trampoline's bytes", address=place,
                    remedy="redirect one of its callers instead",
                )  # fmt: skip


def check_instructions(body: Body) -> None:
    """Refuse instructions that cannot be moved, kprobes, and code that runs on past its end."""
    targets = {i.target for i in body.instructions if i.kind in arch.DIRECT}
    for part in body.parts:
        before: Instruction | None = None
        for instruction in part.instructions:
            if instruction.kind is Kind.REFUSED:
                raise Refusal(body.name, f"{instruction.text}: {instruction.detail}", address=instruction.address)
            if instruction.kind is Kind.BREAKPOINT and (
                before is None or before.kind not in arch.ENDING or instruction.address in targets
            ):
                raise Refusal(
                    body.name, "a breakpoint that can be reached: a kprobe inside the function",
                    address=instruction.address, remedy="see /sys/kernel/debug/kprobes/list and remove it",
                )  # fmt: skip
            before = instruction
        if before is not None and before.kind not in arch.ENDING and before.kind is not Kind.CALL:
            raise Refusal(
                body.name, f"{part.name} runs on into the next symbol", address=before.address,
                remedy="it is one of several entries of the same code",
            )  # fmt: skip


def check_exit(function: str, instruction: Instruction, state: bytes | None, entered: bytes | None) -> None:
    """Refuse a way out whose stack is not as at entry: what ORC says of it decides."""
    if state is None or entered is None:
        if instruction.kind is Kind.JUMP_INDIRECT:
            raise Refusal(
                function, f"{instruction.text}: an indirect jump, and no unwind data to tell a tail call from a table",
                address=instruction.address,
            )  # fmt: skip
        return
    # struct orc_entry: stack pointer's offset in the first two bytes, its base register in the low half of the fifth.
    if state[:2] != entered[:2] or state[4] & 15 != entered[4] & 15:
        raise Refusal(
            function, f"{instruction.text}: leaves with the stack not as at entry", address=instruction.address
        )


def check_tables(kernel: Kernel, body: Body) -> None:
    """Refuse indirection tables: an indirect jump in a function that loads addresses of itself from a table."""
    if not any(instruction.kind is Kind.JUMP_INDIRECT for instruction in body.instructions):
        return
    for instruction in body.instructions:
        if found := _TABLE.search(instruction.text):
            table = int(found.group(1), 16) & 0xFFFFFFFFFFFFFFFF
            target = int.from_bytes(kernel.read(table, 8), "little")
            if target != body.address and body.part(target):
                raise Refusal(
                    body.name, f"an indirection table at {table:#x}", address=instruction.address
                )


@dataclass(frozen=True)
class SelfReference:
    """An operand that holds an address inside the function itself: 4 or 8 bytes at `offset` of the instruction."""

    address: int
    offset: int
    width: int
    target: int


def self_references(body: Body) -> dict[int, SelfReference]:
    """Find absolute addresses of the function's interior among its operands, by instruction address.

    Forms that hold a sign-extended or full address and point at an instruction are returned: the clone's operand
    must point into the clone. Anything else is refused (paper, section 4.2, data-in-code).
    """
    found: dict[int, SelfReference] = {}
    for part in body.parts:
        for high in {address & 0xFFFF0000 for address in (part.address, part.end - 1)}:
            pattern = re.compile(re.escape((high >> 16).to_bytes(2, "little")))
            for holder in body.parts:
                code = b"".join(instruction.code for instruction in holder.instructions)
                for match in pattern.finditer(code):
                    at = match.start() - 2
                    if at < 0:
                        continue
                    value = int.from_bytes(code[at : at + 4], "little") | part.address & ~0xFFFFFFFF
                    if part.address <= value < part.end and value != body.address:
                        _note(body, found, holder.address + at, value)
    return found


def _note(body: Body, found: dict[int, SelfReference], place: int, value: int) -> None:
    instruction = body.covering(place)
    offset = place - instruction.address
    if offset == 0 or offset + 4 > instruction.size or instruction.kind in arch.DIRECT or instruction.field == offset:
        return
    width = _width(instruction, offset)
    if not width or value not in body.boundaries:
        raise Refusal(
            body.name, f"{instruction.text}: holds {value:#x}, an address inside the function",
            address=instruction.address, remedy="used as data, it would lead back into the original",
        )  # fmt: skip
    found[instruction.address] = SelfReference(instruction.address, offset, width, value)


def _width(instruction: Instruction, offset: int) -> int:
    """Return how many bytes at OFFSET hold an address operand: 4 sign-extended, 8 full, 0 for any other form."""
    code, last = instruction.code, instruction.size - 4
    if code[0] == 0x68 and offset == 1:
        return 4
    if code[0] & 0xF8 == 0x48 and code[1] == 0xC7 and offset == last:
        return 4
    if code[0] & 0xF8 == 0x48 and code[1] & 0xF8 == 0xB8 and instruction.size == 10 and offset == 2:
        return 8
    return 0
