"""dynamos.ko: built for the running kernel when first needed, then kept."""

from __future__ import annotations

from pathlib import Path

from dynamos_ng import modules
from dynamos_ng.build import kept

NAME = "dynamos"


def source() -> Path:
    """Return the folder of the module's C sources."""
    return kept.source("kmod")


def folder() -> Path:
    """Return the folder in which dynamos.ko and its Module.symvers lie, built there if they are missing."""
    return kept.folder("kmod", [f"{NAME}.ko"])


def ensure_loaded() -> None:
    """Load dynamos.ko unless it is loaded. Undone by `rmmod dynamos`, which the kernel allows when no update is
    loaded."""
    if not modules.loaded(NAME):
        modules.load(folder() / f"{NAME}.ko")
