"""update.toml: which functions an update changes, which editions it brings, and which variables it writes."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from dynamos_ng import uapi
from dynamos_ng.errors import UsageError

FILE = "update.toml"
NAME = re.compile(r"[a-z][a-z0-9_-]*")
#: The kernel takes module names of up to 55 bytes; ours begin with PREFIX.
NAME_MAX = 40
PREFIX = "dynamos_"
#: The sources of adaptation handlers.
BPF_FILES = "*.bpf.c"


@dataclass(frozen=True)
class Handler:
    """An adaptation handler: a BPF source in the update's folder, and the program in it."""

    file: str
    program: str


@dataclass(frozen=True)
class FunctionChange:
    """One function: its 1-based position among symbols of the same name (0: the name must be unique).

    The kernel may have one of `others` in place of the name, which the sources go by.
    `module` is the loadable module that it belongs to, "" for the kernel's own. If it tells `interrupts` from other
    calls, these have a policy class of their own.
    """

    name: str
    position: int = 0
    editions: tuple[int, ...] = ()
    adapt: Handler | None = None
    others: tuple[str, ...] = ()
    module: str = ""
    interrupts: bool = False

    def symbol(self, edition: int) -> str:
        """Return the C name of an edition."""
        return f"{self.name}_v{edition}"


#: What a variable may be: its size in bytes (0: a word of the machine), and whether it has a sign.
TYPES = {
    "bool": (1, False), "u8": (1, False), "u16": (2, False), "u32": (4, False), "u64": (8, False), "ulong": (0, False),
    "s8": (1, True), "s16": (2, True), "s32": (4, True), "s64": (8, True), "long": (0, True),
}  # fmt: skip


@dataclass(frozen=True)
class VariableChange:
    """One variable and the value that it gets; `expected` is what it must hold before, if anything.

    `type` is one of TYPES; `position` is as with functions.
    """

    name: str
    type: str
    value: int
    expected: int | None = None
    position: int = 0


@dataclass(frozen=True)
class Description:
    """An update as its author wrote it; `symbols` gives positions of ambiguous kernel symbols.

    A `quiescent` one is switched only in a stop in which no task is in its functions.
    If `consistent`, a task keeps to one edition from its outermost call of a function on; if `phased`, the update is a
    synchronised one.
    """

    name: str
    folder: Path
    sources: tuple[Path, ...]
    functions: tuple[FunctionChange, ...]
    symbols: Mapping[str, int] = field(default_factory=dict)
    summary: str = ""
    variables: tuple[VariableChange, ...] = ()
    quiescent: bool = False
    consistent: bool = False
    phased: bool = False

    @property
    def modules(self) -> tuple[str, ...]:
        """Return the loadable modules whose functions the update changes."""
        return tuple(dict.fromkeys(change.module for change in self.functions if change.module))

    @property
    def module(self) -> str:
        """Return the name of the kernel module that the update becomes."""
        return module_name(self.name)


def module_name(update: str) -> str:
    """Return the kernel module's name for an update's name; `-` and `_` are the same."""
    plain = update.replace("-", "_")
    return plain if plain.startswith(PREFIX) else PREFIX + plain


def update_name(module: str) -> str:
    """Return an update's name for its kernel module's name."""
    return module.removeprefix(PREFIX)


def read(folder: Path) -> Description:
    """Read and check FOLDER/update.toml; UsageError names file, key and what would be right."""
    path = folder / FILE
    try:
        with path.open("rb") as file:
            table = tomllib.load(file)
    except FileNotFoundError:
        raise UsageError(f"{path}: no such file; an update is a folder with {FILE} and C sources") from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None
    return parse(table, folder)


def parse(table: Mapping[str, Any], folder: Path) -> Description:
    """Check the table of FOLDER/update.toml and return its values."""
    check = _Checker(folder / FILE)
    known = {"name", "summary", "sources", "function", "symbols", "variable", "quiescent", "consistent", "phased"}
    check.keys(table, known, "")
    name = check.text(table, "name", folder.name)
    if not NAME.fullmatch(name) or len(name) > NAME_MAX:
        check.fail("name", f"{name!r} must be lower-case letters, digits, - and _, at most {NAME_MAX} of them")
    functions = check.tables(table, "function")
    changes = tuple(_change(check, folder, entry, index) for index, entry in enumerate(functions, 1))
    seen: set[tuple[str, str, int]] = set()
    for change in changes:
        if (change.module, change.name, change.position) in seen:
            check.fail("function", f"{change.name} stands twice")
        seen.add((change.module, change.name, change.position))
    sources = check.texts(table, "sources", sorted(f.name for f in folder.glob("*.c") if not f.match(BPF_FILES)))
    for source in sources:
        if Path(source).match(BPF_FILES):
            check.fail("sources", f"{source!r} is BPF: it is named by a function's adapt")
        if not source.endswith(".c") or "/" in source or not (folder / source).is_file():
            check.fail("sources", f"{source!r} is not a C file in this folder")
    variables = tuple(_variable(check, entry, i) for i, entry in enumerate(check.tables(table, "variable"), 1))
    if len({(variable.name, variable.position) for variable in variables}) != len(variables):
        check.fail("variable", "one stands twice")
    if not changes and not variables and not sources:
        check.fail("function", "an update needs a [[function]] or [[variable]] table, or a C source with hooks")
    wanted = [change.symbol(edition) for change in changes for edition in change.editions]
    if wanted and not sources:
        check.fail("sources", f"edition {wanted[0]} needs a C source, and the folder has none")
    symbols = check.table(table, "symbols")
    for symbol in symbols:
        check.number(symbols, symbol, 1, 1, 10_000)
    return Description(
        name, folder, tuple(folder / source for source in sources), changes, dict(symbols),
        check.text(table, "summary", ""), variables, check.truth(table, "quiescent", False),
        *_switching(check, table, changes),
    )  # fmt: skip


def _switching(
    check: _Checker, table: Mapping[str, Any], changes: Sequence[FunctionChange]
) -> tuple[bool, bool]:
    """Return whether the functions are a consistent group, and whether the update is a synchronised one."""
    consistent, phased = check.truth(table, "consistent", False), check.truth(table, "phased", False)
    for change in changes:
        if change.adapt and (consistent or phased):
            key = "consistent" if consistent else "phased"
            check.fail(key, f"{change.name}: its edition is not a program's to choose")
        if change.interrupts and (change.adapt or consistent or phased):
            other = "adapt" if change.adapt else "consistent" if consistent else "phased"
            check.fail("interrupts", f"{change.name}: the class alone must choose: leave out one of this and {other}")
    if consistent and phased:
        check.fail("consistent", "a synchronised update moves tasks over while they are inside: leave out one of both")
    if phased:
        if not any(2 in change.editions for change in changes):
            check.fail("phased", "a function that sleeps needs an edition 2, which looks whether phase 3 has begun")
        if not any(3 in change.editions for change in changes):
            check.fail("phased", "no function has an edition 3, so phase 3 would change nothing")
        for change in changes:
            if change.editions and max(change.editions) > 3:
                check.fail("phased", f"{change.name}: editions are 2 (intermediate) and 3 (new)")
    return consistent, phased


def _change(check: _Checker, folder: Path, entry: Mapping[str, Any], index: int) -> FunctionChange:
    where = f"function {index}: "
    check.keys(entry, {"name", "position", "editions", "adapt", "module", "interrupts"}, where)
    given = entry.get("name", "")
    name, *others = given if isinstance(given, list) and given else [given]
    for one in (name, *others):
        if not isinstance(one, str) or not re.fullmatch(r"[A-Za-z_][\w.]*", one) or len(one) >= uapi.NAME_MAX:
            check.fail(f"{where}name", f"{one!r} is not the name of a kernel function")
    editions = entry.get("editions", [])
    last = uapi.EDITIONS_MAX - 1
    if not isinstance(editions, list) or not all(type(n) is int and 2 <= n <= last for n in editions):
        check.fail(f"{where}editions", f"a list of numbers from 2 to {last} (1 is the original)")
    if len(set(editions)) != len(editions):
        check.fail(f"{where}editions", "a number stands twice")
    position = check.number(entry, "position", 0, 1, 10_000)
    handler = _handler(check, folder, check.text(entry, "adapt", ""), f"{where}adapt") if "adapt" in entry else None
    module = check.text(entry, "module", "").replace("-", "_")
    if not re.fullmatch(r"\w*", module) or len(module) >= uapi.UPDATE_MAX:
        check.fail(f"{where}module", f"{module!r} is not the name of a kernel module")
    if module.startswith(PREFIX):
        check.fail(f"{where}module", f"{module} is an update: change what it is made of, and load it anew")
    interrupts = check.truth(entry, "interrupts", False)
    return FunctionChange(name, position, tuple(sorted(editions)), handler, tuple(others), module, interrupts)


def _handler(check: _Checker, folder: Path, text: str, key: str) -> Handler:
    file, _, program = text.partition(":")
    if "/" in file or not Path(file).match(BPF_FILES) or not re.fullmatch(r"[A-Za-z_]\w*", program):
        check.fail(key, f"{text!r} must be FILE:PROGRAM, a source in this folder ({BPF_FILES}) and a program in it")
    try:
        source = (folder / file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        check.fail(key, f"{file} cannot be read: {getattr(error, 'strerror', None) or error}")
    if not re.search(rf"^\s*int {program}\(", source, re.MULTILINE):
        check.fail(key, f"{file} has no program {program}: no line begins with 'int {program}('")
    return Handler(file, program)


def _variable(check: _Checker, entry: Mapping[str, Any], index: int) -> VariableChange:
    where = f"variable {index}: "
    check.keys(entry, {"name", "position", "type", "value", "expected"}, where)
    name, kind = check.text(entry, "name", ""), check.text(entry, "type", "")
    if not re.fullmatch(r"[A-Za-z_][\w.]*", name) or len(name) >= uapi.NAME_MAX:
        check.fail(f"{where}name", f"{name!r} is not the name of a kernel variable")
    if kind not in TYPES:
        check.fail(f"{where}type", f"{kind!r} is none of {', '.join(TYPES)}")
    if "value" not in entry:
        check.fail(f"{where}value", "the value that the variable gets is missing")
    for key in ("value", "expected"):
        if type(entry.get(key, 0)) is not (bool if kind == "bool" and key in entry else int):
            check.fail(f"{where}{key}", "must be true or false" if kind == "bool" else "must be a number")
    expected = entry.get("expected")
    return VariableChange(
        name, kind, int(entry["value"]), None if expected is None else int(expected),
        check.number(entry, "position", 0, 1, 10_000),
    )  # fmt: skip


class _Checker:
    """Reads keys of one kind each, and fails with the file's name and the key."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, key: str, reason: str) -> NoReturn:
        raise UsageError(f"{self.path}: {key}: {reason}")

    def keys(self, table: Mapping[str, Any], known: set[str], where: str) -> None:
        for key in table:
            if key not in known:
                self.fail(f"{where}{key}", f"unknown key; known are {', '.join(sorted(known))}")

    def text(self, table: Mapping[str, Any], key: str, default: str) -> str:
        value = table.get(key, default)
        if not isinstance(value, str):
            self.fail(key, "must be a text in quotes")
        return str(value)

    def truth(self, table: Mapping[str, Any], key: str, default: bool) -> bool:
        value = table.get(key, default)
        if not isinstance(value, bool):
            self.fail(key, "must be true or false")
        return bool(value)

    def texts(self, table: Mapping[str, Any], key: str, default: list[str]) -> list[str]:
        value = table.get(key, default)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(key, "must be a list of texts in quotes")
        return list(value)

    def number(self, table: Mapping[str, Any], key: str, default: int, low: int, high: int) -> int:
        value = table.get(key, default)
        if type(value) is not int or (key in table and not low <= value <= high):
            self.fail(key, f"must be a number from {low} to {high}")
        return int(value)

    def table(self, table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = table.get(key, {})
        if not isinstance(value, dict):
            self.fail(key, f"must be a table: [{key}]")
        return dict(value)

    def tables(self, table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            self.fail(key, f"must be tables: [[{key}]]")
        return list(value)
