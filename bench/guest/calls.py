"""What a system call costs with its function redirected, probed or patched: counted, or timed (bench/calls.py)."""

from __future__ import annotations

import argparse
import json
import platform
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from bench.guest.measuring import Calls, active, daemon, loaded, module, peers, waited, written
from dynamos_ng import control, neighbours

WIDE = platform.machine() == "x86_64"
STEM = "__x64_sys_" if WIDE else "__ia32_sys_"
#: What seeks in an eventfd: one of the smallest functions, and one that all of these ways can be put on.
TINY = "noop_llseek"
#: The same as the original does.
SOURCE = """
#include <linux/fs.h>

loff_t noop_llseek_v2(struct file *file, loff_t offset, int whence);
loff_t noop_llseek_v2(struct file *file, loff_t offset, int whence)
{
	return file->f_pos;
}
"""
#: The paper's functions under their present names, by the load that calls them.
TABLE = {
    "clone": "kernel_clone", "brk": f"{STEM}brk", "execve": f"{STEM}execve", "openat": f"{STEM}openat",
    "read": f"{STEM}read", "write": f"{STEM}write", "fault": "handle_mm_fault", "kill": f"{STEM}kill",
}  # fmt: skip
#: What they return, and take.
PROTOTYPES = {
    "kernel_clone": ("pid_t", "struct kernel_clone_args *args"),
    "handle_mm_fault": (
        "vm_fault_t",
        "struct vm_area_struct *vma, unsigned long address, unsigned int flags, struct pt_regs *regs",
    ),
}
#: Editions 2, so that there is something to choose; it is not chosen.
OTHERS = """
#include <linux/mm.h>
#include <linux/sched/task.h>

{returns} {name}_v1({takes});
{returns} {name}_v2({takes});
{returns} {name}_v2({takes})
{{
	return {name}_v1({gives});
}}
"""
#: How often each of them is redirected and given back.
ROUNDS = 8
CHOOSER = "int chooser(struct bpf_raw_tracepoint_args *ctx) { return 1; }\n"
Way = Callable[[Path], AbstractContextManager[Any]]


def _original_by_policy(folder: Path, function: str) -> Path:
    """Write an update that has every process look up that it runs the original."""
    returns, takes = PROTOTYPES.get(function, ("long", "const struct pt_regs *regs"))
    gives = ", ".join(re.findall(r"(\w+)(?:,|$)", takes))
    return written(folder, {function: [2]}, OTHERS.format(name=function, returns=returns, takes=takes, gives=gives))


def _adapted(work: Path) -> AbstractContextManager[None]:
    folder = written(work / "bpf", {TINY: [2]}, SOURCE, 'adapt = "adapt.bpf.c:chooser"\n')
    (folder / "adapt.bpf.c").write_text(CHOOSER)
    return active(folder)


def _probe(work: Path, returns: str) -> AbstractContextManager[None]:
    return module(peers(work / f"probe{returns}") / "peer_kprobe.ko", f"symbol={TINY}", f"returns={returns}")


@contextmanager
def _livepatch(work: Path) -> Iterator[None]:
    patch = peers(work / "livepatch") / "peer_livepatch.ko"
    folder = neighbours.LIVEPATCH / patch.stem
    with module(patch):
        waited(lambda: (folder / "transition").read_text() == "0\n")
        yield
        (folder / "enabled").write_text("0")
        waited(lambda: not folder.exists())


@contextmanager
def _trampoline(kind: str) -> Iterator[None]:
    import bcc

    program = bcc.BPF(text=f"{kind}({TINY}) {{ return 0; }}")
    yield
    program.cleanup()


WAYS: dict[str, Way] = {
    "nothing": lambda _: nullcontext(),
    "one": lambda work: active(written(work / "one", {TINY: []})),
    "first": lambda work: active(written(work / "first", {TINY: [2]}, SOURCE), edition=1),
    "second": lambda work: active(written(work / "second", {TINY: [2]}, SOURCE), edition=2),
    "kprobe": lambda work: _probe(work, "N"),
    "kretprobe": lambda work: _probe(work, "Y"),
}
#: What i386 does not have.
ONLY_WIDE: dict[str, Way] = {
    "bpf": _adapted,
    "fentry": lambda _: _trampoline("KFUNC_PROBE"),
    "fexit": lambda _: _trampoline("KRETFUNC_PROBE"),
    "livepatch": _livepatch,
}


def main() -> None:
    """Measure, and write /out/calls.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calls", type=int)
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    found: dict[str, Any] = {"release": platform.release(), "machine": platform.machine(), "ways": {}, "table": {}}
    with tempfile.TemporaryDirectory() as folder, daemon():
        work = Path(folder)
        calls = Calls(work, options.calls)
        for name, way in (WAYS | ONLY_WIDE if WIDE else WAYS).items():
            before = calls.take("lseek")
            with way(work):
                found["ways"][name] = {"before": before, "during": calls.take("lseek")}
            print(name, found["ways"][name], flush=True)
        for load, function in TABLE.items() if options.table else ():
            with loaded(_original_by_policy(work / load, function)) as update:

                def switch(on: bool, update: str = update) -> None:
                    if on:
                        control.call("activate", name=update, edition=1)
                    else:
                        control.call("deactivate", name=update)

                found["table"][load] = {"function": function, **calls.compare(load, ROUNDS, switch)}
            print(load, found["table"][load], flush=True)
    Path("/out/calls.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
