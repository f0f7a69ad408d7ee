"""The survey's cost: its time against that of capstone alone over the same text in the same run, and its memory.

Prints one line and, with --json, writes the survey's report with `capstone_seconds`. The promise: at most 3 times the
time, less than 1 GiB. Takes the options of ``dynamos survey``; run from the checkout as ``python3 -m bench.survey``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import capstone

from dynamos_ng import survey
from dynamos_ng.cli.survey import add_arguments, opened
from dynamos_ng.errors import DynamosError
from dynamos_ng.image import Kernel

MOST_TIMES = 3
MOST_MEMORY = 1 << 30


def texts(kernel: Kernel) -> list[tuple[bytes, int]]:
    """Return code and address of each code symbol, without the padding behind it."""
    places = sorted({symbol.address for symbol in kernel.symbols.code() if kernel.in_text(symbol.address)})
    return [(kernel.read(at, kernel.symbols.after(at) - at).rstrip(b"\xcc\x90\0"), at) for at in places]


def bare(word: int, code: Sequence[tuple[bytes, int]]) -> tuple[float, int]:
    """Return seconds and instructions of capstone alone over CODE, symbol by symbol."""
    mode = capstone.CS_MODE_64 if word == 8 else capstone.CS_MODE_32
    engine = capstone.Cs(capstone.CS_ARCH_X86, mode)
    engine.syntax = capstone.CS_OPT_SYNTAX_ATT
    count = 0
    began = time.monotonic()
    for data, at in code:
        for _ in engine.disasm(data, at):
            count += 1
    return time.monotonic() - began, count


def main() -> int:
    """Measure; returns 1 if a promise is not kept."""
    parser = argparse.ArgumentParser("bench/survey.py", description=__doc__)
    add_arguments(parser)
    options = parser.parse_args()
    try:
        kernel = opened(options)
        code = texts(kernel)
        # One half before and one behind, so that what else runs on the machine weighs on both alike.
        before = bare(kernel.arch.word, code[::2])
        done = survey.survey(kernel)
        behind = bare(kernel.arch.word, code[1::2])
    except DynamosError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.exit_code
    seconds, count = (one + two for one, two in zip(before, behind, strict=True))
    report = {**done.report(), "capstone_seconds": round(seconds, 2)}
    print(
        f"survey {done.seconds:.1f} s ({done.cpu_seconds:.1f} s of processors), capstone alone {seconds:.1f} s for "
        f"{count} instructions: {done.seconds / seconds:.2f} times; {done.peak_memory >> 20} MiB",
        file=sys.stderr,
    )
    text = json.dumps(report, indent=2, ensure_ascii=False) + "\n"
    if options.json and options.json != "-":
        Path(options.json).write_text(text)
    elif options.json:
        print(text, end="")
    return int(done.seconds > MOST_TIMES * seconds or done.peak_memory >= MOST_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
