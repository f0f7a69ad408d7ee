"""Code of a program in place of a kernel's: the part of the rewriter's `Kernel` in which the two differ."""

from __future__ import annotations

from dynamos_ng.rewrite.kernel import Bug, Fixup, StaticCall, StaticKey


class UserCode:
    """What the rewriter asks of a kernel's tables: a program has none of them, and forbids nothing."""

    def forbidden(self, start: int, end: int) -> str:
        return ""

    def probes(self, start: int, end: int) -> list[int]:
        return []

    def return_thunks(self) -> frozenset[int]:
        return frozenset()

    def orc(self, start: int, end: int) -> list[tuple[int, bytes]]:
        return []

    def fixups(self, start: int, end: int) -> list[Fixup]:
        return []

    def static_keys(self, start: int, end: int) -> list[StaticKey]:
        return []

    def bugs(self, start: int, end: int) -> list[Bug]:
        return []

    def static_calls(self, start: int, end: int) -> list[StaticCall]:
        return []

    def branch_pads(self) -> dict[str, int]:
        return {}

    def bare_locks(self, start: int, end: int) -> list[int]:
        return []
