"""x86, 32 and 64 bits: what each instruction does to control flow, and where its place-dependent field lies.

capstone finds the length and the text of an instruction; what it means for relocation is read from its bytes
here, so that two versions of capstone cannot disagree about it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import capstone

from dynamos_ng.arch import Instruction, Kind

#: `static_call` to a function that returns 0: cs cs cs xor %eax,%eax.
XOR5 = b"\x2e\x2e\x2e\x31\xc0"
#: `static_call` to what reports a warning: ud1 (%edx),%rdi.
WARN5 = b"\x67\x48\x0f\xb9\x3a"
CONDITIONS = ("o", "no", "b", "ae", "e", "ne", "be", "a", "s", "ns", "p", "np", "l", "ge", "le", "g")
REGISTERS = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14",
    "r15", )  # fmt: skip
_PREFIXES = frozenset((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65, 0x66, 0x67, 0xF0, 0xF2, 0xF3))
_REX = frozenset(range(0x40, 0x50))
#: Loops, and loops with an address-size prefix.
_LOOPS = {
    64: (("loopne", "loope", "loop", "jrcxz"), ("addr32 loopne", "addr32 loope", "addr32 loop", "jecxz")),
    32: (("loopne", "loope", "loop", "jecxz"), ("addr16 loopne", "addr16 loope", "addr16 loop", "jcxz")),
}
#: Segment overrides are branch hints or padding on a branch, f2 is `bnd`; all may be dropped.
_HARMLESS = frozenset((0x2E, 0x3E, 0x26, 0x36, 0x64, 0x65, 0xF2))
#: ModRM, and SIB where there is one, of `lea` of a register into itself.
_SELF = (b"\x76", b"\xb6", b"\x74\x26", b"\xb4\x26", b"\x7f", b"\xbf", b"\x7c\x27", b"\xbc\x27")
_IMMOVABLE = {
    0xCA: "a far return",
    0xCB: "a far return",
    0xCF: "a return from an interrupt",
    0x9A: "a far call",
    0xEA: "a far jump",
}

#: Plain instructions of up to so many bytes, most of all code, are looked at once: the bytes say all of them.
_SHORT = 4
#: Returns from interrupts, of the code's own width.
_IRET = (b"\xcf", b"\x48\xcf")

#: What Xen's guests put in front of an instruction that the hypervisor is to emulate: an undefined one, and "xen".
_XEN = b"\x0f\x0bxen"

_Rule = Callable[[int, int, bytes, int, str], Instruction]


def _known(code: bytes, offset: int) -> int:
    """Return the length of an instruction that capstone 4 or 5 does not know but the manuals do, else 0."""
    head = code[offset : offset + 4]
    prefix = head[:1] in (b"\x66", b"\xf2", b"\xf3")
    if head[prefix : prefix + 2] == b"\x0f\x01" and len(head) > 2 + prefix and head[2 + prefix] >= 0xC0:
        return 3 + prefix  # clac, rdpkru, pvalidate, …: none has more bytes
    return _undefined(code, offset)


def _undefined(code: bytes, offset: int) -> int:
    """Return the length of a `ud1` with its operand, which capstone may leave out, else 0."""
    at = offset
    while at < len(code) and code[at] in (0x66, 0x67, *_REX):
        at += 1
    if code[at : at + 2] != b"\x0f\xb9" or len(code) < at + 3:
        return 0
    mode, base = code[at + 2] >> 6, code[at + 2] & 7
    if mode != 3 and base == 4:
        base = code[at + 3] & 7 if len(code) > at + 3 else 0
        at += 1
    return at + 3 + {1: 1, 2: 4}.get(mode, 4 if mode == 0 and base == 5 else 0) - offset


def _plain(address: int, size: int, code: bytes, kind: Kind, text: str, detail: str = "") -> Instruction:
    return Instruction(address, size, code, kind, None, 0, detail, text)


def _refused(address: int, size: int, code: bytes, text: str, reason: str) -> Instruction:
    return Instruction(address, size, code, Kind.REFUSED, None, 0, reason, text)


class Decoder:
    """Decodes code of BITS (32 or 64), with AT&T text, as gas and the kernel's developers write it."""

    def __init__(self, bits: int) -> None:
        self._engine = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64 if bits == 64 else capstone.CS_MODE_32)
        self._engine.syntax = capstone.CS_OPT_SYNTAX_ATT
        self._mask = (1 << bits) - 1
        self._rex = _REX if bits == 64 else frozenset[int]()
        self._prefixes = _PREFIXES | self._rex
        self._loops = _LOOPS[bits]
        self._rules = self._all_rules()
        self._plain: dict[bytes, str] = {}

    def _all_rules(self) -> list[_Rule | None]:
        rules: list[_Rule | None] = [None] * 256
        for opcode in (*range(0x70, 0x80), *range(0xE0, 0xE4), 0xE8, 0xE9, 0xEB):
            rules[opcode] = self._direct
        for opcode in _IMMOVABLE:
            rules[opcode] = self._immovable
        rules[0x0F] = self._two_bytes
        rules[0x8F] = self._pop
        rules[0x90] = self._nop
        rules[0xC2] = rules[0xC3] = self._return
        rules[0xC7] = self._group_c7
        rules[0xCC] = self._breakpoint
        rules[0xCD] = self._interrupt
        rules[0xFF] = self._group_ff
        if not self._rex:
            rules[0x89] = self._move
            rules[0x8D] = self._lea
        return rules

    def decode(self, code: bytes, address: int) -> tuple[list[Instruction], int]:
        """Decode CODE that stands at ADDRESS; return the instructions and how many bytes they cover.

        Fewer bytes than given means that the next one starts no instruction that capstone knows.
        """
        found: list[Instruction] = []
        plain, make = self._plain, tuple.__new__
        append, classify, disassemble = found.append, self._classify, self._engine.disasm_lite
        offset = 0
        length = len(code)
        while True:
            end = code.find(_XEN, offset)
            piece = code[offset : end if end >= 0 else length] if offset or end >= 0 else code
            for at, size, name, operands in disassemble(piece, address + offset):
                start = at - address
                if name == "ud1" and size < _undefined(code, start):
                    break
                offset = start + size
                raw = code[start:offset]
                if text := plain.get(raw):
                    append(make(Instruction, (at, size, raw, Kind.PLAIN, None, 0, "", text)))
                    continue
                one = classify(at, size, raw, name, operands)
                append(one)
                if size <= _SHORT and one.kind is Kind.PLAIN:
                    plain[raw] = one.text
            known = 0 if offset >= length else len(_XEN) if offset == end else _known(code, offset)
            if not known:
                return self._serialising(found) if b"\xcf" in code else found, offset
            moved = code[offset : offset + known]
            if offset == end:
                append(_plain(address + offset, known, moved, Kind.PLAIN, "(emulation prefix)"))
            else:
                append(classify(address + offset, known, moved, "(bytes)", ""))
            offset += known

    def _serialising(self, found: list[Instruction]) -> list[Instruction]:
        """Let pass a return from an interrupt that leads to the next instruction, whose address was pushed right
        before: so sync_core() makes a CPU forget what it has read ahead."""
        for at in range(1, len(found)):
            before, code = found[at - 1].code, found[at].code
            if code in _IRET and before[0] == 0x68 and len(before) == 5:
                pushed = int.from_bytes(before[1:], "little", signed=True)
                if self._wrapped(pushed, found[at].address) == found[at].end:
                    found[at] = found[at]._replace(kind=Kind.PLAIN, detail="")
        return found

    def _classify(self, address: int, size: int, code: bytes, name: str, operands: str) -> Instruction:
        text = f"{name} {operands}" if operands else name
        prefixes = self._prefixes
        at = 0
        if code[0] in prefixes:
            at = 1
            while at < size - 1 and code[at] in prefixes:
                at += 1
            if at > 1 and not self._rex.isdisjoint(code[: at - 1]):
                return _refused(address, size, code, text, f"prefixes out of order ({code.hex(' ')})")
        rule = self._rules[code[at]]
        if rule is not None:
            return rule(address, size, code, at, text)
        if "%rip" in operands or "(%eip" in operands:
            return self._relative(address, size, code, at, Kind.PLAIN, text)
        return Instruction(address, size, code, Kind.PLAIN, None, 0, "", text)

    def _wrapped(self, target: int, address: int) -> int:
        """Return TARGET within the code's address space, which for 32 bits is the 4 GiB around ADDRESS."""
        return target & self._mask | address & ~self._mask

    def _operand(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
        """Return a plain instruction that may have a RIP-relative operand."""
        if "%rip" in text:
            return self._relative(address, size, code, at, Kind.PLAIN, text)
        return _plain(address, size, code, Kind.PLAIN, text)

    def _relative(
        self, address: int, size: int, code: bytes, at: int, kind: Kind, text: str, detail: str = ""
    ) -> Instruction:
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
        return Instruction(address, size, code, kind, self._wrapped(target, address), field, detail, text)

    def _direct(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
        opcode = code[at]
        if opcode == 0xE8:
            kind, detail, width = Kind.CALL, "", 4
        elif opcode == 0xE9:
            kind, detail, width = Kind.JUMP, "", 4
        elif opcode == 0xEB:
            kind, detail, width = Kind.JUMP, "", 1
        elif opcode >= 0xE0:
            kind, detail, width = Kind.LOOP, self._loops[0x67 in code[:at]][opcode - 0xE0], 1
        else:
            kind, detail, width = Kind.BRANCH, "j" + CONDITIONS[opcode & 15], 1
        return self._branch(address, size, code, at, text, kind, detail, width, 1)

    def _branch(
        self,
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
        if at and not all(byte in allowed or byte in self._rex for byte in code[:at]):
            return _refused(address, size, code, text, f"a branch with unknown prefixes ({code.hex(' ')})")
        field = at + opcodes
        if size != field + width:
            return _refused(address, size, code, text, f"a branch of unexpected length ({code.hex(' ')})")
        target = address + size + int.from_bytes(code[field:size], "little", signed=True)
        return Instruction(address, size, code, kind, self._wrapped(target, address), 0, detail, text)

    def _two_bytes(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
        second = code[at + 1]
        if 0x80 <= second < 0x90:
            detail = "j" + CONDITIONS[second & 15]
            return self._branch(address, size, code, at, text, Kind.BRANCH, detail, 4, 2)
        if second in (0xB9, 0xFF) and size < at + 3:
            return _refused(address, size, code, text, f"{text}: its operand was not decoded")
        if second in (0x0B, 0xB9, 0xFF):
            return _plain(address, size, code, Kind.UNDEFINED, text)
        if second == 0x05:
            return _plain(address, size, code, Kind.SYSTEM, text)
        if second in (0x07, 0x34, 0x35):
            return _refused(address, size, code, text, f"{text}: it goes on elsewhere, in the kernel or out of it")
        if second == 0x1F:
            return _plain(address, size, code, Kind.NOP, text)
        return self._operand(address, size, code, at, text)

    def _group_ff(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
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
                extended = any(byte & 1 for byte in code[:at] if byte in self._rex)
                detail = REGISTERS[(modrm & 7) + 8 * extended]
                if not self._rex:
                    detail = "e" + detail[1:]
        else:
            kind, detail = Kind.PLAIN, ""
        if self._rex and modrm & 0xC7 == 0x05:
            return self._relative(address, size, code, at, kind, text, detail)
        return _plain(address, size, code, kind, text, detail)

    def _return(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
        if any(byte not in (0xF2, 0xF3) for byte in code[:at]):
            return _refused(address, size, code, text, f"a return with unknown prefixes ({code.hex(' ')})")
        dropped = int.from_bytes(code[at + 1 :], "little")
        return _plain(address, size, code, Kind.RETURN, text, f"ret ${dropped}" if dropped else "")

    def _immovable(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
        return _refused(address, size, code, text, _IMMOVABLE[code[at]])

    def _pop(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
        if code[at + 1] & 0x38:
            return _refused(address, size, code, text, "an XOP instruction")
        return self._operand(address, size, code, at, text)

    def _group_c7(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
        if code[at + 1] == 0xF8:
            return _refused(address, size, code, text, "the start of a transaction")
        return self._operand(address, size, code, at, text)

    def _breakpoint(self, address: int, size: int, code: bytes, _at: int, text: str) -> Instruction:
        return _plain(address, size, code, Kind.BREAKPOINT, text)

    def _interrupt(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
        return _plain(address, size, code, Kind.SYSTEM if code[at + 1] == 0x80 else Kind.PLAIN, text)

    def _nop(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
        plain = 0xF3 not in code[:at] and not any(byte & 1 for byte in code[:at] if byte in self._rex)
        return _plain(address, size, code, Kind.NOP if plain else Kind.PLAIN, text)

    def _move(self, address: int, size: int, code: bytes, _at: int, text: str) -> Instruction:
        """Return a nop for `mov %esi,%esi`, which pads 32-bit code."""
        return _plain(address, size, code, Kind.NOP if code == b"\x89\xf6" else Kind.PLAIN, text)

    def _lea(self, address: int, size: int, code: bytes, at: int, text: str) -> Instruction:
        """Return a nop for `lea 0(%esi),%esi` and the like, which pad 32-bit code."""
        form = code[at + 1 :].rstrip(b"\0")
        harmless = all(byte in _HARMLESS for byte in code[:at])
        return _plain(address, size, code, Kind.NOP if form in _SELF and harmless else Kind.PLAIN, text)


class Memory(NamedTuple):
    """The memory operand of a load or an indirect jump: `register` is the one loaded, "" stands for none.

    `field` is the offset of the 4-byte displacement in the instruction, 0 if it has none.
    """

    register: str
    base: str
    scaled: str
    scale: int
    displacement: int
    field: int


def memory(code: bytes, word: int) -> Memory | None:
    """Return the indexed memory operand of a `mov`, `movslq` or indirect jump; None for any other instruction."""
    at = rex = 0
    while at < len(code) - 3 and code[at] in _PREFIXES:
        at += 1
    if word == 8 and code[at] in _REX:
        rex = code[at]
        at += 1
    if code[at] not in (0x8B, 0x63, 0xFF) or len(code) < at + 3 or code[at + 1] & 7 != 4 or code[at + 1] >= 0xC0:
        return None
    mode, register = code[at + 1] >> 6, code[at + 1] >> 3 & 7 | (rex & 4) << 1
    scale, index, base = code[at + 2] >> 6, code[at + 2] >> 3 & 7 | (rex & 2) << 2, code[at + 2] & 7 | (rex & 1) << 3
    names = REGISTERS if word == 8 else tuple("e" + name[1:] for name in REGISTERS[:8])
    bare = mode == 0 and base & 7 == 5
    wide = mode == 2 or bare
    size = 4 if wide else mode
    displacement = int.from_bytes(code[at + 3 : at + 3 + size], "little", signed=True)
    return Memory(
        register=names[register] if code[at] != 0xFF else "",
        base="" if bare else names[base],
        scaled="" if index == 4 else names[index],
        scale=1 << scale,
        displacement=displacement,
        field=at + 3 if wide else 0,
    )
