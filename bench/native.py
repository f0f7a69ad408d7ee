"""What a redirected call costs on a real processor: the generator's own text, run in a program of this machine.

All ways to call are timed in turn, round after round, in one program on one CPU, so what slows the machine down meets
all of them; each figure is a median of differences within a round. Where code lies changes its time too, so the
program is built several times, laid out differently, and each is run several times: a figure is the median over all
these runs, `low` and `high` are the extremes.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from bench import samples
from bench.program import PEERS, Loop, Program, Run, Subject
from bench.report import Figure, Noise, Report
from dynamos_ng.arch import Arch, known
from dynamos_ng.errors import UsageError

NAME = "native"
CLAIM = "A redirected call costs a few instructions: no lock, no indirect branch, no saved register file."
#: Targets, and what the paper published, in nanoseconds.
MOST_OVER_DIRECT, MOST_OF_FTRACE, PAPER = 0.5, 1 / 20, 20.0
EDITIONS = (1, 2, 4, 8, 16)
POOLS = (1, 64, 4096, 32768, 4 << 20)
#: Above these the machine is too noisy: two copies of one function apart (ns), the quartiles of one loop's times and
#: the halves of a run apart (parts of the median), and the share of runs that were disturbed.
MOST_APART, MOST_SPREAD, MOST_DRIFT, MOST_DISTURBED = 0.05, 0.05, 0.03, 0.25
#: What others on the processor's core slow down first, as it waits for memory; a run is disturbed if it takes so much
#: longer than in the best run of the same program.
WITNESS, MOST_OVER_BEST = Loop("registers"), 0.1
PEER_WORDS = {
    "registers": "a handler that saves the register file and returns to another place (ftrace_regs_caller)",
    "arguments": "the same, saving only what C functions may change (ftrace_caller)",
    "jump": "an indirect jump",
    "retpoline": "an indirect jump through a retpoline",
    "trampoline": "a direct jump to a new function, and nothing else",
}


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    layouts: int
    passes: int
    rounds: int
    batch: int
    tries: int


FULL, QUICK = Size(9, 3, 300, 500, 4), Size(2, 1, 40, 100, 1)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options of this benchmark."""
    parser.add_argument("--arch", choices=[arch.name for arch in known.ALL], action="append",
                        help="only for this architecture (default: all that this processor runs)")  # fmt: skip
    parser.add_argument("--cpu", type=int, metavar="N", help="where to run (default: the CPU that has least to do)")


def run(options: argparse.Namespace) -> list[Report]:
    """Measure each architecture."""
    size = QUICK if options.quick else FULL
    cpu = idlest() if options.cpu is None else options.cpu
    runnable = [arch for arch in known.ALL if arch.word == 4 or os.uname().machine == "x86_64"]
    wanted = [arch for arch in runnable if not options.arch or arch.name in options.arch]
    if not wanted:
        raise UsageError(f"bench native: a kernel of {os.uname().machine} runs no program of {options.arch[0]}")
    return [measure(arch, size, cpu) for arch in wanted]


def idlest(seconds: float = 0.5) -> int:
    """Return the CPU, of those that this process may use, that idles most."""

    def idle() -> dict[int, int]:
        lines = [line.split() for line in Path("/proc/stat").read_text().splitlines() if line.startswith("cpu")]
        return {int(words[0][3:]): int(words[4]) for words in lines[1:]}

    before = idle()
    time.sleep(seconds)
    after = idle()
    return max(os.sched_getaffinity(0), key=lambda cpu: after[cpu] - before[cpu])


def subjects(arch: Arch) -> list[Subject]:
    """Return the functions that are called."""
    found = [Subject("direct"), Subject("again"), Subject("saving", 2, c=False)]
    found += [Subject(f"first{n}", n) for n in EDITIONS]
    found += [Subject(f"last{n}", n, n) for n in EDITIONS[1:]]
    found += [Subject("alike", 2, 2, 2), Subject("mixed2", 2, 0), Subject("mixed16", 16, 0)]
    found += [Subject(name, peer=name) for name in PEERS if arch.word == 8 or name != "arguments"]
    return [*found, Subject("paper", paper=True), Subject("paper_moved", 2, paper=True)]


def loops(arch: Arch, wanted: Sequence[Subject]) -> list[Loop]:
    """Return the ways to call them."""
    plain = [one.name for one in wanted if not one.paper and one.chosen and one.name != "alike"]
    found = [Loop(name, dependent) for dependent in (False, True) for name in ("", *plain)]
    found += [Loop(name, paper=True) for name in ("", "paper", "paper_moved")]
    pools = [pool for pool in POOLS if arch.word == 8 or pool <= 32768]
    return found + [Loop(name, pool=pool) for pool in pools for name in ("", "direct", "alike", "mixed2", "mixed16")]


def measure(arch: Arch, size: Size, cpu: int) -> Report:
    """Measure, again while the machine is noisy and tries are left; the least noisy try is the report's."""
    began = time.monotonic()
    wanted = subjects(arch)
    with tempfile.TemporaryDirectory(prefix="dynamos-bench-") as folder:
        programs = []
        for seed in range(size.layouts):
            work = Path(folder) / str(seed)
            work.mkdir()
            programs.append(Program(arch, wanted, loops(arch, wanted), work, seed))
        best: tuple[Noise, list[list[Run]]] | None = None
        tries = 0
        while tries < size.tries and (best is None or not best[0].quiet):
            passes = [
                [program.run(cpu, size.rounds, size.batch, size.batch // 10) for program in programs]
                for _ in range(size.passes)
            ]
            tries += 1
            now = noise(passes)
            if best is None or _loudness(now) < _loudness(best[0]):
                best = now, passes
    assert best is not None
    found, runs = best[0], [run for one in best[1] for run in one]
    details = {
        "cpu": cpu, "tries": tries, "layouts": size.layouts, "passes": size.passes, "rounds": size.rounds,
        "calls_per_round": runs[0].calls_per_batch, "nanoseconds_per_tick": runs[0].nanoseconds_per_tick,
        "calls": sum(sum(run.calls.values()) for run in runs),
    }  # fmt: skip
    return Report(f"{NAME}-{arch.name}", CLAIM, tuple(figures(runs)), found, time.monotonic() - began,
                  details=details)  # fmt: skip


def noise(passes: Sequence[Sequence[Run]]) -> Noise:
    """Judge a try, all layouts in each of some PASSES, by what does not depend on what is to be found out."""
    runs = [run for one in passes for run in one]
    apart, spreads, drifts = [], [], []
    disturbed = 0
    for layout in zip(*passes, strict=True):
        times = [median(run.ticks[WITNESS]) * run.nanoseconds_per_tick for run in layout]
        disturbed += sum(time > (1 + MOST_OVER_BEST) * min(times) for time in times)
    for run in runs:
        direct, again = run.ticks[Loop("direct")], run.ticks[Loop("again")]
        scale = run.nanoseconds_per_tick / run.calls_per_batch
        apart.append(abs(median(samples.differences(direct, again))) * scale)
        spreads.append(samples.spread(direct).relative)
        drifts.append(samples.drift(direct))
    measured = {
        "same_code_apart_ns": median(apart), "quartiles_apart": median(spreads), "halves_apart": median(drifts),
        "disturbed": disturbed / len(runs),
        "worst_same_code_apart_ns": max(apart), "worst_quartiles_apart": max(spreads),
        "switches_per_second": sum(run.switches for run in runs) / sum(run.seconds for run in runs),
    }  # fmt: skip
    limits = {
        "same_code_apart_ns": (MOST_APART, "two copies of one function differ by {:.3f} ns"),
        "quartiles_apart": (MOST_SPREAD, "the quartiles of one loop's times are {:.1%} apart"),
        "halves_apart": (MOST_DRIFT, "the second half of a run differs from the first by {:.1%}"),
        "disturbed": (MOST_DISTURBED, "{:.0%} of the runs took longer than others of the same program"),
    }
    reasons = [text.format(measured[name]) for name, (most, text) in limits.items() if measured[name] > most]
    return Noise(tuple(reasons), measured)


def _loudness(noise: Noise) -> float:
    measured = noise.measured
    return max(measured["same_code_apart_ns"] / MOST_APART, measured["quartiles_apart"] / MOST_SPREAD,
               measured["halves_apart"] / MOST_DRIFT, measured["disturbed"] / MOST_DISTURBED)  # fmt: skip


def _over(run: Run, loop: Loop, base: Loop) -> tuple[float, float]:
    """Return by how much a call of LOOP takes longer than one of BASE: the median, and of the least times."""
    one, other = run.ticks[loop], run.ticks[base]
    scale = run.nanoseconds_per_tick / run.calls_per_batch
    return median(samples.differences(one, other)) * scale, (min(one) - min(other)) * scale


def _figure(name: str, text: str, runs: Sequence[Run], loop: Loop, base: Loop, target: float | None = None) -> Figure:
    found = [_over(run, loop, base) for run in runs]
    values = [value for value, _least in found]
    return Figure(name, median(values), "ns", text, target, low=min(values), high=max(values),
                  least=median(least for _value, least in found))  # fmt: skip


def _ratio(name: str, text: str, runs: Sequence[Run], loop: Loop, other: Loop, base: Loop,
           target: float | None = None, unit: str = "times") -> Figure:  # fmt: skip
    """Return what LOOP has over BASE in parts of what OTHER has."""
    values = [_over(run, loop, base)[0] / _over(run, other, base)[0] for run in runs]
    return Figure(name, median(values), unit, text, target, low=min(values), high=max(values))


def figures(runs: Sequence[Run]) -> list[Figure]:
    """Return all figures of some runs, in one layout or another."""
    found = []
    for chain, dependent in (("independent", False), ("dependent", True)):
        direct = Loop("direct", dependent)
        found.append(_figure(f"{chain}/direct", "a direct call of a function of one instruction", runs, direct,
                             Loop("", dependent)))  # fmt: skip
        for count in EDITIONS:
            # The policy path is a promise for independent calls.
            target = MOST_OVER_DIRECT if count <= 2 and not dependent else None
            for which in ("first", "last")[: 1 + (count > 1)]:
                words = f"redirected, {count} edition{'s'[: count > 1]}, the {which} one runs: over a direct call"
                found.append(_figure(f"{chain}/{which}-of-{count}", words, runs, Loop(f"{which}{count}", dependent),
                                     direct, target))  # fmt: skip
        words = "redirected, no ftrace site, so registers and flags are saved: over a direct call"
        found.append(_figure(f"{chain}/saving", words, runs, Loop("saving", dependent), direct))
        for peer, words in PEER_WORDS.items():
            if (loop := Loop(peer, dependent)) in runs[0].ticks:
                found.append(_figure(f"{chain}/{peer}", f"{words}: over a direct call", runs, loop, direct))
        for which, edition in (("first-of-1", "first1"), ("last-of-2", "last2")):
            for peer in ("registers", "arguments"):
                if (other := Loop(peer, dependent)) in runs[0].ticks:
                    target = MOST_OF_FTRACE if peer == "registers" and not dependent else None
                    words = f"{which}, in parts of what the handler that saves {peer} costs"
                    found.append(_ratio(f"{chain}/{which}-of-{peer}", words, runs, Loop(edition, dependent), other,
                                        direct, target))  # fmt: skip
    for pool in sorted({loop.pool for loop in runs[0].ticks if loop.pool}):
        words = f"each call of another of {pool} processes" if pool > 1 else "all calls of one process"
        for subject, more in (("alike", "all with edition 2"), ("mixed2", "whose editions are 1 or 2 at random"),
                              ("mixed16", "whose editions are 1 to 16 at random")):  # fmt: skip
            if pool > 1 or subject == "alike":
                found.append(_figure(f"processes/{pool}/{subject}", f"{words}, {more}: over a direct call", runs,
                                     Loop(subject, pool=pool), Loop("direct", pool=pool)))  # fmt: skip
    empty, paper, moved = (Loop(name, paper=True) for name in ("", "paper", "paper_moved"))
    found.append(_figure("paper/direct", "the paper's subject, string comparison and floating point: a direct call",
                         runs, paper, empty))  # fmt: skip
    found.append(_figure("paper/redirected", "the same redirected: over a direct call (the paper: 20 ns)", runs, moved,
                         paper, PAPER))  # fmt: skip
    return found
