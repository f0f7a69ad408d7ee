"""Functions made of random control-flow graphs, for either architecture: text for gas, and a run of their clones."""

from __future__ import annotations

import random
import subprocess
from dataclasses import dataclass
from pathlib import Path

import library
from elftools.elf.elffile import ELFFile

from dynamos_ng.arch import Arch
from dynamos_ng.arch.x86 import CONDITIONS
from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite import Constants, Redirect, examine, generate
from dynamos_ng.rewrite.kernel import Symbol

HERE = Path(__file__).parent
TEXT = 0x10000000
#: What may be refused here: a random branch may lead into a trampoline's bytes.
ALLOWED = ("branch into the trampoline's bytes", "too short for a trampoline")


@dataclass(frozen=True)
class Dialect:
    """An architecture's registers: those that are data, the one that counts blocks, the one that loops count."""

    data: tuple[str, ...]
    fuel: str
    fuel_place: int
    count: str
    frame: str
    stack: str
    zero: str
    nop5: str

    def number(self, index: int) -> str:
        """Return an operand: one of eight numbers in memory."""
        return f"numbers+{8 * index}(%rip)" if self.stack == "rsp" else f"numbers+{4 * index}"


DIALECTS = {
    "x86_64": Dialect(("rax", "rdi", "rsi", "rdx", "rcx", "r8"), "r9", 7, "rcx", "rbp", "rsp", "jrcxz",
                      ".byte 0x0f, 0x1f, 0x44, 0, 0"),
    "i386": Dialect(("eax", "edx", "ecx", "esi"), "edi", 4, "ecx", "ebp", "esp", "jecxz",
                    ".byte 0x3e, 0x8d, 0x74, 0x26, 0"),
}  # fmt: skip


def operation(chance: random.Random, dialect: Dialect) -> str:
    """Return one instruction that neither branches nor touches the stack."""
    one, two = chance.choice(dialect.data), chance.choice(dialect.data)
    number = chance.choice((1, 7, 100, 0x12345, -3))
    memory = dialect.number(chance.randrange(8))
    return chance.choice((
        f"add %{one}, %{two}", f"sub ${number}, %{one}", f"xor %{one}, %{two}",
        f"lea {number}(%{one},%{two},4), %{two}", f"imul $17, %{one}, %{two}", f"rol $5, %{one}",
        f"mov ${chance.randrange(1 << 31):#x}, %{one}", f"mov {memory}, %{one}", f"add %{one}, {memory}",
        f"cmpl ${number}, {memory}", f"test %{one}, %{two}", f"cmovne %{one}, %{two}",
    ))  # fmt: skip


def switch(chance: random.Random, dialect: Dialect, name: str, to: list[str]) -> list[str]:
    """Return a switch over some labels: bound check, table, jump; the table holds addresses or distances."""
    check = [f"\tcmp ${len(to) - 1}, %ecx", f"\tja {to[0]}"]
    place = ["\t.section .rodata", f"{name}:"]
    if dialect.stack == "esp" or chance.random() < 0.5:
        size, directive = (4, ".long") if dialect.stack == "esp" else (8, ".quad")
        jump = ["\tmov %ecx, %ecx", f"\tjmp *{name}(,%{dialect.count},{size})"]
        return [*check, *jump, *place, *(f"\t{directive} {label}" for label in to), "\t.text"]
    # Distances and addresses differ in the clone: they stay in registers that are not compared.
    jump = ["\tmov %ecx, %ecx", f"\tlea {name}(%rip), %r10", "\tmovslq (%r10,%rcx,4), %r11", "\tadd %r10, %r11",
            "\tjmp *%r11"]  # fmt: skip
    return [*check, *jump, *place, *(f"\t.long {label} - {name}" for label in to), "\t.text"]


def function(chance: random.Random, dialect: Dialect, number: int) -> str:
    """Return the text of function NUMBER; it calls its own parts and ones of lower number, and jumps to lower ones."""
    blocks = chance.randrange(1, 9)
    fuel, count = dialect.fuel, dialect.count
    framed = chance.random() < 0.3
    leave = ["\tleave"] if framed else []
    lines = [f"\t.globl f{number}", f"\t.type f{number}, @function", f"f{number}:"]
    if chance.random() < 0.7:
        lines.append(f"\t{dialect.nop5}")
    if framed:
        lines += [f"\tpush %{dialect.frame}", f"\tmov %{dialect.stack}, %{dialect.frame}"]
    lines += [f"\tadd ${chance.randrange(1000)}, %{dialect.data[1]}"]
    for block in range(blocks):
        lines += [f".L{number}.{block}:", f"\tdec %{fuel}", f"\tjle .L{number}.{blocks}"]
        lines += [f"\t{operation(chance, dialect)}" for _ in range(chance.randrange(5))]
        if chance.random() < 0.3:
            to = chance.choice((f".L{number}.inside", f"f{chance.randrange(number + 1)}"))
            lines += [f"\tpush %{count}", f"\tcall {to}", f"\tpop %{count}"]
            lines += [f"\ttest %{count}, %{count}"]
        to = f".L{number}.{chance.randrange(blocks + 1)}"
        size = chance.choice(("", "{disp32} "))
        pick = chance.choice(("none", "branch", "jump", "loop", "conditional tail", "tail", "return", "switch"))
        if pick == "branch":
            lines.append(f"\t{size}j{chance.choice(CONDITIONS)} {to}")
        elif pick == "jump":
            lines += [f"\t{size}jmp {to}", "\t.p2align 4, 0xcc"]
        elif pick == "loop":
            here = f".L{number}.{block}.near"
            lines += [f"\tand $7, %{count}", f"\t{dialect.zero} {here}", f"\tloop {here}", f"{here}:"]
        elif pick == "conditional tail" and number and not framed:
            lines.append(f"\tj{chance.choice(CONDITIONS)} f{chance.randrange(number)}")
        elif pick == "tail" and number:
            lines += [*leave, f"\tjmp f{chance.randrange(number)}", "\tint3"]
        elif pick == "return":
            lines += [*leave, "\tret", "\tint3"]
        elif pick == "switch":
            labels = [f".L{number}.{chance.randrange(blocks + 1)}" for _ in range(chance.randrange(2, 6))]
            lines += switch(chance, dialect, f".Ltable{number}.{block}", labels)
    lines += [f".L{number}.{blocks}:", *leave, "\tret"]
    lines += [f".L{number}.inside:", f"\t{operation(chance, dialect)}", "\tret"]
    lines += [f"\t.size f{number}, . - f{number}", f"\t.p2align {chance.randrange(5)}, 0x90"]
    return "\n".join(lines)


class Program(library.Library):
    """A linked program as the rewriter's `Kernel`: the functions of graphs.S and nothing else."""

    def __init__(self, path: Path, arch: Arch) -> None:
        self.arch = arch
        self.base = 0
        self._plt = []
        with path.open("rb") as file:
            unit = ELFFile(file)
            self._loads = [(s["p_vaddr"], s.data()) for s in unit.iter_segments() if s["p_type"] == "PT_LOAD"]
            found = library.section(unit, ".symtab").iter_symbols()
            self.symbols = {
                symbol["st_value"]: Symbol(symbol.name, symbol["st_value"], symbol["st_size"])
                for symbol in found
                if symbol["st_info"]["type"] == "STT_FUNC" and symbol.name[0] == "f" and symbol.name[1:].isdigit()
            }
        self._names = {address: (symbol.name,) for address, symbol in self.symbols.items()}
        self._starts = sorted(self.symbols)
        self._entered: dict[int, set[int]] = {}
        self.cold = set()

    def in_text(self, address: int) -> bool:
        return self.containing(address) is not None

    def read(self, address: int, size: int) -> bytes:
        start, data = next(load for load in self._loads if load[0] <= address < load[0] + len(load[1]))
        return data[address - start : address - start + size]


def build(work: Path, name: str, arch: Arch, *flags: str) -> str:
    """Assemble or compile a file of WORK's, or of sources/; return the object's path."""
    source = work / name if (work / name).exists() else HERE / "sources" / name
    output = work / f"{Path(name).stem}.o"
    subprocess.run(["gcc", f"-m{8 * arch.word}", "-c", "-O1", "-fno-pic", "-ffreestanding", "-fno-stack-protector",
                    "-isystem", library.headers(), *flags, "-o", str(output), str(source)], check=True)  # fmt: skip
    return str(output)


def link(work: Path, name: str, arch: Arch, objects: list[str]) -> Path:
    """Link a program; what comes first in OBJECTS stays where it is when others follow."""
    emulation = "elf_x86_64" if arch.word == 8 else "elf_i386"
    subprocess.run(["ld", "-m", emulation, "--no-warn-rwx-segments", "-z", "norelro", f"-Ttext={TEXT:#x}",
                    "--section-start=.rodata=0x11000000", "--section-start=.data=0x12000000",
                    "--section-start=.bss=0x14000000", "--section-start=.data..ro_after_init=0x13000000",
                    "-o", str(work / name), *objects], check=True)  # fmt: skip
    return work / name


def constants(dialect: Dialect) -> list[str]:
    return [f"-DCURRENT={library.CURRENT}", f"-DTGID={library.TGID}", f"-DTASK={library.TASK}",
            f"-DUSE={library.USE}", f"-DTEXT={TEXT}", f"-DFUEL={dialect.fuel_place}"]  # fmt: skip


def compare(chance: random.Random, work: Path, arch: Arch, host: str, count: int) -> int:
    """Clone COUNT random functions, run originals and clones; return how many were cloned. HOST is host.c's object."""
    dialect = DIALECTS[arch.name]
    text = [function(chance, dialect, number) for number in range(count)]
    table = [f"\t{arch.pointer} f{number}" for number in range(count)]
    data = ["\t.data", "\t.globl numbers, functions, functions_end", f"numbers:\t.zero {8 * arch.word}", "functions:",
            *table, "functions_end:", '\t.section .note.GNU-stack,"",@progbits', ""]  # fmt: skip
    (work / "graphs.S").write_text("\n".join(["\t.text", *text, *data]))
    objects = [host, build(work, "graphs.S", arch)]
    program = Program(link(work, "plain", arch, objects), arch)
    redirects = []
    for symbol in program.symbols.values():
        try:
            redirects.append(Redirect(examine(program, symbol)))
        except Refusal as refusal:
            assert refusal.kind in ALLOWED, f"{refusal}\n{text}"
    if not redirects:
        return 0
    (work / "update.S").write_text(generate(redirects, [], Constants(library.CURRENT, library.TGID, return_thunk="")))
    update = build(work, "update.S", arch, "-DCC_USING_NOP_MCOUNT", "-Wa,--fatal-warnings")
    changed = link(work, "changed", arch, [*objects, update])
    done = subprocess.run([str(changed)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"status {done.returncode}\n" + "\n".join(text)
    lines = done.stdout.splitlines()
    calls = 6 * count
    before, after, uses = lines[:calls], lines[calls : 2 * calls], lines[2 * calls :]
    differing = sorted({i % count for i in range(calls) if before[i] != after[i]})
    assert not differing, f"results differ: {differing}\n" + "\n".join(text)
    for redirect, use in zip(redirects, uses, strict=True):
        entered, exited = (int(word, 16) for word in use.split())
        assert entered == exited >= 6, (redirect.original.name, entered, exited)
    return len(redirects)
