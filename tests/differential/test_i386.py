"""32-bit clones and editions compute what their originals compute, in a 32-bit program on this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import library
import pytest

from dynamos_ng.image import Kernel
from dynamos_ng.kallsyms import Symbols
from dynamos_ng.memory import Elf
from dynamos_ng.rewrite import Constants, Object, Redirect, check, generate

SOURCES = Path(__file__).parent / "sources"
AT = 0x8100000
SIZE = 0x10000
COMMON = (
    "-m32", "-O2", "-ffreestanding", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-jump-tables",
    "-fcf-protection=none", "-fno-zero-initialized-in-bss", "-freg-struct-return", "-w",
)  # fmt: skip
FTRACE = ("-pg", "-mfentry", "-mnop-mcount", "-mrecord-mcount")
#: Flags of the compiler, the bytes of the assembler's ftrace sites, and the functions that only one flavour has.
FLAVOURS = {
    "cdecl": (("-fno-pic",), "", ()),
    "endbr32": (("-fno-pic", "-fcf-protection=branch"), "", ()),
    "pic": (("-fPIC", "-fvisibility=hidden"), "", ()),
    "kernel": (
        ("-fno-pic", "-mregparm=3", "-mindirect-branch=thunk-extern", "-mindirect-branch-register", *FTRACE),
        ".byte 0x3e,0x8d,0x74,0x26,0", ("pointer_tail",),
    ),
}  # fmt: skip
NAMES = (
    "plain", "loops", "choices", "callee", "calls", "recursive", "tail", "tails", "self_tail", "cold_part",
    "pointers", "pairs", "strings", "variadic", "counted_loop", "conditional_tail", "learns", "keeps_everything",
    "keeps_tail", "watches",
    "serialises", "drops", "drops_both",
)  # fmt: skip
CHANGED = ("plain", "loops", "choices", "tails")


def run(*argv: object) -> str:
    """Run a tool; its errors are the test's."""
    done = subprocess.run([str(part) for part in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


#: What the update's header needs of the kernel's, where there is no kernel.
KERNEL_HEADERS = {
    "module.h": "struct module;\n",
    "moduleparam.h": "struct kernel_param_ops;\n",
    "types.h": "#include <stdbool.h>\n#include <stddef.h>\ntypedef unsigned char u8;\ntypedef unsigned int gfp_t;\n"
    "#define READ_ONCE(x) (x)\n",
}


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_redirected_functions_return_what_they_returned(flavour: str, tmp_path: Path) -> None:
    flags, site, extra = FLAVOURS[flavour]
    regparm = "-mregparm=3" in flags
    thunks = "-DTHUNKS" if extra else "-DNONE"

    def compiled(source: Path, name: str, *more: str) -> Path:
        run("gcc", "-c", *COMMON, *more, "-o", tmp_path / name, source)
        return tmp_path / name

    argument = "mov %eax," if regparm else "mov 4(%esp),"
    original = compiled(SOURCES / "functions.c", "functions.o", *flags, thunks)
    assembled = compiled(SOURCES / "i386.S", "assembler.o", f"-DNOP5={site}", f"-DFIRST={argument}")
    bounds = {"_stext": AT, "_etext": AT + SIZE, "__start___ex_table": AT, "__stop___ex_table": AT}
    image, copy = tmp_path / "original", tmp_path / "original.bin"
    defined = [f"--defsym={name}={value:#x}" for name, value in bounds.items()]
    run("ld", "-m", "elf_i386", "-N", "-e0", f"-Ttext={AT:#x}", *defined, "-o", image, original, assembled)
    run("objcopy", "-O", "binary", image, copy)
    assert copy.stat().st_size < SIZE
    listing = run("nm", "-n", image)
    kernel = Kernel(Symbols(listing), Elf(image))
    editions = compiled(SOURCES / "editions.c", "editions.o", *flags, "-fno-pic")
    renamed = [f"-D{name}_v2={name}_expected" for name in CHANGED] + ["-Dshared=shared_expected"]
    plain = (*(flag for flag in flags if flag not in FTRACE), "-fno-pic", *renamed)
    expected = compiled(SOURCES / "editions.c", "expected.o", *plain)

    redirects = [
        Redirect(check(kernel, name), {2: f"{name}_v2"} if name in CHANGED else {}) for name in (*NAMES, *extra)
    ]
    text = generate(
        redirects, [Object(editions.read_bytes(), editions.name)], Constants(0x40, 0x24, return_thunk=""),
        kernel.symbols.address,
    )  # fmt: skip
    (tmp_path / "update.S").write_text(text)
    update = compiled(tmp_path / "update.S", "update.o", "-DCC_USING_NOP_MCOUNT", "-Wa,--fatal-warnings")
    (tmp_path / "image.S").write_text(f'\t.section .image,"awx",@progbits\n\t.incbin "{copy}"\n\t.zero 4096\n')
    (tmp_path / "linux").mkdir()
    for name, content in KERNEL_HEADERS.items():
        (tmp_path / "linux" / name).write_text(content)
    listed = " ".join(f"F({name})" for name in extra)
    driver = compiled(
        SOURCES / "i386_driver.c", "driver.o", "-fno-pic", *(["-mregparm=3"] if regparm else []),
        f"-DEXTRA(F)={listed}", "-I", str(tmp_path), "-isystem", library.headers(),
    )  # fmt: skip
    program = tmp_path / "program"
    run(
        "ld", "-m", "elf_i386", "-estart", f"--section-start=.image={AT:#x}", f"--just-symbols={image}",
        "-o", program, driver, update, expected, compiled(tmp_path / "image.S", "image.o"),
    )  # fmt: skip
    done = subprocess.run([program], check=False)
    assert done.returncode == 0, f"i386_driver.c: the check in line {done.returncode} failed"
