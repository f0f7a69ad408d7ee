"""Compares original, clone and edition with many inputs, in a process of its own: compare.py FOLDER FLAVOUR SEED."""

from __future__ import annotations

import ctypes
import random
import subprocess
import sys
from pathlib import Path

from native import Loaded, Process, Redirected, call, compile_c, redirect

from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite import examine

SOURCES = Path(__file__).parent / "sources"
COMMON = ("-fno-pic", "-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-jump-tables")
FTRACE = ("-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount")
KERNEL = (
    "-mcmodel=kernel", "-mno-red-zone", "-mno-sse", "-mno-mmx", "-mno-80387", "-DTHUNKS",
    "-mfunction-return=thunk-extern", "-mindirect-branch=thunk-extern", "-mindirect-branch-register",
)  # fmt: skip
#: Flags of the compiler; what assembler's NOP5 and RETURN stand for; the symbol that returns jump to.
FLAVOURS = {
    "user": ((*COMMON, "-fcf-protection=none"), ("", "ret"), ""),
    "user-endbr": ((*COMMON, "-fcf-protection=branch"), ("endbr64", "ret"), ""),
    "user-size": ((*COMMON, "-Os"), ("", "rep ret"), ""),
    "kernel": (
        (*COMMON, *KERNEL, *FTRACE, "-fcf-protection=none"),
        (".byte 0x0f,0x1f,0x44,0,0", "jmp __x86_return_thunk"), "__x86_return_thunk",
    ),
    "kernel-sls": (
        (*COMMON, *KERNEL, *FTRACE, "-fcf-protection=branch", "-mharden-sls=all", "-O3"),
        ("endbr64; .byte 0x0f,0x1f,0x44,0,0", "jmp __x86_return_thunk; int3"), "__x86_return_thunk",
    ),
}  # fmt: skip
#: Functions that a flavour's compiler made unfit: their loops begin in the trampoline's bytes.
REFUSED = {"user-size": {"self_tail", "floats"}}
SIX = (
    "plain", "loops", "choices", "calls", "recursive", "tail", "tails", "self_tail", "cold_part", "pointers", "pairs",
    "strings", "counted_loop", "conditional_tail", "keeps_tail",
    "serialises",
)  # fmt: skip
EXTRA = ("callee", "rare", "eight", "variadic", "keeps_everything")


def build(folder: Path, flavour: str, source: str) -> Path:
    """Compile one of the C sources together with the assembler one, if it is the original."""
    flags, (nop, leave), _thunk = FLAVOURS[flavour]
    name = source.removesuffix(".c")
    compiled = compile_c(SOURCES / source, folder / f"{name}.c.o", *flags)
    if name != "functions":
        return compiled
    defines = [flag for flag in flags if flag.startswith("-D")]
    assembled = compile_c(
        SOURCES / "assembler.S", folder / "assembler.o", f"-DNOP5={nop}", f"-DRETURN={leave}", *defines
    )
    joined = folder / f"{name}.o"
    subprocess.run(["ld", "-r", "-o", str(joined), str(compiled), str(assembled)], check=True)
    return joined


def number(chance: random.Random) -> int:
    """Return a number that is small, large, or all ones, each often."""
    return chance.choice((chance.randrange(100), chance.getrandbits(64), (1 << 64) - 1, 0))


def results(loaded: Loaded, seed: int, count: int) -> list[object]:
    """Return what the functions return for COUNT inputs each; the same seed gives the same inputs."""
    chance = random.Random(seed)
    symbols = loaded.symbols
    found: list[object] = []
    floats = ctypes.CFUNCTYPE(ctypes.c_double, *[ctypes.c_double] * 3)
    for _ in range(count):
        arguments = [number(chance) for _ in range(6)]
        found += [call(symbols[name], *arguments) for name in SIX]
        if "pointer_tail" in symbols:
            found.append(call(symbols["pointer_tail"], *arguments))
        found.append(call(symbols["eight"], *arguments, number(chance), number(chance)))
        found.append(call(symbols["variadic"], 5, *arguments))
        found.append(call(symbols["callee"], *arguments[:2]))
        if "floats" in symbols:
            found.append(floats(symbols["floats"])(*[chance.uniform(-2, 2) for _ in range(3)]))
        found.append(call(symbols["watches"]))
    return found


def accepted(process: Process, name: str) -> bool:
    """Return whether a function can be redirected."""
    try:
        examine(process, process.function(name))
    except Refusal:
        return False
    return True


def check_balance(redirected: Redirected, editions: bool) -> None:
    """Check that every function was entered, and left as often."""
    for (name, number_), _offset in redirected.uses.items():
        entered, exited = redirected.use(name, number_)
        assert entered == exited, f"{name} v{number_}: entered {entered}, exited {exited}"
        if number_ == 1 or editions:
            assert entered, f"{name} v{number_} was never entered"


def main(folder: Path, flavour: str, seed: int) -> None:
    """Compare, first clones with originals, then editions in C with the same functions compiled plainly."""
    thunk = FLAVOURS[flavour][2]
    fentry = {"__fentry__": 0}
    original = Loaded(build(folder, flavour, "functions.c"), fentry)
    editions = build(folder, flavour, "editions.c")
    names = [name for name in (*SIX, *EXTRA, "floats", "pointer_tail") if name in original.symbols]
    process = Process(original)
    refused = {name for name in names if not accepted(process, name)}
    assert refused == REFUSED.get(flavour, set()), refused
    names = [name for name in names if name not in refused]
    before = results(original, seed, 200)
    expected = Loaded(editions, {**original.symbols, **{f"{n}_v1": original.symbols[n] for n in names}})
    plain = [call(expected.symbols[f"{name}_v2"], *range(1, 7)) for name in ("plain", "loops", "choices", "tails")]
    redirected = redirect(folder, original, names, [editions], thunk)
    redirected.install()
    after = results(original, seed, 200)
    assert before[-1] == 0
    differing = [i for i, (one, two) in enumerate(zip(before, after, strict=True)) if one != two]
    assert not differing, f"results differ at {differing[:10]}"
    check_balance(redirected, editions=False)
    for name in ("plain", "loops", "choices", "tails"):
        redirected.choose(name, 2)
    changed = [call(original.symbols[name], *range(1, 7)) for name in ("plain", "loops", "choices", "tails")]
    assert changed == plain, (changed, plain)
    check_balance(redirected, editions=True)
    print(len(before), "results equal")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
