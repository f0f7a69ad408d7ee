"""Runs the kernel's own build system on a folder."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
from pathlib import Path

from dynamos_ng.errors import BuildError, MissingTool

#: A command that takes a folder and make's arguments and builds there in our place (the lab sets it, for
#: compiling under emulation is slow).
COMMAND = "DYNAMOS_KBUILD"
#: Debug information is dropped by the loader and costs more time than the code.
QUICK = ("CONFIG_DEBUG_INFO_BTF_MODULES=", "CONFIG_DEBUG_INFO=")
#: What make, or its shell, says of a program that is not there; a compiler's name is that of its package.
_ABSENT = re.compile(
    r"^(?:/bin/sh: (?:\d+: )?|make(?:\[\d+\])?: )([\w.+-]+): (?:not found|No such file or directory)$", re.MULTILINE
)
_BINUTILS = frozenset({"ar", "as", "ld", "nm", "objcopy", "objdump", "readelf", "strip"})


def headers() -> Path:
    """Return the running kernel's build folder; MissingTool names the package when it is not there."""
    release = platform.release()
    folder = Path("/lib/modules") / release / "build"
    if not (folder / "Makefile").exists():
        raise MissingTool(
            f"{folder}: the kernel's headers are not installed: apt install linux-headers-{release}"
        )
    return folder


def exported() -> frozenset[str]:
    """Return the names of all symbols that the running kernel and its modules export."""
    path = headers() / "Module.symvers"
    try:
        return frozenset(line.split("\t")[1] for line in path.read_text().splitlines())
    except (OSError, IndexError):
        raise MissingTool(f"{path}: it cannot be read: reinstall linux-headers-{platform.release()}") from None


def make(folder: Path, *targets: str) -> None:
    """Build targets in FOLDER; BuildError carries the compiler's own words, MissingTool names a package."""
    if command := os.environ.get(COMMAND):
        argv = [*shlex.split(command), str(folder)]
    else:
        argv = ["make", "-s", "-C", str(headers()), f"M={folder}"]
    try:
        done = subprocess.run(
            [*argv, *QUICK, *targets], capture_output=True, text=True, errors="replace", check=False,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError:
        raise MissingTool(f"{argv[0]} is not installed: apt install make gcc") from None
    if done.returncode:
        if absent := _ABSENT.search(done.stdout + done.stderr):
            package = "binutils" if absent[1] in _BINUTILS else absent[1]
            raise MissingTool(f"{absent[1]} is not installed: apt install {package}")
        raise BuildError(_explain(folder, done.stdout + done.stderr))


def _explain(folder: Path, output: str) -> str:
    """Return the compiler's messages, with paths as the author knows them and make's own noise left out."""
    lines = [line for line in output.splitlines() if line and not line.startswith(("make", "  "))]
    kept = lines or output.splitlines()
    return "the kernel's build failed:\n" + "\n".join(kept[-40:]).replace(f"{folder}/", "")
