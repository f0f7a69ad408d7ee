"""dynamos.ko: built for the running kernel when first needed, then kept."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
from pathlib import Path

from dynamos_ng import modules
from dynamos_ng.build import kbuild
from dynamos_ng.errors import MissingTool

NAME = "dynamos"
#: Where builds are kept; DYNAMOS_CACHE names another folder.
CACHE = Path(os.environ.get("DYNAMOS_CACHE", "/var/cache/dynamos_ng"))


def source() -> Path:
    """Return the folder of the module's C sources."""
    folder = Path(__file__).parents[2] / "kmod"
    if not (folder / "Kbuild").exists():
        raise MissingTool(f"{folder}: the module's sources are not there; run from a checkout")
    return folder


def folder() -> Path:
    """Return the folder in which dynamos.ko and its Module.symvers lie, built there if they are missing.

    The folder's name holds a digest of the sources, so a changed source is built anew.
    """
    files = sorted(path for path in source().rglob("*") if path.suffix in {".c", ".h"} or path.name == "Kbuild")
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:12]
    target = CACHE / f"{platform.release()}-{digest}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / f"{NAME}.ko").exists():
            shutil.rmtree(target, ignore_errors=True)
            for path in files:
                copy = target / path.relative_to(source())
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copy)
            kbuild.make(target, "modules")
    return target


def ensure_loaded() -> None:
    """Load dynamos.ko unless it is loaded. Undone by `rmmod dynamos`, which the kernel allows when no update is
    loaded."""
    if not modules.loaded(NAME):
        modules.load(folder() / f"{NAME}.ko")
