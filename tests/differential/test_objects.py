"""An object in which nothing is an edition comes through the rewriter as it was, section by section."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from dynamos_ng.rewrite import Constants, Object, elf, generate

FLAGS = ("-O2", "-fno-pic", "-ffreestanding", "-fno-asynchronous-unwind-tables")
SOURCES = Path(__file__).parent / "sources"
EXTRA = """
#include <stdarg.h>
__attribute__((section(".init.text"), cold)) int started(int a) { return a + 1; }
static int zeroed[1000];
int common, *where = &zeroed[7];
static const char *const names[] = { "one", "two", "one" };
const char *name(unsigned n) { return names[n % 3]; }
__attribute__((weak)) int weak(int a) { return zeroed[a] + started(a); }
extern int outside(const char *format, ...);
int (*const table[])(int) = { started, weak };
int use(int a) { return outside("one", a) + table[a & 1](a) + (name(a) == names[0]); }
"""


def dumped(path: Path, work: Path) -> elf.Elf:
    """Return the object that gas makes of the rewriter's text for PATH."""
    text = generate([], [Object(path.read_bytes(), path.name)], Constants(0, 0))
    source, output = work / "again.S", work / "again.o"
    source.write_text(text)
    subprocess.run(["gcc", "-c", "-o", str(output), str(source)], check=True)
    return elf.Elf(output.read_bytes(), output.name)


def contents(unit: elf.Elf) -> dict[str, tuple[int, int, int, bytes, list[tuple[int, str, object]]]]:
    """Return each allocated section's flags, type, size, bytes, and relocations with what they mean."""
    found = {}
    for section in unit.sections:
        if not section.flags & elf.ALLOC or not section.size or section.name.startswith((".note", ".orc", ".modinfo")):
            continue
        meaning: list[tuple[int, str, object]] = []
        for entry in unit.relocations.get(section.index, ()):
            kind = unit.arch.relocations[entry.type][0].replace("PLT32", "PC32")
            symbol = entry.symbol
            if symbol.section in (elf.UNDEFINED, elf.COMMON):
                meaning.append((entry.offset, kind, (symbol.name, entry.addend)))
            else:
                home = unit.sections[symbol.section].name
                meaning.append((entry.offset, kind, (home, symbol.value + entry.addend)))
        found[section.name] = section.flags, section.type, section.size, section.data, meaning
    return found


def symbols(unit: elf.Elf) -> dict[str, tuple[str, int, int, int, int]]:
    """Return section, value, size, type and binding of each symbol that lies in a section."""
    return {
        s.name: (unit.sections[s.section].name, s.value, s.size, s.type, s.bind)
        for s in unit.symbols
        if s.type in (elf.OBJECT, elf.FUNCTION) and s.section not in (elf.UNDEFINED, elf.COMMON, elf.ABSOLUTE)
    }


def same(path: Path, work: Path) -> None:
    before, after = elf.Elf(path.read_bytes(), path.name), dumped(path, work)
    was, is_ = contents(before), contents(after)
    # the update's own .text holds one breakpoint in front of the object's
    gap = max((section.align for section in before.sections if section.name == ".text"), default=1)
    for name, (flags, kind, size, data, meaning) in was.items():
        shift = gap if name == ".text" else 0
        assert is_[name][:2] == (flags, kind), name
        assert is_[name][3][shift : shift + size] == data, name
        moved = [
            (at + shift, how, (to[0], to[1] + (gap if to[0] == ".text" else 0)))
            for at, how, to in meaning
            if isinstance(to, tuple)
        ]
        assert is_[name][4] == moved, name
    shifted = {
        name: (home, value + (gap if home == ".text" else 0), *rest)
        for name, (home, value, *rest) in symbols(before).items()
    }
    for name, entry in shifted.items():
        assert symbols(after)[name] == entry, name


@pytest.mark.parametrize("flags", [(), ("-Os",), ("-mcmodel=kernel", "-mno-sse", "-mfunction-return=thunk-extern")])
@pytest.mark.parametrize("source", ["editions.c", "functions.c"])
def test_a_compiled_source_is_unchanged(source: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    path = tmp_path / "one.o"
    subprocess.run(["gcc", "-c", *FLAGS, *flags, "-o", str(path), str(SOURCES / source)], check=True)
    same(path, tmp_path)


def test_sections_of_all_kinds_are_unchanged(tmp_path: Path) -> None:
    source, path = tmp_path / "extra.c", tmp_path / "extra.o"
    source.write_text(EXTRA)
    subprocess.run(["gcc", "-c", *FLAGS, "-o", str(path), str(source)], check=True)
    same(path, tmp_path)


def test_local_symbols_of_one_name_are_kept_apart(tmp_path: Path) -> None:
    objects = []
    for number in (1, 2):
        source, path = tmp_path / f"{number}.c", tmp_path / f"{number}.o"
        source.write_text(
            f"static __attribute__((noinline)) int local(int a) {{ return a + {number}; }}\n"
            f"int one_{number}(int a) {{ return local(a) * {number}; }}\n"
        )
        subprocess.run(["gcc", "-c", *FLAGS, "-o", str(path), str(source)], check=True)
        objects.append(Object(path.read_bytes(), path.name))
    source = tmp_path / "both.S"
    source.write_text(generate([], objects, Constants(0, 0)))
    subprocess.run(["gcc", "-c", "-o", str(tmp_path / "both.o"), str(source)], check=True)
    names = {s.name: s for s in elf.Elf((tmp_path / "both.o").read_bytes(), "both.o").symbols}
    assert names["local"].value != names["local.o1"].value
    assert names["local.o1"].bind == elf.LOCAL
