"""The programs of bpf/ as objects for libbpf: compiled by clang when first needed, then kept."""

from __future__ import annotations

from pathlib import Path

from dynamos_ng.build import kept


def path(source: str) -> Path:
    """Return the object made of a source in bpf/."""
    names = [f"{file.stem}.bpf.o" for file in sorted(kept.source("bpf").glob("*.c"))]
    return kept.folder("bpf", names) / f"{Path(source).stem}.bpf.o"
