"""``dynamos lab``: a command, a shell, or a mass redirect in a throw-away guest; or a command in many."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from dynamos_ng import uapi
from dynamos_ng.errors import DynamosError, UsageError
from dynamos_ng.lab import machine, mass, matrix, root, saved, variants


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the lab's verbs; `main` takes what it parses."""
    parser.set_defaults(run=main)
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    one = verbs.add_parser("run", help="boot a guest, run a command in it as root, and exit with its status")
    one.set_defaults(lab="run")
    two = verbs.add_parser("shell", help="boot a guest with a shell on this terminal")
    two.set_defaults(lab="shell")
    three = verbs.add_parser(
        "mass", help="redirect many functions at once under load, and name the culprit of a failure"
    )
    three.add_argument("--seed", type=int, help="what the choice of functions begins with (default: random, and told)")
    three.add_argument("--functions", type=int, default=300, metavar="N", help="how many functions (300)")
    three.add_argument("--seconds", type=float, default=20.0, metavar="S", help="how long they stay redirected (20)")
    group = three.add_mutually_exclusive_group()
    group.add_argument("--only", type=Path, metavar="FILE", help="take the functions that FILE names, one a line")
    group.add_argument("--update", type=Path, metavar="FOLDER", help="take an update's functions and newest editions")
    three.add_argument("--names", type=Path, metavar="FILE", help="write the chosen functions to FILE")
    three.add_argument("--bisect", action="store_true", help="when it fails, search for the functions that fail")
    three.set_defaults(lab="mass")
    four = verbs.add_parser("save-image", help="save a stock kernel as it runs, for survey")
    four.add_argument("folder", type=Path, metavar="DIR", help="a folder that is not there yet")
    four.set_defaults(lab="save-image")
    five = verbs.add_parser("matrix", help="run a command on every kernel; exit with 1 if it failed on one")
    five.add_argument("--kernel", choices=root.KERNELS, action="append", help="only on this one; may be repeated")
    five.add_argument("--processors", action="store_true",
                      help="on each processor that makes a kernel patch its own code differently")  # fmt: skip
    five.add_argument("--json", action="store_true", help="print JSON, with the output in it")
    five.set_defaults(lab="matrix")
    for verb in (one, five):
        verb.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for the command (600)")
        verb.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    for verb in (one, two, three, four):
        verb.add_argument("--kernel", choices=root.KERNELS, default=root.DEFAULT, help=f"({root.DEFAULT})")
    for verb in (one, two, three):
        verb.add_argument("--cpu", default="max", metavar="MODEL",
                          help=f"{', '.join(machine.PROCESSORS)}, or a model of QEMU's (max)")  # fmt: skip
    for verb in (one, two):
        verb.add_argument("--out", type=Path, metavar="DIR", help="share DIR as /out (default: a temporary folder)")
        verb.add_argument("--cpus", type=int, default=2, metavar="N", help="processors (2)")
        verb.add_argument("--memory", default="2G", metavar="SIZE", help="memory (2G)")
        verb.add_argument("--cmdline", default="nokaslr", help="more kernel arguments (nokaslr)")


def main(options: argparse.Namespace) -> int:
    """Do what was parsed; returns the command's own status. Raises DynamosError."""
    if options.lab == "mass":
        return _mass(options)
    if options.lab == "save-image":
        saved.save(options.folder, options.kernel)
        return 0
    if options.lab == "matrix":
        return _matrix(options)
    if options.out is not None and not options.out.is_dir():
        raise UsageError(f"{options.out}: not a folder")
    if options.lab == "shell":
        if not sys.stdin.isatty():
            raise UsageError("lab shell: needs a terminal; for a single command use lab run -- COMMAND")
        machine.shell(cpus=options.cpus, memory=options.memory, cmdline=options.cmdline, out_dir=options.out,
                      kernel=options.kernel, cpu=options.cpu)  # fmt: skip
        return 0
    result = machine.run(
        _command(options), timeout=options.timeout, cpus=options.cpus, memory=options.memory, cmdline=options.cmdline,
        out_dir=options.out, on_output=_show, kernel=options.kernel, cpu=options.cpu,
    )  # fmt: skip
    return result.status


def _command(options: argparse.Namespace) -> list[str]:
    command: list[str] = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise UsageError(f"lab {options.lab}: no command given")
    return command


def _matrix(options: argparse.Namespace) -> int:
    if not options.json:
        from dynamos_ng.cli import tables  # first, for the packages that it needs may not be here
    rows = matrix.run(
        _command(options), variants.variants(options.kernel or root.KERNELS, options.processors),
        timeout=options.timeout, say=(lambda _: None) if options.json else _show,
    )  # fmt: skip
    if options.json:
        print(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        tables.matrix(rows)
    return int(any(row.status for row in rows))


def _show(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _mass(options: argparse.Namespace) -> int:
    if not 1 <= options.functions <= uapi.FUNCTIONS_MAX:
        raise UsageError(f"lab mass: --functions: a number from 1 to {uapi.FUNCTIONS_MAX}")
    names: tuple[str, ...] = ()
    if options.only:
        names = mass.read_names(options.only)
    elif options.update:
        mass.check_update(options.update)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    plan = mass.Plan(seed, options.functions, options.seconds, names, options.update, options.kernel, options.cpu)
    print(mass.summary(mass.run(plan, options.bisect, _show, options.names)))
    return 0


def run(argv: Sequence[str]) -> int:
    """Parse and do; errors go to stderr as ``dynamos: …`` and become the exit status."""
    parser = argparse.ArgumentParser("dynamos lab", description=__doc__)
    add_arguments(parser)
    try:
        return main(parser.parse_args(argv))
    except DynamosError as error:
        print(f"dynamos: {error}", file=sys.stderr)
        return error.exit_code
