"""Variants of a guest: a kernel on a processor; which of them a test or a matrix is for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from dynamos_ng.errors import UsageError
from dynamos_ng.lab.root import DEFAULT, KERNELS


class Variant(NamedTuple):
    """One of root.KERNELS, on one of machine.PROCESSORS; written ``7.2`` or ``7.2+srso``."""

    kernel: str
    cpu: str

    def __str__(self) -> str:
        return self.kernel if self.cpu == "max" else f"{self.kernel}+{self.cpu}"


def variants(kernels: Iterable[str], processors: bool) -> list[Variant]:
    """Return the kernels' variants: one each, or one for each processor that makes it patch itself differently."""
    return [Variant(name, cpu) for name in kernels for cpu in (KERNELS[name].processors if processors else ("max",))]


def chosen(
    only: Sequence[str], needs: Sequence[str], *, everywhere: bool, processors: bool, asked: Sequence[str]
) -> list[Variant]:
    """Return the variants that a test runs on.

    `only` and `needs` tell where it can run: on these kernels, or if there are none on all, if they have these
    features. Of those it runs on the ones ASKED for; when none are, EVERYWHERE, or on the usual one, unless it
    cannot run there. UsageError names a kernel or feature that does not exist.
    """
    features = frozenset[str]().union(*(kernel.features for kernel in KERNELS.values()))
    if unknown := [*(set(only) - set(KERNELS)), *(set(needs) - features)]:
        known = ", ".join((*KERNELS, *sorted(features)))
        raise UsageError(f"{', '.join(unknown)}: no kernel or feature of the lab's; there are {known}")
    able = [name for name, kernel in KERNELS.items() if name in (only or KERNELS) and kernel.features.issuperset(needs)]
    if asked:
        able = [name for name in able if name in asked]
    elif not everywhere and DEFAULT in able:
        able = [DEFAULT]
    return variants(able, processors)
