"""A vmlinux is unpacked from a kernel image, however it is packed."""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dynamos_ng.errors import ImageError
from dynamos_ng.memory import Elf
from dynamos_ng.vmlinuz import Vmlinux, unpack

VMLINUX = b"\x7fELF" + bytes(range(256)) * 64


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-cq"], input=data, capture_output=True, check=True).stdout


def image(payload: bytes) -> bytes:
    """Return a kernel image with one sector of setup code, and the payload 64 bytes behind it."""
    header = bytearray(1024)
    header[0x1F1] = 1
    header[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", header, 0x248, 64, len(payload))
    return bytes(header) + bytes(64) + payload + b"rest of the file"


@pytest.mark.parametrize("pack", [lzma.compress, gzip.compress, zstd])
def test_every_packing_gives_the_same(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(image(pack(VMLINUX) + struct.pack("<I", len(VMLINUX))))
    assert unpack(path) == VMLINUX


def test_a_vmlinux_is_its_own_content(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(VMLINUX)
    assert unpack(path) == VMLINUX


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"MZ" + bytes(2000), "neither a kernel image for x86 nor an ELF file"),
        (image(b"\x02!L\x18" + bytes(100)), r"packed in a way that is not known \(02 21 4c 18\)"),
        (image(lzma.compress(b"no ELF file")), "no vmlinux inside"),
        (image(lzma.compress(VMLINUX)[:40]), "cut off"),
        (image(gzip.compress(VMLINUX)[:30] + bytes(100)), "invalid|no vmlinux|incorrect"),
    ],
)
def test_what_is_no_image_is_named(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=words):
        unpack(path)


def test_what_is_unpacked_is_kept_as_long_as_the_image_is_the_same(tmp_path: Path) -> None:
    path, folder = tmp_path / "vmlinuz-6", tmp_path / "kept"
    programs = [Path(sys.executable).read_bytes(), Path("/bin/true").read_bytes()]
    for number, program in enumerate(programs):
        path.write_bytes(image(gzip.compress(program)))
        os.utime(path, ns=(number, number))
        for _ in range(2):
            kept = Vmlinux(path, folder).elf.path
            assert [*folder.iterdir()] == [kept], "and no earlier one"
            assert kept.read_bytes() == program
            kept.write_bytes(program := program + b"seen")  # it is not unpacked again
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="neither a kernel image"):
        Vmlinux(path, folder)
    path.write_bytes(image(gzip.compress(programs[0])))
    (tmp_path / "file").touch()
    assert Vmlinux(path, tmp_path / "file").section(".text")[1], "it can be done without"


@pytest.mark.parametrize("left", [0.2, 0.9, 0.999])
def test_a_vmlinux_that_is_cut_off_is_named(left: float, tmp_path: Path) -> None:
    whole = Path(sys.executable).read_bytes()
    (tmp_path / "vmlinux").write_bytes(whole[: int(len(whole) * left)])
    with pytest.raises(ImageError, match=r"vmlinux: the file is cut off$"):
        Elf(tmp_path / "vmlinux").sections  # noqa: B018
