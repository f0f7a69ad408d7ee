"""The architectures that are known."""

from __future__ import annotations

from dynamos_ng.arch import Arch, i386, x86_64

ALL: tuple[Arch, ...] = (x86_64.ARCH, i386.ARCH)


def by_machine(machine: int) -> Arch | None:
    """Return the architecture of an ELF header's machine number."""
    return next((arch for arch in ALL if arch.machine == machine), None)


def by_word(word: int) -> Arch | None:
    """Return the architecture whose addresses have WORD bytes."""
    return next((arch for arch in ALL if arch.word == word), None)
