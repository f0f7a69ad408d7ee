"""An update of /proc/cmdline's function for tests of what others do beside it, and what they look at."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conftest import unload, write_update

from dynamos_ng import control
from dynamos_ng.build import kbuild
from dynamos_ng.build.update import build
from dynamos_ng.image import Kernel
from dynamos_ng.rewrite.clone import Original, examine

FUNCTION = "cmdline_proc_show"
FILE = Path("/proc/cmdline")
UPDATE = "beside"
PROBE = "kernel_probe"
SOURCE = """
#include <linux/seq_file.h>
int cmdline_proc_show_v2(struct seq_file *m, void *v);
int cmdline_proc_show_v2(struct seq_file *m, void *v)
{
	seq_puts(m, "edition 2\\n");
	return 0;
}
"""


def built(folder: Path) -> Path:
    """Return the update that gives policy class 1 an edition of its own; nothing is beside it yet."""
    return build(write_update(folder / UPDATE, {FUNCTION: [2]}, SOURCE), folder)


def load(module: Path) -> None:
    control.call("load", path=str(module), watch=False)


def activate() -> None:
    control.call("activate", name=UPDATE, classes=[1])


def status() -> Any:
    (update,) = control.call("status")["updates"]
    return update


def notes() -> str:
    return "\n".join(status()["functions"][0]["notes"])


@contextmanager
def redirected(module: Path) -> Iterator[None]:
    """Redirect the function; it is given back and its clone freed at the end."""
    load(module)
    try:
        activate()
        yield
    finally:
        unload(UPDATE)


@contextmanager
def loaded(module: Path) -> Iterator[None]:
    """Load the update; unload it at the end, if that was not done before."""
    load(module)
    try:
        yield
    finally:
        if control.call("status")["updates"]:
            unload(UPDATE)


def read_as(policy_class: int) -> str:
    """Read the file as a process of a policy class."""
    control.call("policy_process", pid=os.getpid(), policy_class=policy_class)
    try:
        return FILE.read_text()
    finally:
        control.call("policy_process", pid=os.getpid(), policy_class=0)


def check_editions(rounds: int = 3) -> None:
    """Each class sees its edition, each call is counted once in and once out."""
    before = {use["number"]: use for use in status()["functions"][0]["uses"]}
    for _ in range(rounds):
        assert read_as(1) == "edition 2\n"
        assert "console=" in read_as(0)
    for use in status()["functions"][0]["uses"]:
        old = before[use["number"]]
        assert use["entered"] - old["entered"] == use["exited"] - old["exited"] == rounds


def examined() -> Original:
    kernel = Kernel.live()
    return examine(kernel, kernel.function(FUNCTION))


def cloned_bytes() -> list[bytes]:
    """Return the code that a clone made now would be made of; the ftrace site is whoever's uses it."""
    original = examined()
    return [one.code for one in original.body.instructions if one.address != original.entry.ftrace]


def compiled(folder: Path, name: str, source: str) -> Path:
    """Return the kernel module that a C source becomes."""
    (folder / f"{name}.c").write_text(source)
    (folder / "Kbuild").write_text(f"obj-m := {name}.o\n")
    kbuild.make(folder, "modules")
    return folder / f"{name}.ko"


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)
