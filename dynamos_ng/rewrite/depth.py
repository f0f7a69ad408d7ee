"""Depth: how far the stack has grown since a function's entry, where a kernel has no unwind data that says so.

A way out of a function must leave the stack as it was at entry; that tells a tail call from a jump within, and a
clone's exit stub relies on it. What the code does to the stack pointer and to the frame pointer is followed along all
paths. Behind a call that never returns stands something else, so what a branch says is believed before what a call
says.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence

from dynamos_ng.arch import DIRECT, ENDING, Arch, Instruction, Kind
from dynamos_ng.rewrite.reader import Body

_SP, _BP = 4, 5
#: What may or may not come back.
_DOUBTFUL = frozenset((Kind.CALL, Kind.CALL_INDIRECT))
_BRANCHES = DIRECT - {Kind.CALL}
_LEGACY = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
_KEEPS = ("cmp", "test", "push", "call", "jmp", "nop", "bt ", "btl", "btq")
_MEMORY = re.compile(r"\(.*\)")
_STACK = ("%rsp", "%esp", "%sp", "%spl")
_FRAME = ("%rbp", "%ebp", "%bp", "%bpl")


#: How texts end whose last operand, which an instruction writes, is the stack pointer, a frame pointer, or part of one.
_WRITTEN = ("sp", "bp", "pl")
#: How instructions begin that change either in another way.
_IMPLICIT = frozenset(("push", "popl", "popq", "popw", "popa", "popf", "leav", "ente", "iret", "xchg"))


#: Bytes from the stack pointer, and from the frame pointer, up to where the stack was at entry; None: not known.
_State = tuple[int | None, int | None]
_Paths = list[tuple[int, _State]]


def depths(
    body: Body, arch: Arch, leads: Mapping[int, Sequence[int]], warnings: Container[int] = ()
) -> dict[int, int | None]:
    """Return the stack's depth in bytes before each instruction that may leave, branch or use the stack, if it can be
    reached; None where it is not known. All others leave the stack to the next of these as they find it.

    LEADS holds where an instruction may lead besides its own target: static keys, exceptions, indirection tables.
    WARNINGS are the undefined instructions that come back.
    """
    firsts = {part.address: part.instructions[0] for part in body.parts if part.instructions}
    #: What is told of, what stands behind it, and whether that aligns the stack pointer, which this then may save.
    telling: dict[int, tuple[Instruction, Instruction | None, bool]] = {}
    reaches: dict[int, int] = {}  # which of them an instruction leads to, or is
    for part in body.parts:
        behind, close, place = firsts.get(part.limit), True, 0
        for instruction in reversed(part.instructions):
            address, text = instruction.address, instruction.text
            written = text[-2:]
            if (
                close or instruction.kind is not Kind.PLAIN or written in _WRITTEN or text[:4] in _IMPLICIT
                or address in leads
            ):  # fmt: skip
                place = address
                aligned = close and behind is not None and _aligns(behind, arch.word)
                telling[address] = instruction, behind, aligned
            reaches[address] = place
            behind, close = instruction, written == "sp"
    targets = {i.target for i in body.special if i.kind in DIRECT}

    def other_function(instruction: Instruction) -> bool:
        """Return whether only padding lies between here and a function that has no symbol (a weak one, say)."""
        while instruction.kind is Kind.NOP and instruction.address not in leads:
            if instruction.address % 16 == 0 and instruction.code in arch.idle:
                return True
            after = telling[instruction.address][1]
            if after is None or after.address in targets:
                break
            instruction = after
        return False

    realigned: dict[int, int] = {}
    found: dict[int, _State] = {}
    certain: _Paths = [(body.address, (0, None))]
    doubtful: _Paths = []
    while certain or doubtful:
        if certain:
            address, state = certain.pop()
            address = reaches[address]
        else:
            address, state = doubtful.pop()
            address = reaches[address]
            if address in found:
                continue
        known = found.get(address)
        if known == state:
            continue
        if known is not None:
            state = known[0] if known[0] == state[0] else None, known[1] if known[1] == state[1] else None
            if state == known:
                continue
        found[address] = state
        instruction, following, aligned = telling[address]
        kind = instruction.kind
        after = state if kind in _BRANCHES else _step(instruction, state, arch.word, realigned)
        if kind in _BRANCHES and instruction.target in reaches:
            certain.append((instruction.target, after))
        if address in leads:
            certain += [(target, after) for target in leads[address] if target in reaches]
        if following is None:
            continue
        if aligned:
            realigned.update(_saved(instruction, state, arch.word))
        if kind in _DOUBTFUL:
            if not other_function(following):
                doubtful.append((following.address, after))
        elif kind not in ENDING or address in warnings:
            certain.append((following.address, after))
    return {address: stack for address, (stack, _frame) in found.items()}


def _opcode(code: bytes, word: int) -> tuple[int, int]:
    """Return where the opcode is, and the REX prefix in front of it or 0."""
    at = 0
    while at < len(code) - 1 and code[at] in _LEGACY:
        at += 1
    return (at + 1, code[at]) if word == 8 and 0x40 <= code[at] < 0x50 else (at, 0)


def _aligns(instruction: Instruction, word: int) -> bool:
    """Return whether an instruction aligns the stack pointer."""
    if "sp" not in instruction.text:
        return False
    at, rex = _opcode(instruction.code, word)
    return instruction.code[at : at + 2] in (b"\x83\xe4", b"\x81\xe4") and not rex & 1


def _saved(instruction: Instruction, state: _State, word: int) -> dict[int, int]:
    """Return the register that keeps the stack pointer while the stack is aligned otherwise, with its depth.

    Compilers restore the stack pointer from that register, and from no other value of it.
    """
    at, rex = _opcode(instruction.code, word)
    if instruction.code[at] != 0x8D or state[0] is None:
        return {}
    mode, to, low = instruction.code[at + 1] >> 6, instruction.code[at + 1] >> 3 & 7, instruction.code[at + 1] & 7
    if low != 4 or instruction.code[at + 2] & 0x3F != 0x24 or rex & 3:
        return {}
    distance = int.from_bytes(instruction.code[at + 3 :], "little", signed=True) if mode else 0
    return {to | (rex & 4) << 1: state[0] - distance}


def _step(instruction: Instruction, state: _State, word: int, realigned: Mapping[int, int]) -> _State:
    """Return the state after an instruction."""
    stack, frame = state
    code, text = instruction.code, instruction.text
    if instruction.kind is not Kind.PLAIN:
        learns = instruction.kind is Kind.CALL and instruction.target == instruction.end
        return (stack + word, frame) if learns and stack is not None else state
    if 0x50 <= code[0] < 0x58 and stack is not None:  # push of a register: most of what is left
        return stack + word, frame
    at, rex = _opcode(code, word)
    opcode = code[at]
    width = 2 if 0x66 in code[:at] else word
    if text.startswith("push"):
        return None if stack is None else stack + (8 * width if opcode == 0x60 else width), frame
    if text.startswith("pop") and not text.startswith("popcnt"):
        less = None if stack is None else stack - (8 * width if opcode == 0x61 else width)
        own = opcode == 0x58 + _SP and not rex & 1
        return None if own else less, None if opcode in (0x58 + _BP, 0x61) and not rex & 1 else frame
    if opcode == 0xC9:  # leave
        return None if frame is None else frame - word, None
    if len(code) > at + 1 and code[at + 1] >= 0xC0:
        operation, low = code[at + 1] >> 3 & 7, code[at + 1] & 7
        one, two = operation | (rex & 4) << 1, low | (rex & 1) << 3
        if opcode in (0x81, 0x83) and two == _SP and operation in (0, 5):
            raw = code[at + 2 :]
            number = int.from_bytes(raw, "little", signed=True)
            return None if stack is None else stack + (number if operation == 5 else -number), frame
        if opcode in (0x89, 0x8B):
            origin, to = (one, two) if opcode == 0x89 else (two, one)
            if (origin, to) == (_SP, _BP):
                return stack, stack
            if (origin, to) == (_BP, _SP):
                return frame, frame
    elif opcode == 0x8D and (moved := _lea(code[at + 1 :], rex, state, realigned)):
        return moved
    if opcode == 0xCF:  # a return from what was an interrupt: it restores the stack pointer in 64 bits only
        return None if stack is None else stack - (5 if word == 8 else 3) * word, frame
    if text.startswith(("xchg", "enter")):
        exchanged = _MEMORY.sub("", text)
        return None if "sp" in exchanged else stack, None if "bp" in exchanged else frame
    if text.endswith(_STACK) and not text.startswith(_KEEPS):
        stack = None
    if text.endswith(_FRAME) and not text.startswith(_KEEPS):
        frame = None
    return stack, frame


def _lea(operand: bytes, rex: int, state: _State, realigned: Mapping[int, int]) -> _State | None:
    """Return the state after `lea` into or from the stack or frame pointer, None for any other; OPERAND begins with
    the ModRM."""
    mode, to, base = operand[0] >> 6, operand[0] >> 3 & 7 | (rex & 4) << 1, operand[0] & 7 | (rex & 1) << 3
    at = 1
    if base & 7 == _SP:
        if operand[1] & 0x3F != 0x24 or rex & 3:
            return None
        at = 2
    elif base & 7 == _BP and mode == 0:
        return None
    origin = {_SP: state[0], _BP: state[1]}.get(base, realigned.get(base))
    distance = int.from_bytes(operand[at:], "little", signed=True) if mode else 0
    value = None if origin is None else origin - distance
    if to == _SP:
        return value, state[1]
    return (state[0], value) if to == _BP and base in (_SP, _BP) else None
