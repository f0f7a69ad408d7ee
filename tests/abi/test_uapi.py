"""The Python mirror of the uapi header agrees with the C compiler in every size, offset and number."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import pytest

from dynamos_ng import uapi

ROOT = Path(__file__).parents[2]
HEADER = ROOT / "kmod" / "uapi" / "dynamos.h"
MIRROR = {
    "dynamos_info": uapi.Info,
    "dynamos_maps": uapi.Maps,
    "dynamos_edition_info": uapi.EditionInfo,
    "dynamos_function_info": uapi.FunctionInfo,
    "dynamos_culprit": uapi.Culprit,
    "dynamos_switch": uapi.Switch,
    "dynamos_range": uapi.Range,
    "dynamos_holder": uapi.Holder,
    "dynamos_stacks": uapi.Stacks,
    "dynamos_retire": uapi.Retire,
}


def members(struct: str) -> list[str]:
    """Return a structure's member names, read from the header's text."""
    body = re.search(rf"struct {struct} {{(.*?)\n}};", HEADER.read_text(), re.DOTALL)
    assert body
    text = re.sub(r"/\*.*?\*/", "", body.group(1), flags=re.DOTALL)
    return re.findall(r"(\w+)(?:\[\w+\])?;", text)


def constants() -> list[str]:
    """Return every object-like constant that the header defines."""
    return re.findall(r"^#define (DYNAMOS_\w+)[ \t]+\S", HEADER.read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Return what the compiler says, by expression."""
    expressions = [f"sizeof(struct {name})" for name in MIRROR]
    for name in MIRROR:
        for member in members(name):
            expressions.append(f"offsetof(struct {name}, {member})")
            expressions.append(f"sizeof(((struct {name} *)0)->{member})")
    expressions += constants()
    lines = "\n".join(f'printf("%lu\\n", (unsigned long)({text}));' for text in expressions)
    folder = tmp_path_factory.mktemp("abi")
    source = folder / "abi.c"
    source.write_text(
        f'#include <stddef.h>\n#include <stdio.h>\n#include "{HEADER}"\nint main(void) {{ {lines} return 0; }}\n'
    )
    program = folder / "abi"
    subprocess.run(["gcc", "-Wall", "-Werror", "-o", program, source], check=True)
    output = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    return dict(zip(expressions, map(int, output), strict=True))


def test_header_and_mirror_have_the_same_structures() -> None:
    assert set(re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.MULTILINE)) == set(MIRROR)


@pytest.mark.parametrize("name", MIRROR)
def test_structure(name: str, compiled: dict[str, int]) -> None:
    mirror = MIRROR[name]
    assert [field[0] for field in mirror._fields_] == members(name)
    assert ctypes.sizeof(mirror) == compiled[f"sizeof(struct {name})"]
    for member in members(name):
        field = getattr(mirror, member)
        assert field.offset == compiled[f"offsetof(struct {name}, {member})"], member
        assert field.size == compiled[f"sizeof(((struct {name} *)0)->{member})"], member


def test_every_number_of_the_header_is_mirrored(compiled: dict[str, int]) -> None:
    names = [name for name in constants() if name != "DYNAMOS_IOC"]
    mirrored = {name: getattr(uapi, name.removeprefix("DYNAMOS_")) for name in names}
    assert mirrored == {name: compiled[name] for name in names}


def test_every_error_of_the_header_has_words() -> None:
    import errno

    from dynamos_ng.device import MEANINGS

    comment = HEADER.read_text().split("Errors, each with one meaning:")[1].split("*/")[0]
    named = set(re.findall(r"^ \*\s(E[A-Z0-9]+)\t", comment, re.MULTILINE)) - {"EFAULT"}
    assert {getattr(errno, name) for name in named} == set(MEANINGS)
