"""What is built for the running kernel when first needed, then kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
from collections.abc import Sequence
from pathlib import Path

from dynamos_ng.build import kbuild
from dynamos_ng.cache import FOLDER
from dynamos_ng.errors import MissingTool

#: Marks a folder whose files are all there.
COMPLETE = "complete"


def source(name: str) -> Path:
    """Return a folder of C sources at the top of the checkout."""
    folder = Path(__file__).parents[2] / name
    if not (folder / "Kbuild").exists():
        raise MissingTool(f"{folder}: C sources are not there; run from a checkout")
    return folder


def folder(name: str, made: Sequence[str]) -> Path:
    """Return the folder with what kbuild makes of the sources in NAME; it is built if one of the files MADE is missing.

    The folder's name holds a digest of the sources and of the kernel's own build, so what has changed is built anew.
    """
    base = source(name)
    files = sorted(path for path in base.rglob("*") if path.suffix in {".c", ".h"} or path.name == "Kbuild")
    parts = [platform.version().encode(), *(path.read_bytes() for path in files)]
    digest = hashlib.sha256(b"".join(parts)).hexdigest()[:12]
    target = FOLDER / f"{name}-{platform.release()}-{digest}"
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not all((target / file).exists() for file in (COMPLETE, *made)):
            shutil.rmtree(target, ignore_errors=True)
            for path in files:
                copy = target / path.relative_to(base)
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            kbuild.make(target, "modules")
            os.sync()  # before the mark: what is half written when the power goes has none
            (target / COMPLETE).touch()
    return target
