"""Clones functions made of random control-flow graphs and compares, in a process of its own: … FOLDER SEED COUNT."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from native import Loaded, Process, call, compile_c, redirect

from dynamos_ng.arch.x86 import CONDITIONS
from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite import examine

REGISTERS = ("rax", "rdi", "rsi", "rdx", "rcx", "r8")
FUEL = "r9"  # counts the blocks that may still run, so that every function ends


def operation(chance: random.Random) -> str:
    """Return one instruction that neither branches nor touches the stack."""
    one, two = chance.choice(REGISTERS), chance.choice(REGISTERS)
    number = chance.choice((1, 7, 100, 0x12345, -3))
    return chance.choice((
        f"add %{one}, %{two}", f"sub ${number}, %{one}", f"xor %{one}, %{two}",
        f"lea {number}(%{one},%{two},4), %{two}",
        f"imul $17, %{one}, %{two}", f"rol $5, %{one}", f"movabs ${chance.getrandbits(64):#x}, %{one}",
        f"mov numbers+{8 * chance.randrange(8)}(%rip), %{one}", f"add %{one}, numbers+{8 * chance.randrange(8)}(%rip)",
        f"cmpq ${number}, numbers+8(%rip)", f"test %{one}, %{two}", f"cmovne %{one}, %{two}", "nopl 0x0(%rax,%rax,1)",
    ))  # fmt: skip


def function(chance: random.Random, number: int) -> str:
    """Return the text of function NUMBER; it calls and jumps to ones of lower number only."""
    blocks = chance.randrange(2, 10)
    lines = [f"\t.globl f{number}", f"\t.type f{number}, @function", f"f{number}:"]
    if chance.random() < 0.2:
        lines.append("\tendbr64")
    if chance.random() < 0.7:
        lines.append("\t.byte 0x0f, 0x1f, 0x44, 0, 0")
    lines += ["\tmov %rdi, %rax", f"\tadd ${chance.randrange(1000)}, %rdi"]
    for block in range(blocks):
        lines.append(f".L{number}.{block}:")
        lines += [f"\tdec %{FUEL}", f"\tjle .L{number}.{blocks}"]
        lines += [f"\t{operation(chance)}" for _ in range(chance.randrange(5))]
        if number and chance.random() < 0.3:
            lines += ["\tpush %rcx", f"\tcall f{chance.randrange(number)}", "\tpop %rcx", "\ttest %rax, %rax"]
        to = f".L{number}.{chance.randrange(blocks + 1)}"
        size = chance.choice(("", "{disp32} "))
        pick = chance.random()
        if pick < 0.45:
            lines.append(f"\t{size}j{chance.choice(CONDITIONS)} {to}")
        elif pick < 0.55:
            lines += [f"\t{size}jmp {to}", "\t.p2align 4, 0xcc"]
        elif pick < 0.65:
            here = f".L{number}.{block}.near"
            lines += [f"{here}:", "\tand $7, %ecx", f"\tjrcxz {here}.x", f"\tloop {here}.x", f"{here}.x:"]
        elif pick < 0.75 and number:
            lines.append(f"\tj{chance.choice(CONDITIONS)} f{chance.randrange(number)}")
        elif pick < 0.8 and number:
            lines += [f"\tjmp f{chance.randrange(number)}", "\tint3"]
        elif pick < 0.85:
            lines += ["\tret", "\tint3"]
    lines += [f".L{number}.{blocks}:", "\txor %rdi, %rax", "\txor %rdx, %rax", "\txor %r8, %rax", "\tret"]
    lines += [f"\t.size f{number}, . - f{number}", f"\t.p2align {chance.randrange(5)}, 0x90"]
    return "\n".join(lines)


def source(seed: int, count: int) -> str:
    """Return an assembler file of COUNT functions."""
    chance = random.Random(seed)
    text = [function(chance, number) for number in range(count)]
    data = "\t.data\n\t.globl numbers\nnumbers:\t.quad 1, 2, 3, 4, 5, 6, 7, 8"
    return "\n".join(["\t.text", *text, data, '\t.section .note.GNU-stack,"",@progbits', ""])


def results(loaded: Loaded, seed: int, names: list[str]) -> list[int]:
    """Return what each function returns for some inputs."""
    chance = random.Random(seed)
    found = []
    for _ in range(20):
        inputs = [chance.getrandbits(64) for _ in range(5)]
        found += [call(loaded.symbols[name], *inputs, 40) for name in names]
    return found


def main(folder: Path, seed: int, count: int) -> None:
    """Compare two loads of the same functions, one of them redirected."""
    path = folder / "graphs.S"
    path.write_text(source(seed, count))
    compiled = compile_c(path, folder / "graphs.o")
    plain, changed = Loaded(compiled, {}), Loaded(compiled, {})
    process = Process(changed)
    names = []
    for number in range(count):
        try:
            examine(process, process.function(f"f{number}"))
        except Refusal as refusal:
            assert any(words in refusal.reason for words in ("branch into the trampoline", "too short")), refusal
        else:
            names.append(f"f{number}")
    assert len(names) > count * 0.9, f"only {len(names)} of {count} can be cloned"
    redirected = redirect(folder, changed, names)
    redirected.install()
    every = [f"f{number}" for number in range(count)]
    before, after = results(plain, seed, every), results(changed, seed, every)
    differing = sorted(
        {every[i % count] for i, pair in enumerate(zip(before, after, strict=True)) if pair[0] != pair[1]}
    )
    assert not differing, f"results differ: {differing}"
    for name in names:
        entered, exited = redirected.use(name, 1)
        assert entered == exited >= 20, (name, entered, exited)
    print(len(before), "results equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
