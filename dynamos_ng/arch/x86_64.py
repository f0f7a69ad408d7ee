"""x86_64: what each instruction does to control flow, and where its place-dependent field lies.

capstone finds the length and the text of an instruction; what it means for relocation is read from its bytes
here, so that two versions of capstone cannot disagree about it.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

import capstone

WORD = 8
NOP5 = b"\x0f\x1f\x44\x00\x00"
ENDBR = b"\xf3\x0f\x1e\xfa"
#: What the kernel writes over an endbr that no indirect branch needs.
SEALED_ENDBR = b"\x0f\x1f\x40\x00"
#: `static_call` to a function that returns 0: cs cs cs xor %eax,%eax.
XOR5 = b"\x2e\x2e\x2e\x31\xc0"
INT3 = 0xCC
TRAMPOLINE = 5

CONDITIONS = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")
_LOOPS = {0xE0: "loopne", 0xE1: "loope", 0xE2: "loop", 0xE3: "jrcxz"}
_LOOPS_32 = {0xE0: "addr32 loopne", 0xE1: "addr32 loope", 0xE2: "addr32 loop", 0xE3: "jecxz"}
_REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", )  # fmt: skip
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3, *range(0x40, 0x50)))


class Kind(Enum):
    """What an instruction does to control flow."""

    PLAIN = auto()
    NOP = auto()
    CALL = auto()
    JUMP = auto()
    BRANCH = auto()
    LOOP = auto()
    RETURN = auto()
    CALL_INDIRECT = auto()
    JUMP_INDIRECT = auto()
    UNDEFINED = auto()
    BREAKPOINT = auto()
    REFUSED = auto()


class Instruction(NamedTuple):
    """One decoded instruction.

    `target` is where a branch goes, or what a RIP-relative operand (`field` is the offset of its 4-byte
    displacement, else 0) refers to. `detail` is the mnemonic of a conditional branch or loop, the register of
    an indirect jump ("" for memory), or the reason of a refusal.
    """

    address: int
    size: int
    code: bytes
    kind: Kind
    target: int | None
    field: int
    detail: str
    text: str

    @property
    def end(self) -> int:
        """Return the address just past the instruction."""
        return self.address + self.size


#: Instructions after which the next one is not reached.
ENDING = frozenset((Kind.JUMP, Kind.RETURN, Kind.JUMP_INDIRECT, Kind.UNDEFINED, Kind.BREAKPOINT))
#: Instructions whose target is code.
DIRECT = frozenset((Kind.CALL, Kind.JUMP, Kind.BRANCH, Kind.LOOP))


def decoder() -> capstone.Cs:
    """Return a capstone decoder for 64-bit code with AT&T text, as gas and the kernel's developers write
    it."""
    engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    engine.syntax = capstone.CS_OPT_SYNTAX_ATT
    return engine


_DECODER = decoder()


def decode(code: bytes, address: int) -> tuple[list[Instruction], int]:
    """Decode CODE that stands at ADDRESS; return the instructions and how many bytes they cover.

    Fewer bytes than given means that the next one starts no instruction that capstone knows.
    """
    found: list[Instruction] = []
    append = found.append
    offset = 0
    length = len(code)
    while True:
        for at, size, name, operands in _DECODER.disasm_lite(code[offset:] if offset else code, address + offset):
            start = at - address
            append(_classify(at, size, code[start : start + size], name, operands))
            offset = start + size
        known = 0 if offset >= length else _known(code, offset)
        if not known:
            return found, offset
        append(_classify(address + offset, known, code[offset : offset + known], "(bytes)", ""))
        offset += known


def _known(code: bytes, offset: int) -> int:
    """Return the length of an instruction that capstone 4 or 5 does not know but the manuals do, else 0."""
    head = code[offset : offset + 4]
    prefix = head[:1] in (b"\x66", b"\xf2", b"\xf3")
    if head[prefix : prefix + 2] == b"\x0f\x01" and len(head) > 2 + prefix and head[2 + prefix] >= 0xC0:
        return 3 + prefix  # clac, rdpkru, pvalidate, …: none has more bytes
    if head[:2] == b"\x0f\xb9" and len(head) > 2 and head[2] >= 0xC0:
        return 3  # ud1 reg,reg
    return 0


def _classify(address: int, size: int, code: bytes, name: str, operands: str) -> Instruction:
    text = f"{name} {operands}" if operands else name
    first = code[0]
    at = 0
    if first in _PREFIXES:
        at = 1
        while at < size - 1 and code[at] in _PREFIXES:
            at += 1
        if at > 1 and any(0x40 <= byte < 0x50 for byte in code[: at - 1]):
            return _refused(address, size, code, text, f"prefixes out of order ({code.hex(' ')})")
    opcode = code[at]
    kind = _KINDS[opcode]
    if kind is None:
        if "%rip" in operands or "(%eip" in operands:
            return _relative(address, size, code, at, Kind.PLAIN, text)
        return Instruction(address, size, code, Kind.PLAIN, None, 0, "", text)
    return kind(address, size, code, at, text)


def _refused(address: int, size: int, code: bytes, text: str, reason: str) -> Instruction:
    return Instruction(address, size, code, Kind.REFUSED, None, 0, reason, text)


def _relative(address: int, size: int, code: bytes, at: int, kind: Kind, text: str, detail: str = "") -> Instruction:
    """Return an instruction with a RIP-relative memory operand; AT is the offset of its opcode or VEX
    prefix."""
    if 0x67 in code[:at]:
        return _refused(address, size, code, text, "an EIP-relative operand")
    opcode = code[at]
    if opcode == 0x0F:
        modrm = at + (3 if code[at + 1] in (0x38, 0x3A) else 2)
    elif opcode == 0xC5:
        modrm = at + 3
    elif opcode == 0xC4:
        modrm = at + 4
    elif opcode == 0x62:
        modrm = at + 5
    else:
        modrm = at + 1
    field = modrm + 1
    if field + 4 > size or code[modrm] & 0xC7 != 0x05:
        return _refused(address, size, code, text, "an operand whose displacement was not found")
    target = address + size + int.from_bytes(code[field : field + 4], "little", signed=True)
    return Instruction(address, size, code, kind, target & 0xFFFFFFFFFFFFFFFF, field, detail, text)


def _branch_prefixes(code: bytes, at: int, allowed: frozenset[int]) -> bool:
    return all(byte in allowed or 0x40 <= byte < 0x50 for byte in code[:at])


#: Segment overrides are branch hints or padding on a branch, f2 is `bnd`; all may be dropped.
_HARMLESS = frozenset((0x2E, 0x3E, 0x26, 0x36, 0x64, 0x65, 0xF2))


def _direct(address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
    opcode = code[at]
    if opcode == 0xE8:
        kind, detail, width = Kind.CALL, "", 4
    elif opcode == 0xE9:
        kind, detail, width = Kind.JUMP, "", 4
    elif opcode == 0xEB:
        kind, detail, width = Kind.JUMP, "", 1
    elif opcode >= 0xE0:
        wide = 0x67 not in code[:at]
        kind, detail, width = Kind.LOOP, (_LOOPS if wide else _LOOPS_32)[opcode], 1
    else:
        kind, detail, width = Kind.BRANCH, "j" + CONDITIONS[opcode & 15], 1
    return _branch(address, size, code, at, text, kind, detail, width, 1)


def _branch(
    address: int,
    size: int,
    code: bytes,
    at: int,
    text: str,
    kind: Kind,
    detail: str,
    width: int,
    opcodes: int,
) -> Instruction:
    allowed = _HARMLESS | {0x67} if kind is Kind.LOOP else _HARMLESS
    if at and not _branch_prefixes(code, at, allowed):
        return _refused(address, size, code, text, f"a branch with unknown prefixes ({code.hex(' ')})")
    field = at + opcodes
    if size != field + width:
        return _refused(address, size, code, text, f"a branch of unexpected length ({code.hex(' ')})")
    target = address + size + int.from_bytes(code[field:size], "little", signed=True)
    return Instruction(address, size, code, kind, target & 0xFFFFFFFFFFFFFFFF, 0, detail, text)


def _two_bytes(address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
    second = code[at + 1]
    if 0x80 <= second < 0x90:
        return _branch(address, size, code, at, text, Kind.BRANCH, "j" + CONDITIONS[second & 15], 4, 2)
    if second in (0xB9, 0xFF) and size < at + 3:
        return _refused(address, size, code, text, f"{text}: its operand was not decoded")
    if second in (0x0B, 0xB9, 0xFF):
        return Instruction(address, size, code, Kind.UNDEFINED, None, 0, "", text)
    if second in (0x05, 0x07, 0x34, 0x35):
        return _refused(address, size, code, text, f"{text}: it enters or leaves the kernel")
    if second == 0x1F:
        return Instruction(address, size, code, Kind.NOP, None, 0, "", text)
    if "%rip" in text:
        return _relative(address, size, code, at, Kind.PLAIN, text)
    return Instruction(address, size, code, Kind.PLAIN, None, 0, "", text)


def _group_ff(address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
    modrm = code[at + 1]
    operation = (modrm >> 3) & 7
    if operation in (3, 5):
        return _refused(address, size, code, text, "a far call or jump")
    if operation in (2, 4):
        kind = Kind.CALL_INDIRECT if operation == 2 else Kind.JUMP_INDIRECT
        if 0x66 in code[:at]:
            return _refused(address, size, code, text, "an indirect branch with an operand-size prefix")
        detail = ""
        if modrm >= 0xC0:
            extended = any(byte & 1 for byte in code[:at] if 0x40 <= byte < 0x50)
            detail = _REGISTERS[(modrm & 7) + 8 * extended]
    else:
        kind, detail = Kind.PLAIN, ""
    if modrm & 0xC7 == 0x05:
        return _relative(address, size, code, at, kind, text, detail)
    return Instruction(address, size, code, kind, None, 0, detail, text)


def _return(address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
    if any(byte not in (0xF2, 0xF3) for byte in code[:at]):
        return _refused(address, size, code, text, f"a return with unknown prefixes ({code.hex(' ')})")
    return Instruction(address, size, code, Kind.RETURN, None, 0, "", text)


def _immovable(address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
    reasons = {
        0xC2: "a return that also drops arguments from the stack",
        0xCA: "a far return",
        0xCB: "a far return",
        0xCF: "a return from an interrupt",
        0x8F: "an XOP instruction",
    }
    if code[at] == 0x8F and not code[at + 1] & 0x38:
        return (
            Instruction(address, size, code, Kind.PLAIN, None, 0, "", text)
            if "%rip" not in text
            else _relative(address, size, code, at, Kind.PLAIN, text)
        )
    return _refused(address, size, code, text, reasons[code[at]])


def _group_c7(address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
    if code[at + 1] == 0xF8:
        return _refused(address, size, code, text, "the start of a transaction")
    if "%rip" in text:
        return _relative(address, size, code, at, Kind.PLAIN, text)
    return Instruction(address, size, code, Kind.PLAIN, None, 0, "", text)


def _breakpoint(address: int, size: int, code: bytes, _at: int, text: str) -> Instruction:
    return Instruction(address, size, code, Kind.BREAKPOINT, None, 0, "", text)


def _nop(address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
    plain = 0xF3 not in code[:at] and not any(byte & 1 for byte in code[:at] if 0x40 <= byte < 0x50)
    return Instruction(address, size, code, Kind.NOP if plain else Kind.PLAIN, None, 0, "", text)


_Rule = Callable[[int, int, bytes, int, str], Instruction]


def _kinds() -> list[_Rule | None]:
    kinds: list[_Rule | None] = [None] * 256
    for opcode in (*range(0x70, 0x80), *range(0xE0, 0xE4), 0xE8, 0xE9, 0xEB):
        kinds[opcode] = _direct
    for opcode in (0xC2, 0xCA, 0xCB, 0xCF, 0x8F):
        kinds[opcode] = _immovable
    kinds[0x0F] = _two_bytes
    kinds[0xFF] = _group_ff
    kinds[0xC3] = _return
    kinds[0xC7] = _group_c7
    kinds[0xCC] = _breakpoint
    kinds[0x90] = _nop
    return kinds


_KINDS = _kinds()
