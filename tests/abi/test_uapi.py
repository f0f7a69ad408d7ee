"""The Python mirror of the uapi header agrees with the C compiler, of 32 and of 64 bits, in every size, offset and
number."""

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
    "dynamos_update_info": uapi.UpdateInfo,
    "dynamos_variable_info": uapi.VariableInfo,
    "dynamos_culprit": uapi.Culprit,
    "dynamos_switch": uapi.Switch,
    "dynamos_range": uapi.Range,
    "dynamos_holder": uapi.Holder,
    "dynamos_stacks": uapi.Stacks,
    "dynamos_adapt": uapi.Adapt,
    "dynamos_retire": uapi.Retire,
    "dynamos_confirm": uapi.Confirm,
    "dynamos_nudge": uapi.Nudge,
    "dynamos_phase": uapi.Phase,
    "dynamos_area": uapi.Area,
    "dynamos_module_info": uapi.ModuleInfo,
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


def holds(word_size: str, facts: dict[str, int]) -> None:
    """Let the compiler check what must be equal, for kernels of 32 or 64 bits; no C library is needed for that."""
    lines = [f'_Static_assert(({text}) == {number}, "{text} is not {number}");' for text, number in facts.items()]
    source = "\n".join(["#include <stddef.h>", f'#include "{HEADER}"', *lines, ""])
    # With -m32 gcc would look for the kernel's own headers, which are the same, in a folder of another architecture.
    headers = Path("/usr/include", subprocess.check_output(["gcc", "-print-multiarch"], text=True).strip())
    done = subprocess.run(
        ["gcc", word_size, "-idirafter", headers, "-Wall", "-Werror", "-fsyntax-only", "-x", "c", "-"],
        input=source, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_header_and_mirror_have_the_same_structures() -> None:
    assert set(re.findall(r"^struct (\w+) \{", HEADER.read_text(), re.MULTILINE)) == set(MIRROR)


@pytest.mark.parametrize("word_size", ["-m32", "-m64"])
@pytest.mark.parametrize("name", MIRROR)
def test_structure(name: str, word_size: str) -> None:
    mirror = MIRROR[name]
    assert [field[0] for field in mirror._fields_] == members(name)
    facts = {f"sizeof(struct {name})": ctypes.sizeof(mirror)}
    for member in members(name):
        field = getattr(mirror, member)
        facts[f"offsetof(struct {name}, {member})"] = field.offset
        facts[f"sizeof(((struct {name} *)0)->{member})"] = field.size
    holds(word_size, facts)


@pytest.mark.parametrize("word_size", ["-m32", "-m64"])
def test_every_number_of_the_header_is_mirrored(word_size: str) -> None:
    names = [name for name in constants() if name != "DYNAMOS_IOC"]
    holds(word_size, {name: getattr(uapi, name.removeprefix("DYNAMOS_")) for name in names})


def test_every_error_of_the_header_has_words() -> None:
    import errno

    from dynamos_ng.device import MEANINGS

    comment = HEADER.read_text().split("Errors, each with one meaning:")[1].split("*/")[0]
    named = set(re.findall(r"^ \*\s(E[A-Z0-9]+)\t", comment, re.MULTILINE)) - {"EFAULT"}
    assert {getattr(errno, name) for name in named} == set(MEANINGS)
