"""What dynamos takes of a kernel's memory: dynamos.ko, each redirected function and edition, and the BPF maps.

dynamos.ko is built for each of the lab's kernels in that kernel's own root. Functions are taken from a saved image of
the kernel, and what the generator makes of them is assembled: sizes are those of sections, nothing is loaded.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from bench import lab
from bench.program import Program, Subject, tool
from bench.report import Figure, Report
from dynamos_ng import image, uapi
from dynamos_ng.arch import Arch, known
from dynamos_ng.build import dynamos_ko
from dynamos_ng.build.kbuild import QUICK
from dynamos_ng.errors import BuildError, Refusal
from dynamos_ng.lab import kbuild, root, saved
from dynamos_ng.rewrite import Constants, Original, Redirect, elf, examine, generate

NAME = "footprint"
CLAIM = "The kernel's part is no larger than the paper's of 2007: 42 KB of text and data."
MOST = 42 << 10
#: How many functions the price of one is taken from, and which.
FUNCTIONS, SEED = 300, 1
#: By the beginnings of their names: what the module loader leaves out or frees once the module runs, what unwinding
#: needs, and what the kernel needs to patch the code or to find the module's symbols and parameters.
_DROPPED = ("__versions", ".modinfo", ".init")
_UNWIND = (".orc",)
_SYMBOLS = (".symtab", ".strtab")
_TABLES = (
    "__ksymtab", "__kcrctab", "__kflagstab", "__mcount_loc", "__param", "__bug_table", "__jump_table", "__ex_table",
    ".altinstr", ".static_call_sites", ".return_sites", ".retpoline_sites", ".call_sites", ".cfi_sites",
    ".parainstructions", ".smp_locks", ".ibt_endbr_seal", ".note", "__patchable",
)  # fmt: skip
PARTS = {
    "code": "instructions", "data": "variables and constants, struct module among them",
    "unwind": "what a stack trace needs (ORC)", "tables": "what the kernel needs to patch and to name the code",
    "zeros": "variables that begin as zero: no part of the target",
    "symbols": "its symbol table, of which the kernel keeps what kallsyms lists: no part of the target",
    "dropped": "symbol versions and the like: in the file, and for size; not in the kernel",
}  # fmt: skip


add_arguments = lab.add_arguments


def run(options: argparse.Namespace) -> list[Report]:
    """Measure each kernel."""
    began = time.monotonic()
    found: list[Figure] = []
    details: dict[str, object] = {}
    for name in options.kernel or list(root.KERNELS):
        guest = root.ensure(name)
        with tempfile.TemporaryDirectory(prefix="dynamos-bench-") as folder:
            work = Path(folder)
            sizes = sections(module(guest, work))
            found += of_module(name, sizes)
            details[name] = {"release": guest.release, "sections": sizes}
            found += of_functions(name, image.saved(saved.ensure(name)), work, 30 if options.quick else FUNCTIONS)
    for arch in known.ALL:
        with tempfile.TemporaryDirectory(prefix="dynamos-bench-") as folder:
            found += of_editions(arch, Path(folder))
        found += of_maps(arch)
    return [Report(NAME, CLAIM, tuple(found), seconds=time.monotonic() - began, details=details)]


def module(guest: root.Root, work: Path) -> Path:
    """Build dynamos.ko for a lab's kernel, as a guest would; return the file."""
    with tarfile.open(work / "in.tar", "w") as archive:
        archive.add(dynamos_ko.source(), arcname=".")
    status, output = kbuild.build(guest, work, guest.release, [*QUICK, "modules"])
    if status:
        raise BuildError(f"dynamos.ko does not build for {guest.release}:\n{output[-2000:]}")
    path = work / f"{dynamos_ko.NAME}.ko"
    with tarfile.open(work / "out.tar") as archive:
        member = archive.extractfile(f"./{path.name}")
        assert member is not None
        with path.open("wb") as file:
            shutil.copyfileobj(member, file)
    return path


def sections(path: Path) -> dict[str, tuple[int, str]]:
    """Return size and part (one of PARTS) of each section that is loaded, by name; equal names are added up."""
    found: dict[str, tuple[int, str]] = {}
    for section in elf.Elf(path.read_bytes(), path.name).sections:
        if section.size and (section.flags & elf.ALLOC or section.name in _SYMBOLS):
            size, _part = found.get(section.name, (0, ""))
            found[section.name] = (size + section.size, part(section))
    return found


def part(section: elf.Section) -> str:
    """Return which of PARTS a section belongs to."""
    for name, beginnings in (
        ("symbols", _SYMBOLS), ("dropped", _DROPPED), ("unwind", _UNWIND), ("tables", _TABLES),
    ):  # fmt: skip
        if section.name.startswith(beginnings):
            return name
    if section.flags & elf.EXECUTE:
        return "code"
    return "zeros" if section.type == elf.NOBITS else "data"


def of_module(kernel: str, sizes: dict[str, tuple[int, str]]) -> Iterable[Figure]:
    """Return the figures of a dynamos.ko."""
    parts: Counter[str] = Counter()
    for size, name in sizes.values():
        parts[name] += size
    kept = sum(parts[name] for name in ("code", "data", "unwind", "tables"))
    stem = f"dynamos.ko {kernel}"
    yield Figure(f"{stem}/kept", kept, "bytes", "text and data that stay in the kernel", MOST)
    for name, words in PARTS.items():
        yield Figure(f"{stem}/{name}", parts[name], "bytes", words)
    yield Figure(f"{stem}/as-size-counts", kept + parts["dropped"], "bytes", "text and data as size(1) counts them")


def chosen(kernel: image.Kernel, count: int) -> list[Original]:
    """Return COUNT functions that can be cloned and have a ftrace site, at random but always the same."""
    names = sorted(set(kernel.function_names()))
    random.Random(SEED).shuffle(names)
    found: list[Original] = []
    while len(found) < count:
        try:
            original = examine(kernel, kernel.function(names.pop()))
        except Refusal:
            continue
        if original.entry.ftrace is not None:
            found.append(original)
    return found


def of_functions(kernel: str, opened: image.Kernel, work: Path, count: int) -> Iterable[Figure]:
    """Return what one redirected function takes besides its clone's own code."""
    originals = chosen(opened, count)
    thunk = "__x86_return_thunk" if any(original.return_thunks for original in originals) else ""
    redirects = [Redirect(original, label=f"f{number}") for number, original in enumerate(originals)]
    text = generate(redirects, [], Constants(0x1000, 0x100, thunk), arch=opened.arch)
    code = sum(one.size for original in originals for one in original.body.parts)
    parts = assembled(text, opened.arch, work)
    stem = f"function {kernel}"
    yield Figure(f"{stem}/code", code / count, "bytes", "the original, of so many bytes, is cloned whole")
    yield Figure(f"{stem}/added", (parts["code"] - code) / count, "bytes", "handler, counts, exit stubs, alignment")
    yield Figure(f"{stem}/unwind", parts["unwind"] / count, "bytes", "the clone's unwind entries and the handler's")
    yield Figure(f"{stem}/tables", (parts["tables"] + parts["data"]) / count, "bytes",
                 "description, slots, exceptions, bugs, keys, return sites")  # fmt: skip


def assembled(text: str, arch: Arch, work: Path) -> Counter[str]:
    """Assemble an update's text; return the sizes of its parts."""
    (work / "update.S").write_text(text)
    tool("gcc", f"-m{8 * arch.word}", "-c", "-o", work / "update.o", work / "update.S")
    parts: Counter[str] = Counter()
    for size, name in sections(work / "update.o").values():
        parts[name] += size
    return parts


def of_editions(arch: Arch, work: Path) -> Iterable[Figure]:
    """Return what a further edition takes besides its own code: the last of 16 against the last of 2."""
    found = {}
    for count in (2, 16):
        place = work / str(count)
        place.mkdir()
        Program(arch, [Subject("one", count)], [], place)
        own = sum(symbol.size for symbol in elf.Elf((place / "editions.o").read_bytes(), "editions.o").symbols)
        found[count] = assembled((place / "update.S").read_text(), arch, place), own
    (few, own_few), (many, own_many) = found[2], found[16]
    each = {name: (many[name] - few[name]) / 14 for name in ("code", "data", "tables")}
    stem = f"edition {arch.name}"
    yield Figure(f"{stem}/added", each["code"] - (own_many - own_few) / 14, "bytes",
                 "its comparison, counts, exit stub, a jump to it from its old place, alignment")  # fmt: skip
    # A word of it tells the benchmark's timer of the slot.
    yield Figure(f"{stem}/tables", each["data"] + each["tables"] - arch.word, "bytes",
                 "description, slot, place of its ftrace site")  # fmt: skip


def of_maps(arch: Arch) -> Iterable[Figure]:
    """Return the value areas of the BPF maps that generated code uses; the kernel allocates them whole."""
    wide = arch.word == 8
    stem = f"maps {arch.name}"
    limit = 4 << 20 if wide else 32768
    yield Figure(f"{stem}/policy", limit, "bytes", "a byte for each process that there can ever be (PID_MAX_LIMIT)")
    yield Figure(f"{stem}/policy-32768", min(limit, 32768), "bytes", "of it in use with kernel.pid_max = 32768")
    yield Figure(f"{stem}/editions", uapi.CLASSES * uapi.FUNCTIONS_MAX, "bytes", "a row for each function")
    yield Figure(f"{stem}/use", 16 * uapi.FUNCTIONS_MAX * uapi.EDITIONS_MAX, "bytes", "for each CPU: counters")
    yield Figure(f"{stem}/must_update", 8 * uapi.FUNCTIONS_MAX, "bytes", "a word for each function")


