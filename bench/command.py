"""``dynamos bench``: runs benchmarks by name or all of them, shows them and keeps their reports; compares two."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from bench import calls, compare, footprint, install, native, picture, policy, survey, update
from bench.report import Report, read
from dynamos_ng.cli.tables import pyplot
from dynamos_ng.errors import DynamosError, UsageError
from dynamos_ng.lab import root

RESULTS = Path(__file__).parent / "results"
COMPARE = "compare"


class Script(Protocol):
    """A benchmark."""

    NAME: str
    CLAIM: str

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Give a parser the options of this benchmark."""

    def run(self, options: argparse.Namespace, /) -> list[Report]:
        """Measure."""


SCRIPTS: tuple[Script, ...] = (native, calls, install, update, policy, footprint, survey)


def parser(scripts: Sequence[Script]) -> argparse.ArgumentParser:
    """Return a parser with the options of SCRIPTS."""
    listed = "\n".join(f"  {script.NAME:<10} {script.CLAIM}" for script in SCRIPTS)
    top = argparse.ArgumentParser(
        "dynamos bench", formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="dynamos bench [NAME ...] [options]\n       dynamos bench compare A.json B.json",
        description="Measure what is claimed: all benchmarks, or those named; their options come after the names.\n"
        f"\n{listed}",
        epilog="exit status: 0 every target is met; 1 one is missed, or the machine was too noisy to tell, or a\n"
        "benchmark could not run; with compare, 1 if a target is missed that was met before",
    )  # fmt: skip
    top.add_argument("names", nargs="*", metavar="NAME", help=argparse.SUPPRESS)
    top.add_argument("--output", type=Path, metavar="DIR",
                     help=f"where the reports go (default: {RESULTS}; with --quick, nowhere)")  # fmt: skip
    top.add_argument("--quick", action="store_true", help="measure little: to see that it works, not for figures")
    top.add_argument("--kernel", choices=list(root.KERNELS), action="append", metavar="K",
                     help=f"only for this kernel, where kernels are measured: {', '.join(root.KERNELS)}")  # fmt: skip
    top.add_argument("--png", action="store_true", help="draw a picture beside each report too (needs matplotlib)")
    for script in scripts:
        script.add_arguments(top.add_argument_group(script.NAME))  # type: ignore[arg-type]
    return top


def chosen(argv: Sequence[str]) -> list[Script]:
    """Return the benchmarks that the leading words of ARGV name, all if there are none."""
    by_name = {script.NAME: script for script in SCRIPTS}
    names = []
    for word in argv:
        if word.startswith("-"):
            break
        names.append(word)
    if unknown := [name for name in names if name not in by_name]:
        raise UsageError(f"bench: {unknown[0]}: no such benchmark; there are {', '.join(by_name)} and {COMPARE}")
    return [by_name[name] for name in names] or list(SCRIPTS)


def main(argv: Sequence[str]) -> int:
    """Do it; see the parser's epilog for what is returned."""
    if argv[:1] == [COMPARE]:
        return compared(argv[1:])
    scripts = chosen(argv)
    options = parser(scripts).parse_args(argv)
    if options.names and [script.NAME for script in scripts] != options.names:
        raise UsageError(f"bench: {options.names[-1]}: the names of benchmarks come first, and options after them")
    folder = options.output or (None if options.quick else RESULTS)
    if options.png and folder is None:
        raise UsageError("bench: --png draws beside the report: say where with --output")
    if options.png:
        pyplot()  # what it needs may not be installed: not after hours
    status = 0
    for script in scripts:
        try:
            reports = script.run(options)
        except DynamosError as error:
            if len(scripts) == 1:
                raise
            print(f"dynamos: bench {script.NAME}: {error}", file=sys.stderr)
            status = 1
            continue
        for report in reports:
            picture.show(report)
            if folder is not None:
                kept = report.write(folder)
                print(f"  {kept}\n")
                if options.png:
                    picture.png(report, kept.with_suffix(".png"))
            status |= bool(report.missed) or not report.noise.quiet
    return int(status)


def compared(argv: Sequence[str]) -> int:
    """Compare two reports; returns 1 if a target is missed that was met before."""
    files = argparse.ArgumentParser("dynamos bench compare", description="Two reports of one benchmark side by side.")
    files.add_argument("before", type=Path, metavar="A.json")
    files.add_argument("after", type=Path, metavar="B.json")
    options = files.parse_args(argv)
    before, after = read(options.before), read(options.after)
    compare.show(before, after)
    return int(bool(compare.lost(before, after)))
