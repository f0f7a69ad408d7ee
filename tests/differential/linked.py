"""Clones linked at a module's address, disassembled again by objdump and compared with their originals' disassembly.

Nothing here asks the rewriter's decoder: instructions, lengths and targets are those that objdump prints.
"""

from __future__ import annotations

import re
import struct
import subprocess
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from elftools.elf.elffile import ELFFile

from dynamos_ng.image import Kernel
from dynamos_ng.rewrite import Constants, Original, Redirect, generate

#: Where modules lie, the assembler's option, the linker's emulation.
PLACES = {"x86_64": (0xFFFFFFFFC0000000, "-m64", "elf_x86_64"), "i386": (0xF8000000, "-m32", "elf_i386")}
BRANCH = re.compile(
    r"(?:(?:bnd|notrack|data16|cs|ds|repz|repnz|rex\.W) )*"
    r"(call|jmp|j(?!mp)\w+|loop\w*)[ql]?(?:,p[nt])?\s+([0-9a-f]+)(?: <.*>)?"
)
INDIRECT = re.compile(r"(?:(?:bnd|notrack|ds|cs) )*jmp[ql]?\s+\*.*")
RETURN = re.compile(r"(?:(?:bnd|repz) )?ret[ql]?")
SHORT = ("loop", "jrcxz", "jecxz", "jcxz")
COUNTING = re.compile(
    r"(mov\s+\(%rip\),%r1[01]|mov\s+\$0x0,%e..|(inc[lq]|add[lq]|adc[lq]).*%[gf]s:.*|(push|pop)[lqf]*\s*(%\w+)?|lfence)\s*"
)
ENDS = (
    "do_exit", "do_group_exit", "make_task_dead", "kthread_exit", "kthread_complete_and_exit",
    "__x64_sys_exit", "__x64_sys_exit_group", "__ia32_sys_exit", "__ia32_sys_exit_group",
    "__module_put_and_kthread_exit",
)  # fmt: skip
NUMBER = re.compile(r"0x[0-9a-f]+")
SIGNED = re.compile(r"-?0x[0-9a-f]+")


XEN = b"\x0f\x0bxen"
#: endbr64, and what kernels write over one that no indirect branch needs.
ENDBR = bytes.fromhex("f30f1efa")
SEALED = tuple(map(bytes.fromhex, ("0f1f4000", "660f1f00", "0f1f40d6")))


class Line(NamedTuple):
    """An instruction as objdump prints it; `refers` is what a RIP-relative operand refers to."""

    address: int
    code: bytes
    text: str
    refers: int | None

    @property
    def branch(self) -> tuple[str, int] | None:
        found = BRANCH.fullmatch(self.text)
        return (found[1], int(found[2], 16)) if found else None


def run(*argv: object) -> str:
    done = subprocess.run([str(one) for one in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def disassemble(path: Path) -> dict[int, Line]:
    """Return the instructions of an ELF file's code, by address."""
    found = {}
    for line in run("objdump", "-d", "-w", "-z", "--insn-width=16", path).splitlines():
        columns = line.split("\t")
        if len(columns) < 3 or not columns[0].endswith(":"):
            continue
        address, code = int(columns[0][:-1], 16), bytes.fromhex(columns[1])
        text, mark, comment = columns[2].partition("#")
        refers = int(comment.split()[0], 16) if mark and "%rip" in text else None
        text = re.sub(r"-?0x[0-9a-f]+\(%rip\)", "(%rip)", text)
        found[address] = Line(address, code, " ".join(text.split()), refers)
        if code == XEN[4:] and (one := found.get(address - 4)) and one.code == XEN[:2]:
            # To Xen, `ud2` and its name are a prefix of what follows; objdump sees a branch in the name.
            del found[address], found[address - 2]
            found[address - 4] = Line(address - 4, XEN, "(emulation prefix)", None)
    return found


class Linked:
    """A batch of clones, assembled and linked; `lines` is their code, by address. EDIT changes the text before."""

    def __init__(
        self,
        kernel: Kernel,
        originals: Sequence[Original],
        folder: Path,
        edit: Callable[[str], str] = lambda text: text,
    ) -> None:
        self.kernel = kernel
        self.arch = kernel.arch
        self.originals = originals
        #: Where a task ends.
        self.ends = {one.address for name in ENDS for one in kernel.symbols.find(name)}
        base, option, emulation = PLACES[kernel.arch.name]
        thunk = "__x86_return_thunk" if kernel.return_thunks() else ""
        redirects = [Redirect(original, label=f"f{n}") for n, original in enumerate(originals)]
        (folder / "clone.S").write_text(edit(generate(redirects, [], Constants(0x1000, 0x500, thunk))))
        assemble = ("gcc", option, "-c", "-DCC_USING_NOP_MCOUNT", "-Wa,-L")
        run(*assemble, "-o", folder / "clone.o", folder / "clone.S")
        absolute = [f"--defsym={name}={address:#x}" for name, address in self._absolute(thunk).items()]
        link = ("ld", "-m", emulation, "-e0", "--no-relax", "--no-check-sections", "-z", "max-page-size=4096")
        run(*link, f"-Ttext={base:#x}", *absolute, "-o", folder / "clone", folder / "clone.o")
        self.lines = disassemble(folder / "clone")
        self._originals(folder, assemble, link)
        listed = (line.split() for line in run("nm", "--defined-only", folder / "clone").splitlines())
        self.symbols = {name: int(address, 16) for address, _kind, name in listed}
        with (folder / "clone").open("rb") as file:
            elf = ELFFile(file)
            self.sections = {one.name: (one["sh_addr"], one.data()) for one in elf.iter_sections() if one["sh_addr"]}

    def _absolute(self, thunk: str) -> dict[str, int]:
        found = {name: self.kernel.symbols.address(name) for name in ("__fentry__", thunk) if name}
        return {"dynamos_policy": PLACES[self.arch.name][0] + 0x100000} | {k: v for k, v in found.items() if v}

    def _originals(self, folder: Path, assemble: Sequence[str], link: Sequence[str]) -> None:
        parts = {part.address: part.end for original in self.originals for part in original.body.parts}
        text, places = [], []
        for address, end in parts.items():
            code = ",".join(map(str, self.kernel.read(address, end - address)))
            text.append(f'.section .p{address:x},"ax",@progbits\n.byte {code}\n')
            places.append(f"--section-start=.p{address:x}={address:#x}")
        (folder / "original.S").write_text("".join(text))
        (folder / "places").write_text("\n".join(places))
        run(*assemble, "-o", folder / "original.o", folder / "original.S")
        run(*link, f"@{folder / 'places'}", "-o", folder / "original", folder / "original.o")
        self.before = disassemble(folder / "original")

    def read(self, address: int, size: int) -> bytes:
        for start, data in self.sections.values():
            if start <= address and address + size <= start + len(data):
                return data[address - start : address - start + size]
        raise AssertionError(f"nothing at {address:#x} in the linked clones")

    def words(self, section: str, form: str) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield a table's entries and their addresses."""
        start, raw = self.sections.get(section, (0, b""))
        size = struct.calcsize("<" + form)
        assert len(raw) % size == 0
        for at in range(0, len(raw), size):
            yield start + at, struct.unpack_from("<" + form, raw, at)

    def check(self) -> int:
        """Compare all clones and all their tables; return how many instructions agreed."""
        clones = [Clone(self, f"f{n}_v1", original) for n, original in enumerate(self.originals)]
        count = sum(clone.compare() for clone in clones)
        for section, found in self._found().items():
            wanted = sorted(entry for clone in clones for entry in clone.wanted(section))
            assert sorted(found) == wanted, f"{section}: {set(found) ^ set(wanted)}"
        self._unwinding(clones)
        return count

    def _found(self) -> dict[str, Sequence[tuple[int, ...]]]:
        mask = (1 << 8 * self.arch.word) - 1
        word = "q" if self.arch.word == 8 else "i"
        formats = any(bug.format for bug in self.kernel.bugs(0, mask))
        bugs = [
            (*(at + 4 * i + to if self.arch.bugs_relative else to & mask for i, to in enumerate(places)), line, flags)
            for at, (*places, line, flags) in self.words("__bug_table", "iiiHH" if formats else "iiHH")
        ]
        keys = [(at + a, at + 4 + b, at + 8 + key) for at, (a, b, key) in self.words("__jump_table", "ii" + word)]
        return {
            "__ex_table": [(at + a, at + 4 + b, data) for at, (a, b, data) in self.words("__ex_table", "iiI")],
            "__bug_table": bugs,
            "__jump_table": keys,
            ".static_call_sites": [(at + a, at + 4 + b) for at, (a, b) in self.words(".static_call_sites", "ii")],
        }

    def _unwinding(self, clones: Sequence[Clone]) -> None:
        """Check that unwinding is told alike for each moved instruction."""
        places = [at + ip for at, (ip,) in self.words(".orc_unwind_ip", "i")]
        raw = self.sections.get(".orc_unwind", (0, b""))[1]
        found = sorted((place, raw[6 * i : 6 * i + 6]) for i, place in enumerate(places))
        ips = [place for place, _ in found]
        for clone in clones:
            for part in clone.original.body.parts:
                entries = self.kernel.orc(part.address, part.end)
                if not entries:
                    continue
                starts = [place for place, _ in entries]
                for address in (a for a in clone.place if part.address <= a < part.end):
                    state = entries[bisect_right(starts, address) - 1][1]
                    now = found[bisect_right(ips, clone.place[address]) - 1][1]
                    assert now == state, f"{clone.original.name}: unwinding differs at {address:#x}"


@dataclass
class Clone:
    """One clone and where its instructions went: `place` by original address."""

    linked: Linked
    name: str
    original: Original
    place: dict[int, int] = field(default_factory=dict)
    pending: list[tuple[int, int]] = field(default_factory=list)
    tails: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.keys = {key.address: key for key in self.original.keys}
        self.calls = {call.address: call for call in self.original.calls}
        self.tables = {use: found.table for use, found in self.original.indirection.uses.items()}

    def fail(self, old: Line, new: Line, why: str = "differs") -> AssertionError:
        return AssertionError(
            f"{self.original.name}: {old.address:#x} {old.text!r} ({old.code.hex(' ')}) {why}: "
            f"{new.address:#x} {new.text!r} ({new.code.hex(' ')})"
        )

    def inside(self, address: int) -> bool:
        return any(part.address <= address < part.end for part in self.original.body.parts)

    def compare(self) -> int:
        """Compare instruction by instruction; return how many there were."""
        at = self.linked.symbols[f".L{self.name}.{self.original.body.address:x}"]
        first = self.linked.before[self.original.body.address]
        endbr = first.address if first.code in (ENDBR, *SEALED) else None
        if first.code == ENDBR:
            assert self.linked.lines[self.linked.symbols[self.name]].code == ENDBR
        for part in self.original.body.parts:
            address, old = part.address, None
            while address < part.end:
                old = self.linked.before[address]
                self.place[address] = at
                if address not in (self.original.entry.ftrace, endbr):
                    at = self._one(old, self.linked.lines[at])
                address += len(old.code)
            assert old is not None
            assert address == part.end
            new = self.linked.lines[at]
            if old.branch and old.branch[0] == "call" and new.text == "ud2":
                at += len(new.code)
            elif part.runs_on:
                assert new.branch is not None
                assert new.branch[0] == "jmp"
                self.pending.append((new.branch[1], part.limit))
                at += len(new.code)
        for new_target, old_target in self.pending:
            assert self.place.get(old_target) == new_target, f"{self.original.name}: {old_target:#x} is elsewhere"
        return len(self.place)

    def _one(self, old: Line, new: Line) -> int:
        """Compare one instruction; return the address behind its counterpart."""
        if old.branch and old.branch[0] == "call" and old.branch[1] in self.linked.ends:
            new = self._counted(new, old)
        after = new.address + len(new.code)
        branch, moved = old.branch, new.branch
        if key := self.keys.get(old.address):
            if moved and moved[0] == "jmp" and key.jumps and len(new.code) == 5:
                self.pending.append((moved[1], key.target))
            elif key.jumps or new.code != self.linked.arch.nop5:
                raise self.fail(old, new, "is a static key's site")
        elif (call := self.calls.get(old.address)) and call.tail:
            if moved is None or (branch and branch[0] != moved[0]):
                raise self.fail(old, new, "is a static call")
            self.tails[old.address] = self._leave(moved[1], old)
        elif branch and branch[0].startswith(SHORT):
            return self._short(old, new, branch)
        elif self._returns(old) and (branch or ("jmp",))[0] == "jmp" and not (moved and moved[0] == "jmp"):
            # The first of them is the stub itself.
            last = self.linked.lines[self._leave(new.address, old)]
            end = self.linked.lines[last.address + len(last.code)]
            if end.text != "int3":
                raise self.fail(old, end, "returns into")
            return end.address + len(end.code)
        elif branch and old.address in self.original.indirection.jumps:
            if moved != branch:
                raise self.fail(old, new)
        elif branch:
            if moved is None or moved[0] != branch[0]:
                raise self.fail(old, new)
            self._lead(old, branch, moved[1])
        elif RETURN.fullmatch(old.text) or (
            INDIRECT.fullmatch(old.text) and old.address not in self.original.indirection.jumps
        ):
            if moved is None or moved[0] != "jmp":
                raise self.fail(old, new)
            self._leave(moved[1], old)
        else:
            self._plain(old, new)
        return after

    def _lead(self, old: Line, branch: tuple[str, int], target: int) -> None:
        name, wanted = branch
        if name == "call":
            assert target == wanted, f"{self.original.name}: {old.address:#x} {old.text} calls {target:#x}"
        elif self.inside(wanted):
            self.pending.append((target, wanted))
        else:
            self._leave(target, old)

    def _short(self, old: Line, new: Line, branch: tuple[str, int]) -> int:
        """Compare a branch that has a short form only: it became a short branch around jumps."""
        skip = self.linked.lines[new.address + len(new.code)]
        go = self.linked.lines[skip.address + len(skip.code)]
        after = go.address + len(go.code)
        if new.branch != (branch[0], go.address) or skip.branch != ("jmp", after) or go.branch is None:
            raise self.fail(old, new)
        self._lead(old, ("jmp", branch[1]), go.branch[1])
        return after

    def _counted(self, line: Line, old: Line) -> Line:
        """Return the line behind those that count the exit."""
        counted = 0
        while COUNTING.fullmatch(line.text) or self._carries(line):
            counted += "s:0x8(" in line.text
            line = self.linked.lines[line.address + len(line.code)]
        if not counted:
            raise self.fail(old, line, "leaves uncounted")
        return line

    def _carries(self, line: Line) -> bool:
        """Return whether a line leads, on a carry, to text that adds it to the upper half and comes back."""
        if line.branch is None or line.branch[0] != "jb":
            return False
        add = self.linked.lines[line.branch[1]]
        back = self.linked.lines[add.address + len(add.code)]
        assert re.fullmatch(r"incl\s+%fs:0x[4c]\(%e..\)", add.text), add.text
        assert back.branch == ("jmp", line.address + len(line.code))
        return True

    def _returns(self, old: Line) -> bool:
        thunks = self.linked.kernel.return_thunks()
        return RETURN.fullmatch(old.text) is not None or (old.branch is not None and old.branch[1] in thunks)

    def _leave(self, stub: int, old: Line) -> int:
        """Check a stub that counts the exit and does what OLD did; return the address of its last instruction."""
        line = self._counted(self.linked.lines[stub], old)
        thunks = self.linked.kernel.return_thunks()
        branch = old.branch
        if self._returns(old):
            if not RETURN.fullmatch(line.text) and not (line.branch and line.branch[1] in thunks):
                raise self.fail(old, line, "returns otherwise")
        elif branch:
            if line.branch != ("jmp", branch[1]):
                raise self.fail(old, line, "leaves otherwise")
        elif (line.text, line.refers) != (old.text, old.refers):
            raise self.fail(old, line, "leaves otherwise")
        return line.address

    def _plain(self, old: Line, new: Line) -> None:
        """Compare an instruction that does not branch."""
        if old.address in self.tables:
            self._table(old, new)
        elif old.refers is not None:
            if old.text != new.text or new.refers is None:
                raise self.fail(old, new)
            if self.inside(old.refers) and old.refers != self.original.body.address:
                self.pending.append((new.refers, old.refers))
            elif new.refers != old.refers:
                raise self.fail(old, new, "refers elsewhere")
        elif old.code != new.code and not self._unlocked(old, new):
            numbers = zip(NUMBER.findall(old.text), NUMBER.findall(new.text), strict=False)
            changed = [(int(b, 16), int(a, 16)) for a, b in numbers if a != b]
            alike = NUMBER.sub("", old.text) == NUMBER.sub("", new.text)
            if not alike or len(changed) != 1 or not self.inside(changed[0][1]):
                raise self.fail(old, new)
            self.pending += changed

    def _unlocked(self, old: Line, new: Line) -> bool:
        """Return whether OLD is NEW without the lock that one CPU does not need."""
        return old.address in self.original.locks and new.code == b"\xf0" + old.code[1:]

    def _table(self, old: Line, new: Line) -> None:
        """Compare an indirection table's entries, each with its own copy in the clone."""
        table = self.tables[old.address]
        kernel, word = self.linked.kernel, self.linked.arch.word
        mask = (1 << 8 * word) - 1
        places = [
            int(SIGNED.findall(line.text)[0], 16) & mask if line.refers is None else line.refers for line in (old, new)
        ]
        for n in range(len(table.targets)):
            entries = [
                int.from_bytes(read(place + n * table.width, table.width), "little", signed=True)
                for read, place in zip((kernel.read, self.linked.read), places, strict=True)
            ]
            bases = places if table.moved else [table.base, table.base]
            target, moved = ((entry + base) & mask for entry, base in zip(entries, bases, strict=True))
            self.pending.append((moved, target))

    def wanted(self, section: str) -> list[tuple[int, ...]]:
        """Return the entries that a table must hold for this clone."""
        place, kernel = self.place, self.linked.kernel
        found: list[tuple[int, ...]] = []
        for part in self.original.body.parts:
            area = part.address, part.end
            if section == "__ex_table":
                found += [(place[e.address], place[e.fixup], e.data & 0xFFFFFFFF) for e in kernel.fixups(*area)]
            elif section == "__bug_table":
                found += [
                    (place[e.address], *([e.format] if e.format else []), e.file, e.line, e.flags)
                    for e in kernel.bugs(*area)
                ]
            elif section == "__jump_table":
                found += [(place[e.address], place[e.target], e.key + e.branch) for e in kernel.static_keys(*area)]
            else:
                calls = kernel.static_calls(*area)
                found += [(self.tails[e.address] if e.tail else place[e.address], e.key + e.tail) for e in calls]
        return found
