"""Where members of kernel structures lie, from the running kernel's BTF (Documentation/bpf/btf.rst).

BPF programs compiled by bcc take such places from the kernel's headers, which costs twenty times what the rest of
the compilation does. The type section is searched, not decoded: it has 130,000 entries.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")

_MAGIC = 0xEB9F
_HEADER = struct.Struct("=HBBIIIII")
_MEMBER = struct.Struct("=III")


class Btf:
    """The types of a kernel. Raises OSError when there are none to read."""

    def __init__(self, path: Path = VMLINUX) -> None:
        data = path.read_bytes()
        magic, _, _, header, types, types_len, strings, strings_len = _HEADER.unpack_from(data)
        if magic != _MAGIC:
            raise OSError(f"{path} holds no BTF")
        self._types = data[header + types : header + types + types_len]
        self._strings = data[header + strings : header + strings + strings_len]

    def offset(self, structure: str, member: str) -> int | None:
        """Return a member's offset in bytes; None when that is not certain, or the member is a bit field."""
        name, wanted = self._string(structure), self._string(member)
        if name is None or wanted is None:
            return None
        # struct btf_type: name, then vlen (16 bits), kind 4 with or without the bit field flag, size.
        head = re.compile(re.escape(struct.pack("=I", name)) + rb"(..)\0([\x04\x84])(....)", re.DOTALL)
        found = [
            members
            for match in head.finditer(self._types)
            if match.start() % 4 == 0 and (members := self._members(match)) is not None
        ]
        if len(found) != 1:
            return None
        bits = found[0].get(wanted)
        return bits // 8 if bits is not None and bits % 8 == 0 else None

    def _string(self, text: str) -> int | None:
        place = self._strings.find(b"\0" + text.encode() + b"\0")
        return place + 1 if place >= 0 else None

    def _members(self, match: re.Match[bytes]) -> dict[int, int] | None:
        """Return bit offsets by name, or None for bytes that only look like a structure's head."""
        count, size = int.from_bytes(match[1], "little"), int.from_bytes(match[3], "little")
        has_bit_fields = match[2] == b"\x84"
        found = {}
        last = 0
        if match.end() + count * _MEMBER.size > len(self._types):
            return None
        for index in range(count):
            name, _, place = _MEMBER.unpack_from(self._types, match.end() + index * _MEMBER.size)
            bits, width = (place & 0xFFFFFF, place >> 24) if has_bit_fields else (place, 0)
            if name >= len(self._strings) or not last <= bits <= size * 8:
                return None
            last = bits
            if not width:
                found[name] = bits
        return found
