"""``dynamos lab matrix``: one command on every kernel, each in a guest of its own; a table of how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dynamos_ng.errors import DynamosError
from dynamos_ng.lab import machine, root
from dynamos_ng.lab.variants import Variant


@dataclass(frozen=True)
class Row:
    """How the command ended on one variant, and what it printed, or the error that came instead of a status.

    `release`: what ``uname -r`` says there; empty if there is no such root. `seconds` include the boot.
    """

    kernel: str
    release: str
    cpu: str
    status: int
    seconds: float
    output: str
    error: str


def run(
    command: Sequence[str],
    variants: Iterable[Variant],
    *,
    timeout: float,
    say: Callable[[str], None],
) -> list[Row]:
    """Run a command on one variant after the other; SAY gets its output as it comes.

    What a guest does not survive is that guest's row and does not keep the others from running.
    """
    return [_one(command, variant, timeout, say) for variant in variants]


def _one(command: Sequence[str], variant: Variant, timeout: float, say: Callable[[str], None]) -> Row:
    output: list[str] = []

    def heard(text: str) -> None:
        output.append(text)
        say(text)

    say(f"── {variant}\n")
    release, status, error = "", 0, ""
    started = time.monotonic()
    try:
        release = root.ensure(variant.kernel).release
        started = time.monotonic()
        status = machine.run(
            command, timeout=timeout, on_output=heard, kernel=variant.kernel, cpu=variant.cpu
        ).status
    except DynamosError as failure:
        status, error = failure.exit_code, str(failure)
        say(f"{error}\n")
    seconds = round(time.monotonic() - started, 1)
    return Row(variant.kernel, release, variant.cpu, status, seconds, "".join(output), error)
