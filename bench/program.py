"""A program of this machine's that holds functions, redirects them by the generator's own text, and times calls.

The functions are linked first, at a fixed address, and examined as a kernel's are. What the generator makes of them is
assembled and linked with their image, the loops that call them, and sources/timer.c. No C library: both word sizes
build with a 64-bit one alone.
"""

from __future__ import annotations

import os
import random
import struct
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from dynamos_ng.arch import Arch
from dynamos_ng.errors import BuildError, DynamosError, MissingTool, UsageError
from dynamos_ng.image import Kernel
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.memory import Elf
from dynamos_ng.rewrite import Constants, Object, Redirect, check, generate

SOURCES = Path(__file__).parent / "sources"
#: Memory that a segment leads to as to a CPU's own (bare.h).
BARE = Path(__file__).parents[1] / "tests" / "differential" / "sources"
#: Where the functions lie, and how much there may be of them.
AT, ROOM = 0x10000000, 0x10000
CURRENT, TGID, TASK, USE = 0x40, 0x24, 0x100, 0x400
PROCESS, CLASS = 7, 3
#: Calls in a loop's body, and the processes that pass by before a pool's sequence begins anew.
UNROLL, SEQUENCE = 4, 1 << 16
FTRACE = ("-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount")
COMMON = (
    "-O2", "-ffreestanding", "-fno-pic", "-fno-pie", "-fno-stack-protector", "-fno-asynchronous-unwind-tables",
    "-fcf-protection=none", "-fno-ipa-icf", "-fno-toplevel-reorder", "-w",
)  # fmt: skip
#: Peers: the opcode that leads to them, and how far behind the entry it stands.
CALL, JUMP = (0xE8, 0), (0xE9, 5)
PEERS = {
    "registers": ("peer_registers", CALL), "arguments": ("peer_arguments", CALL), "jump": ("peer_jump", JUMP),
    "retpoline": ("peer_retpoline", JUMP), "trampoline": ("peer_jump_direct", JUMP),
}  # fmt: skip
TINY = "long {name}(long x) {{ return x * 3 + {number}; }}\n"
#: The paper's subject: it compares strings and computes with floating point; both strings are the same here.
PAPER = """\
long {name}(const char *one, const char *two, long x)
{{
	double sum = x;

	for (; *one && *one == *two; one++, two++)
		sum = sum * 0.5 + *one / (sum + 3.0);
	return (long)(sum * 1000) + (*one - *two);
}}
"""
BARE_ENTRY = "__attribute__((no_instrument_function)) "


@dataclass(frozen=True)
class Subject:
    """A function that is called.

    EDITIONS is 0 if the generator does not redirect it. CHOSEN is the edition of the usual process's class, OTHERS that
    of all other classes; with CHOSEN 0, the classes have the editions in turn. PEER says what else redirects it.
    Without `c` it has no ftrace site.
    """

    name: str
    editions: int = 0
    chosen: int = 1
    others: int = 1
    peer: str = ""
    c: bool = True
    paper: bool = False

    def source(self, number: int = 1) -> str:
        """Return the C text of an edition; 1 is the original."""
        name = self.name if number == 1 else f"{self.name}_v{number}"
        return ("" if self.c else BARE_ENTRY) + (PAPER if self.paper else TINY).format(name=name, number=number)


@dataclass(frozen=True)
class Loop:
    """Calls of SUBJECT ("" for none) one after the other: each with the last one's result if DEPENDENT.

    With POOL, each is of another process, one of so many.
    """

    subject: str
    dependent: bool = False
    pool: int = 0
    paper: bool = False


@dataclass(frozen=True)
class Run:
    """What the program measured: ticks of the processor for each batch of calls, by loop and in order of time.

    `uses` has entered and exited by subject and edition, `calls` how many there were, `results` what the last
    batch's last call returned. `switches` is how often somebody else got the CPU in these `seconds`.
    """

    calls_per_batch: int
    ticks: dict[Loop, list[int]]
    calls: dict[Loop, int]
    results: dict[Loop, int]
    uses: dict[tuple[str, int], tuple[int, int]]
    nanoseconds_per_tick: float
    switches: int
    seconds: float


def tool(*argv: object) -> str:
    """Run a tool; MissingTool if it is not there, BuildError with its words if it fails."""
    try:
        done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise MissingTool(f"{argv[0]} is not installed: apt install gcc binutils libc6-dev") from None
    if done.returncode:
        raise BuildError(f"bench: {argv[0]} failed:\n{done.stderr.strip()}")
    return done.stdout


def loop_text(number: int, loop: Loop, arch: Arch) -> list[str]:
    """Return the text of a loop: it makes UNROLL calls so often as its first argument says."""
    wide = arch.word == 8
    count, at, first = ("rbx", "r12", "rdi") if wide else ("ebx", "esi", "eax")
    # With the third, the stack is aligned where the calls are.
    saved = (count, at, "rbp" if wide else "ebp")
    result = "rax" if wide else "eax"
    if loop.paper:
        targets = ("edi", "esi", "edx") if wide else ("eax", "edx", "ecx")
        values = (".Lone", ".Ltwo", "3")
        arguments = [f"\tmov ${value}, %{register}" for value, register in zip(values, targets, strict=True)]
    elif loop.dependent:
        arguments = [f"\tmov %{result}, %{first}"] if wide else []
    else:
        arguments = ["\tmov $7, %edi" if wide else "\tmov $7, %eax"]
    passes = [f"\tmov (%{at}), %edx", f"\tadd $4, %{at}", f"\tmov %edx, area + {TASK + TGID}"] if loop.pool else []
    call = [f"\tcall {loop.subject}"] if loop.subject else []
    begin = ["\tmov %rdi, %rbx", "\tmov %rsi, %r12"] if wide else ["\tmov %eax, %ebx", "\tmov %edx, %esi"]
    return [
        "\t.balign 64", f"loop{number}:", *(f"\tpush %{register}" for register in saved), *begin, "\tmov $7, %eax",
        "\t.balign 32", "1:", *([*passes, *arguments, *call] * UNROLL), f"\tdec %{count}", "\tjne 1b",
        *(f"\tpop %{register}" for register in reversed(saved)), "\tret",
    ]  # fmt: skip


@dataclass
class Program:
    """The program of some SUBJECTS and LOOPS for ARCH, built in WORK; SEED lays it out one way or another."""

    arch: Arch
    subjects: Sequence[Subject]
    loops: Sequence[Loop]
    work: Path
    seed: int = 0
    path: Path = field(init=False)

    def __post_init__(self) -> None:
        chance = random.Random(self.seed)
        self.path = self.work / "program"
        order = list(self.subjects)
        chance.shuffle(order)
        # The last of them ends where another symbol begins.
        text = "".join(one.source() + self._gap(chance) for one in order) + 'asm("last: int3");\n'
        originals = self._compile("originals.c", text, *FTRACE)
        image, copy = self.work / "originals", self.work / "originals.bin"
        bounds = {"_stext": AT, "_etext": AT + ROOM, "__start___ex_table": AT, "__stop___ex_table": AT}
        defined = [f"--defsym={name}={value:#x}" for name, value in bounds.items()]
        tool("ld", *self._emulation, "-N", "-e0", f"-Ttext={AT:#x}", *defined, "-o", image, originals)
        tool("objcopy", "-O", "binary", image, copy)
        assert copy.stat().st_size < ROOM
        self._kernel = Kernel(Symbols(tool("nm", "-n", image)), Elf(image))
        self._write("image.S", ['\t.section .image,"awx",@progbits', f'\t.incbin "{copy}"', "\t.zero 4096"])
        objects = [
            self._compile("timer.c", (SOURCES / "timer.c").read_text(), "-I", BARE, *self._defines()),
            self._compile("peers.S", (SOURCES / "peers.S").read_text()),
            self._assemble("image.S"), self._loops(chance), self._update(order),
        ]  # fmt: skip
        tool("ld", *self._emulation, "-z", "norelro", "--no-warn-rwx-segments", f"--section-start=.image={AT:#x}",
             f"--just-symbols={image}", "-o", self.path, *objects)  # fmt: skip

    @property
    def redirected(self) -> list[Subject]:
        """Return the subjects that the generator redirects."""
        return [subject for subject in self.subjects if subject.editions]

    @cached_property
    def pools(self) -> list[int]:
        """Return the sizes of the pools of processes."""
        return sorted({loop.pool for loop in self.loops if loop.pool})

    @property
    def pids(self) -> int:
        """Return how many processes the policy has a byte for: PID_MAX_LIMIT."""
        return 4 << 20 if self.arch.word == 8 else 32768

    @property
    def _emulation(self) -> tuple[str, str]:
        return "-m", "elf_x86_64" if self.arch.word == 8 else "elf_i386"

    def _gap(self, chance: random.Random) -> str:
        return f'asm(".skip {16 * chance.randrange(8)}, 0xcc");\n'

    def _defines(self) -> list[str]:
        saved_ip = 16 if self.arch.word == 8 else 8
        values = {
            "CURRENT": CURRENT, "TGID": TGID, "TASK": TASK, "USE": USE, "PROCESS": PROCESS, "CLASS": CLASS,
            "UNROLL": UNROLL, "SEQUENCE": SEQUENCE, "PIDS": self.pids, "ROWS": len(self.redirected),
            "VARIANTS": len(self.loops), "SAVED_IP": saved_ip,
        }  # fmt: skip
        return [f"-D{name}={value}" for name, value in values.items()]

    def _write(self, name: str, lines: Sequence[str]) -> Path:
        (self.work / name).write_text("\n".join([*lines, '\t.section .note.GNU-stack,"",@progbits', ""]))
        return self.work / name

    def _compile(self, name: str, text: str, *flags: object) -> Path:
        (self.work / name).write_text(text)
        return self._assemble(name, *flags)

    def _assemble(self, name: str, *flags: object) -> Path:
        output = (self.work / name).with_suffix(".o")
        word = ("-m64",) if self.arch.word == 8 else ("-m32", "-mregparm=3", "-msse2", "-mfpmath=sse")
        headers = f"/usr/include/{tool('gcc', '-print-multiarch').strip()}"
        tool("gcc", "-c", *word, *COMMON, *flags, "-isystem", headers, "-o", output, self.work / name)
        return output

    def _loops(self, chance: random.Random) -> Path:
        """Assemble the loops, the strings, and the tables of loops and pools."""
        texts = [loop_text(number, loop, self.arch) for number, loop in enumerate(self.loops)]
        chance.shuffle(texts)
        word = self.arch.pointer
        rows = [
            f"\t{word} loop{number}, {self.pools.index(loop.pool) + 1 if loop.pool else 0}"
            for number, loop in enumerate(self.loops)
        ]
        strings = [f'{name}:\t.asciz "a function that compares"' for name in (".Lone", ".Ltwo")]
        table = ["\t.globl variants, variants_end, pools, pools_end", "variants:", *rows, "variants_end:", "pools:"]
        return self._assemble(self._write("loops.S", [
            "\t.text", *(line for text in texts for line in [f"\t.skip {16 * chance.randrange(8)}", *text]),
            "\t.section .rodata", *strings, f"\t.balign {self.arch.word}", *table,
            *(f"\t.long {size}" for size in self.pools), "pools_end:",
        ]).name)  # fmt: skip

    def _update(self, order: Sequence[Subject]) -> Path:
        """Assemble what the generator makes of the subjects, and tell the timer what is to be filled in."""
        subjects = [subject for subject in order if subject.editions]
        editions = "".join(s.source(n) for s in subjects for n in range(2, s.editions + 1))
        objects = []
        if editions:
            compiled = self._compile("editions.c", editions, *FTRACE)
            objects = [Object(compiled.read_bytes(), compiled.name)]
        redirects = [
            Redirect(check(self._kernel, s.name), {n: f"{s.name}_v{n}" for n in range(2, s.editions + 1)})
            for s in subjects
        ]
        text = generate(redirects, objects, Constants(CURRENT, TGID, return_thunk=""), self._kernel.symbols.address)
        word = self.arch.pointer
        patches = [f"\t{word} {r.original.entry.site:#x}, 0xe9, {r.stem}_handler" for r in redirects]
        for subject in self.subjects:
            if subject.peer:
                target, (opcode, behind) = PEERS[subject.peer]
                patches.append(f"\t{word} {subject.name} + {behind}, {opcode:#x}, {target}")
        rows = [f"\t{word} {s.name}_row, {s.chosen}, {s.others}, {s.editions}" for s in self.redirected]
        uses = [f"\t{word} {s.name}_v{n}_use" for s in self.redirected for n in range(1, s.editions + 1)]
        tables = ['\t.section .rodata,"a",@progbits', f"\t.balign {self.arch.word}"]
        for name, lines in (("patches", patches), ("rows_wanted", rows), ("uses", uses)):
            tables += [f"\t.globl {name}, {name}_end", f"{name}:", *lines, f"{name}_end:"]
        whole = "\n".join([text, *tables, ""])
        return self._compile("update.S", whole, "-DCC_USING_NOP_MCOUNT", "-Wa,--fatal-warnings")

    def run(self, cpu: int, rounds: int, batch: int, warm: int) -> Run:
        """Have each loop called in each of ROUNDS on CPU; BATCH and WARM (not timed) are how often their bodies run.

        DynamosError if the calls did not all go where they were to go: what was timed would be something else.
        """
        word = "Q" if self.arch.word == 8 else "I"
        try:
            done = subprocess.run(
                [self.path], input=struct.pack(f"=3{word}", rounds, batch, warm), capture_output=True, check=False,
                preexec_fn=lambda: os.sched_setaffinity(0, {cpu}),
            )  # fmt: skip
        except subprocess.SubprocessError:
            raise UsageError(f"bench: CPU {cpu}: this process may not run there") from None
        except OSError as error:
            raise MissingTool(f"bench: this kernel does not run {self.arch.name} programs: {error.strerror}") from None
        if done.returncode:
            raise DynamosError(f"bench: sources/timer.c: ended with {done.returncode}: the check in that line failed, "
                               "or a signal, if negative")  # fmt: skip
        count = len(self.loops)
        pairs = [(s.name, n) for s in self.redirected for n in range(1, s.editions + 1)]
        layout = (f"={6}Q", f"={rounds * count}I", f"={count}{word}", f"={count}Q", f"={2 * len(pairs)}Q")
        parts = []
        at = 0
        for shape in layout:
            parts.append(struct.unpack_from(shape, done.stdout, at))
            at += struct.calcsize(shape)
        frame, samples, results, calls, uses = parts
        run = Run(
            batch * UNROLL,
            {loop: list(samples[i::count]) for i, loop in enumerate(self.loops)},
            dict(zip(self.loops, calls, strict=True)),
            dict(zip(self.loops, results, strict=True)),
            {pair: (uses[2 * i], uses[2 * i + 1]) for i, pair in enumerate(pairs)},
            (frame[3] - frame[2]) / (frame[1] - frame[0]),
            frame[5] - frame[4],
            (frame[3] - frame[2]) / 1e9,
        )
        self._check(run)
        return run

    def _check(self, run: Run) -> None:
        """Raise DynamosError unless each call went through the edition that it was to go through, in and out."""
        for subject in self.redirected:
            loops = [loop for loop in self.loops if loop.subject == subject.name]
            made = sum(run.calls[loop] for loop in loops)
            uses = [run.uses[subject.name, number] for number in range(1, subject.editions + 1)]
            alone = subject.chosen == subject.others or all(loop.pool <= 1 for loop in loops)
            right = all(entered == exited for entered, exited in uses) and sum(entered for entered, _ in uses) == made
            if not right or (alone and subject.chosen and uses[subject.chosen - 1][0] != made):
                raise DynamosError(f"bench: {subject.name}: {made} calls were made, and its editions count {uses}")
        for loop in self.loops:
            if (wanted := self._result(loop, run.calls_per_batch)) not in (None, run.results[loop]):
                raise DynamosError(f"bench: {loop}: the last call returned {run.results[loop]}, not {wanted}")

    def _result(self, loop: Loop, calls: int) -> int | None:
        """Return what the last call of a batch returns; None where that is left open."""
        subject = next((one for one in self.subjects if one.name == loop.subject), None)
        if subject is None or loop.paper or loop.pool > 1 or not subject.chosen:
            return None
        number = 2 if subject.peer else subject.chosen
        value = 7
        for _ in range(calls if loop.dependent else 1):
            value = (value * 3 + number) % (1 << 8 * self.arch.word)
        return value
