"""The survey's cost: its time against that of capstone alone over the same text in the same run, and its memory.

Takes the options of ``dynamos survey``. The report's details are the survey's own report with `capstone_seconds`;
--json writes them alone.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import capstone

from bench.report import Figure, Noise, Report
from dynamos_ng import survey
from dynamos_ng.cli.survey import add_arguments, opened
from dynamos_ng.errors import UsageError
from dynamos_ng.image import Kernel

__all__ = ["CLAIM", "NAME", "add_arguments", "run"]

NAME = "survey"
CLAIM = "Every function of a kernel is examined in at most 3 times what bare disassembly takes, in less than 1 GiB."
MOST_TIMES = 3
#: More time than work by this factor, and the machine is too busy for the first target.
MOST_WAITING = 1.25
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


def noise(done: survey.Survey) -> Noise:
    """Tell whether the survey's processes had processors: they compute all the time, so one at least was at work."""
    waiting = done.seconds / done.cpu_seconds
    reason = f"the survey took {done.seconds:.0f} s for {done.cpu_seconds:.0f} s of work: others had the processors"
    return Noise((reason,) if waiting > MOST_WAITING else (), {"seconds_for_a_second_of_work": waiting})


def run(options: argparse.Namespace) -> list[Report]:
    """Measure the survey of the kernel that was asked for."""
    if options.why:
        raise UsageError("bench survey: --why asks for one function; all of them are measured")
    kernel = opened(options)
    code = texts(kernel)
    # One half before and one behind, so that what else runs on the machine weighs on both alike.
    before = bare(kernel.arch.word, code[::2])
    done = survey.survey(kernel)
    behind = bare(kernel.arch.word, code[1::2])
    seconds, count = (one + two for one, two in zip(before, behind, strict=True))
    details = {**done.report(), "capstone_seconds": round(seconds, 2)}
    figures = (
        Figure("survey/times", done.seconds / seconds, "times", "the survey's time in capstone's alone", MOST_TIMES),
        Figure("survey/seconds", done.seconds, "s", "the survey's time"),
        Figure("survey/cpu-seconds", done.cpu_seconds, "s", "the same on all processors together"),
        Figure("survey/capstone-seconds", seconds, "s", f"capstone alone, for {count} instructions"),
        Figure("survey/memory", done.peak_memory, "bytes", "the most that one process held", MOST_MEMORY),
    )
    report = Report(NAME, CLAIM, figures, noise(done), done.seconds + seconds, details=details)
    text = json.dumps(details, indent=2, ensure_ascii=False) + "\n"
    if options.json == "-":
        print(text, end="")
    elif options.json:
        try:
            Path(options.json).write_text(text)
        except OSError as error:
            raise UsageError(f"{options.json}: {error.strerror}") from None
    return [report]
