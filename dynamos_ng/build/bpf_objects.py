"""Objects for libbpf: of the programs of bpf/, compiled by clang when first needed and then kept, and of an
author's."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from dynamos_ng.build import kept
from dynamos_ng.errors import BuildError, MissingTool

#: bcc's calls of a map's methods, which become calls of functions; bpf/Kbuild does the same.
_METHOD = re.compile(r"([a-z]\w*)\.(lookup|lookup_or_try_init|update|delete)\(")


def path(source: str) -> Path:
    """Return the object made of a source in bpf/."""
    names = [f"{file.stem}.bpf.o" for file in sorted(kept.source("bpf").glob("*.c"))]
    return kept.folder("bpf", names) / f"{Path(source).stem}.bpf.o"


def compile_text(file: str, text: str, constants: Mapping[str, int], output: Path) -> None:
    """Compile an author's text, of a source FILE, into OUTPUT; BuildError has clang's words."""
    try:
        machine = subprocess.run(["gcc", "-print-multiarch"], capture_output=True, text=True, check=True).stdout.strip()
        done = subprocess.run(
            [
                "clang", "-target", "bpf", "-O2", "-g", "-Wall", "-idirafter", f"/usr/include/{machine}",
                "-DDYNAMOS_ADAPT", *(f"-D{name}={value}" for name, value in constants.items()),
                "-include", kept.source("bpf") / "libbpf.h", "-x", "c", "-c", "-", "-o", output,
            ],
            input=_METHOD.sub(r"\2(&\1, ", text), capture_output=True, text=True, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise MissingTool(f"{file}: {error.filename} is not installed: apt install clang libbpf-dev gcc") from None
    if done.returncode:
        raise BuildError(f"{file}: clang cannot compile it:\n{done.stderr.strip()}")
