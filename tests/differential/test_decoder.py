"""The decoder finds the instructions that objdump finds, in real code."""

from __future__ import annotations

import re
import struct
import subprocess
from pathlib import Path

import pytest

from dynamos_ng.arch import DIRECT, Kind
from dynamos_ng.arch.i386 import ARCH as I386
from dynamos_ng.arch.x86_64 import ARCH

_LINE = re.compile(r"^\s*([0-9a-f]+):\t((?:[0-9a-f]{2} )+)\s*\t?(.*)$")
_TARGET = re.compile(r"^(?:bnd |notrack |data16 |[cdefgs]s |addr32 )*(call|jmp|j\w+|loop\w*|xbegin)\s+([0-9a-f]+)\b")


def library() -> Path:
    """Return the C library that this process runs on."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        if re.search(r"/libc[.-]", line):
            return Path(line.split()[-1])
    pytest.fail("no C library is mapped")


def text_of(path: Path) -> tuple[int, bytes]:
    """Return address and bytes of an ELF file's .text."""
    raw = path.read_bytes()
    (table,) = struct.unpack_from("<Q", raw, 40)
    size, count, names = struct.unpack_from("<HHH", raw, 58)
    headers = [struct.unpack_from("<IIQQQQIIQQ", raw, table + size * i) for i in range(count)]
    for header in headers:
        start = headers[names][4] + header[0]
        if raw[start : raw.index(b"\0", start)] == b".text":
            return header[3], raw[header[4] : header[4] + header[5]]
    raise AssertionError(f"{path}: no .text")


def test_lengths_and_targets_agree_with_objdump_over_a_library() -> None:
    path = library()
    address, code = text_of(path)
    shown = subprocess.run(
        ["objdump", "-d", "-w", "-j", ".text", str(path)], capture_output=True, text=True, check=True
    ).stdout
    compared = relative = unknown = 0
    for line in shown.splitlines():
        found = _LINE.match(line)
        if not found or "(bad)" in line:
            continue
        at = int(found.group(1), 16)
        size = len(found.group(2).split())
        decoded, covered = ARCH.decode(code[at - address : at - address + size], at)
        if not covered:
            unknown += 1
            continue
        assert covered == size, line
        assert len(decoded) == 1, line
        instruction = decoded[0]
        text = found.group(3)
        if target := _TARGET.match(text):
            if instruction.kind is not Kind.REFUSED:
                assert instruction.kind in DIRECT, line
                assert instruction.target == int(target.group(2), 16), line
        elif "(%rip)" in text and instruction.kind is not Kind.REFUSED:
            shown_target = re.search(r"# ([0-9a-f]+)", text)
            assert shown_target, line
            assert instruction.target == int(shown_target.group(1), 16), line
            relative += 1
        elif instruction.kind in DIRECT:
            raise AssertionError(f"no branch to objdump: {line}")
        compared += 1
    assert compared > 100_000
    assert relative > 1_000
    assert unknown * 200 < compared, f"{unknown} instructions are unknown to this capstone"


def test_32_bit_lengths_and_targets_agree_with_objdump_over_any_bytes(tmp_path: Path) -> None:
    """Read a library's bytes as 32-bit code: they are no program, but each instruction is one."""
    _address, code = text_of(library())
    (tmp_path / "code").write_bytes(code)
    shown = subprocess.run(
        ["objdump", "-D", "-w", "-b", "binary", "-m", "i386", str(tmp_path / "code")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    compared = branches = unknown = 0
    for line in shown.splitlines():
        found = _LINE.match(line)
        if not found or "(bad)" in line:
            continue
        at, size = int(found.group(1), 16), len(found.group(2).split())
        decoded, covered = I386.decode(code[at : at + size], at)
        if not covered:
            unknown += 1
            continue
        assert covered == size, line
        assert len(decoded) == 1, line
        instruction = decoded[0]
        if instruction.kind is Kind.REFUSED:
            continue
        if target := _TARGET.match(found.group(3).replace("0x", "", 1)):
            assert instruction.kind in DIRECT, line
            assert instruction.target == int(target.group(2), 16), line
            branches += 1
        else:
            assert instruction.kind not in DIRECT, line
        compared += 1
    assert compared > 100_000
    assert branches > 10_000
    assert unknown * 200 < compared, f"{unknown} instructions are unknown to this capstone"
