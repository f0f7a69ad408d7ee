"""Safety: all that forbids a trampoline in a function or a clone of it, each a `Refusal` of its own."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from dynamos_ng.arch import DIRECT, ENDING, Instruction, Kind
from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite.indirection import Indirection
from dynamos_ng.rewrite.kernel import Kernel, Symbol
from dynamos_ng.rewrite.reader import Body, breakpoint_reached

#: Where ftrace's own calls go, by name; its other trampolines lie outside the kernel's text.
_FTRACE = frozenset(("__fentry__", "ftrace_caller", "ftrace_graph_caller", "ftrace_regs_caller", "ftrace_stub"))
#: Later kernels have the site jump there where fexit programs are attached; it goes on behind the site.
_BPF_TRAMPOLINE = "bpf_trampoline_"
#: Whose code ftrace takes for its own trampolines.
_COPIED = frozenset(("ftrace_caller", "ftrace_regs_caller"))
_CALLERS = "redirect one of its callers instead"


@dataclass(frozen=True)
class Entry:
    """A function's first bytes: the ftrace site, if it has one, and where the trampoline goes."""

    ftrace: int | None
    site: int
    expected: bytes


def check_place(kernel: Kernel, symbol: Symbol) -> None:
    """Refuse functions that must not be redirected, however good their code."""
    if symbol.module and not kernel.in_text(symbol.address):
        raise Refusal(symbol.name, f"it belongs to module {symbol.module}", address=symbol.address, kind="of a module")
    if words := kernel.forbidden(symbol.address, symbol.end):
        raise Refusal(symbol.name, words, address=symbol.address, remedy=_CALLERS)
    if _COPIED.intersection(kernel.names(symbol.address)):
        raise Refusal(symbol.name, "ftrace copies it and writes to it", address=symbol.address, remedy=_CALLERS)
    for place in kernel.probes(symbol.address, symbol.end):
        remedy = "remove it: /sys/kernel/debug/kprobes/list shows it"
        raise Refusal(symbol.name, "a kprobe stands in it", address=place, remedy=remedy, kind="a kprobe")


def entry(kernel: Kernel, symbol: Symbol, body: Body) -> Entry:
    """Find the ftrace site and the trampoline's place; refuse what cannot hold a trampoline."""
    arch, function = kernel.arch, symbol.name
    instructions = list(body.parts[0].instructions[:3])
    if not instructions:
        raise Refusal(function, "it has no instructions", address=symbol.address)
    at = symbol.address
    if instructions[0].code in arch.endbr:
        at = instructions.pop(0).end
    ftrace = None
    if instructions and is_ftrace_site(kernel, instructions[0]):
        ftrace = at
        at = instructions.pop(0).end
    if at + arch.trampoline > symbol.end:
        left = max(symbol.end - at, 0)
        reason = f"too short for a trampoline: {left} bytes where {arch.trampoline} are needed"
        raise Refusal(function, reason, address=at, remedy=_CALLERS, kind="too short for a trampoline")
    expected = kernel.read(at, arch.trampoline)
    if instructions:
        _check_redirected(kernel, function, instructions[0])
    _check_site(kernel, symbol, body, at)
    return Entry(ftrace, at, expected)


def is_ftrace_site(kernel: Kernel, first: Instruction) -> bool:
    """Return whether a function's first instruction is its ftrace site: idle, or leading into ftrace."""
    if first.size != len(kernel.arch.nop5):
        return False
    if any(key.address == first.address for key in kernel.static_keys(first.address, first.end)):
        return False
    if kernel.static_calls(first.address, first.end):
        return False
    if first.code in kernel.arch.idle:
        return True
    if first.kind is Kind.JUMP and first.target is not None and not kernel.in_text(first.target):
        to = kernel.containing(first.target)
        return to is not None and to.module == "bpf" and to.name.startswith(_BPF_TRAMPOLINE)
    if first.kind is not Kind.CALL or first.target is None:
        return False
    return not kernel.in_text(first.target) or bool(_FTRACE.intersection(kernel.names(first.target)))


def _check_redirected(kernel: Kernel, function: str, first: Instruction) -> None:
    """Refuse a function that begins with a jump to a module: it is redirected already."""
    if first.kind is not Kind.JUMP or first.target is None or kernel.in_text(first.target):
        return
    to = kernel.containing(first.target)
    if to is None or to.module:
        where = f"{first.target:#x}" + (f", {to.name} of module {to.module}" if to else "")
        raise Refusal(
            function,
            f"already redirected: it begins with a jump to {where}",
            address=first.address,
            remedy="unload the update, livepatch or probe that redirects it",
            kind="already redirected",
        )


def _check_site(kernel: Kernel, symbol: Symbol, body: Body, site: int) -> None:
    """Refuse a trampoline over bytes that something else enters or patches."""
    end = site + kernel.arch.trampoline
    for instruction in body.special:
        target = instruction.target
        if instruction.kind not in DIRECT or target is None:
            continue
        if site <= target < end and (instruction.kind is not Kind.CALL or target != symbol.address):
            reason = f"branch into the trampoline's bytes, to {target:#x}"
            kind = "branch into the trampoline's bytes"
            raise Refusal(symbol.name, reason, address=instruction.address, remedy=_CALLERS, kind=kind)
    whole = symbol.address, symbol.end
    sites = [key.address for key in kernel.static_keys(site - 4, end)]
    calls = [call.address for call in kernel.static_calls(site - 4, end)]
    entered = [key.target for key in kernel.static_keys(*whole)]
    caught = [fixup.fixup for fixup in kernel.fixups(*whole)]
    for what, reach, places in (
        ("a lock that is off while one processor runs lies in", 0, kernel.bare_locks(site, end)),
        ("a static key's site lies in", 4, sites),
        ("a static call's site lies in", 4, calls),
        ("a static key leads into", 0, entered),
        ("an exception's way out leads into", 0, caught),
    ):
        for place in places:
            if site - reach <= place < end:
                reason = f"{what} the trampoline's bytes"
                raise Refusal(symbol.name, reason, address=place, remedy=_CALLERS)


def check_instructions(body: Body, entered: Set[int] = frozenset(), user: bool = False) -> None:
    """Refuse instructions that cannot be moved, kprobes, and code that runs on past its end.

    ENTERED: where static keys and exceptions lead, besides the branches. System calls are for USER code only: a
    kernel that makes one is not understood.
    """
    targets = {instruction.target for instruction in body.special if instruction.kind in DIRECT} | entered
    for part in body.parts:
        before: Instruction | None = None
        for instruction in part.special:
            if instruction.kind is Kind.REFUSED:
                reason = f"{instruction.text}: {instruction.detail}"
                raise Refusal(body.name, reason, address=instruction.address, kind=instruction.detail.split("(")[0])
            if instruction.kind is Kind.SYSTEM and not user:
                reason = f"{instruction.text}: it enters the kernel"
                raise Refusal(body.name, reason, address=instruction.address, kind="a system call")
            if instruction.kind is Kind.BREAKPOINT:
                passed = before is not None and before.end == instruction.address and before.kind in ENDING
                if not passed or instruction.address in targets:
                    raise breakpoint_reached(body.name, instruction.address)
            before = instruction
        if part.runs_on and not body.begins(part.limit):
            raise Refusal(
                body.name,
                f"{part.name} runs on into the next symbol",
                address=part.instructions[-1].address,
                remedy="it is one of several entries of the same code",
                kind="runs on into the next symbol",
            )


def check_leads(kernel: Kernel, body: Body, place: Entry, tables: Indirection) -> None:
    """Refuse indirection tables that lead into the trampoline's bytes."""
    for jump in tables.jumps:
        for target in tables.targets(jump):
            if place.site <= target < place.site + kernel.arch.trampoline:
                reason = f"an indirection table leads into the trampoline's bytes, to {target:#x}"
                kind = "branch into the trampoline's bytes"
                raise Refusal(body.name, reason, address=jump, remedy=_CALLERS, kind=kind)


def check_exit(
    function: str, instruction: Instruction, state: bytes | None, entered: bytes | None, depth: int | None
) -> None:
    """Refuse a way out whose stack is not as at entry: what ORC says of it decides, or else its DEPTH in bytes."""
    if state is None or entered is None:
        if depth is None:
            reason = f"{instruction.text}: leaves, and how deep the stack is there cannot be told"
            raise Refusal(function, reason, address=instruction.address, kind="leaves with an unknown stack depth")
        same = depth == 0
    else:
        # struct orc_entry: the stack pointer's offset in its first two bytes, the base register in the low half of
        # its fifth.
        same = state[:2] == entered[:2] and state[4] & 15 == entered[4] & 15
    if not same:
        reason = f"{instruction.text}: leaves with the stack not as at entry"
        raise Refusal(function, reason, address=instruction.address, kind="leaves with the stack not as at entry")


def addresses(body: Body) -> dict[int, int]:
    """Return the function's interior addresses that instructions hold as a plain number, by instruction.

    Refuse all other absolute addresses of the interior among the operands (paper, section 4.2): they would lead from
    the clone back into the original. The address of the function itself is no such thing: it is the address that
    everybody calls. Nor is a RIP-relative `lea` of an instruction: it moves with the code.
    """
    found: dict[int, int] = {}
    codes = [(part, b"".join([instruction.code for instruction in part.instructions])) for part in body.parts]
    for part in body.parts:
        for high in {place >> 16 & 0xFFFF for place in (part.address, part.end - 1)}:
            wanted = high.to_bytes(2, "little")
            for holder, code in codes:
                at = code.find(wanted, 2)
                while at >= 0:
                    value = int.from_bytes(code[at - 2 : at + 2], "little") | part.address & ~0xFFFFFFFF
                    if part.address <= value < part.end and value != body.address:
                        _check_address(body, holder.address + at - 2, value, found)
                    at = code.find(wanted, at + 1)
    for instruction in body.instructions:
        target = instruction.target
        if not instruction.field or target is None or target == body.address or not body.part(target):
            continue
        if not instruction.text.startswith("lea") or target not in body.boundaries:
            _refuse_address(body, instruction, target)
    return found


def _check_address(body: Body, place: int, value: int, found: dict[int, int]) -> None:
    """Take four bytes that hold VALUE, if they can be an operand; refuse what is not just a number."""
    instruction = body.covering(place)
    offset = place - instruction.address
    if not 0 < offset <= instruction.size - 4 or instruction.kind in DIRECT or instruction.field == offset:
        return
    number = offset == instruction.size - 4 and not instruction.field and "$" in instruction.text
    if not number or not instruction.text.startswith(("mov", "push")) or value not in body.boundaries:
        _refuse_address(body, instruction, value)
    found[instruction.address] = value


def _refuse_address(body: Body, instruction: Instruction, value: int) -> None:
    raise Refusal(
        body.name,
        f"{instruction.text}: holds {value:#x}, an address inside the function",
        address=instruction.address,
        remedy="used as data, it would lead back into the original",
        kind="its address used as data",
    )
