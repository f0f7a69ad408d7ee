"""``dynamos lab``: run a command, or a shell, in a throw-away guest."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dynamos_ng.errors import DynamosError, UsageError
from dynamos_ng.lab import machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the verbs ``run`` and ``shell``; `main` takes what it parses."""
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    one = verbs.add_parser("run", help="boot a guest, run a command in it as root, and exit with its status")
    one.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds for the command (600)")
    one.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND")
    one.set_defaults(lab="run")
    two = verbs.add_parser("shell", help="boot a guest with a shell on this terminal")
    two.set_defaults(lab="shell")
    for verb in (one, two):
        verb.add_argument("--out", type=Path, metavar="DIR", help="share DIR as /out (default: a temporary folder)")
        verb.add_argument("--cpus", type=int, default=2, metavar="N", help="processors (2)")
        verb.add_argument("--memory", default="2G", metavar="SIZE", help="memory (2G)")
        verb.add_argument("--cmdline", default="nokaslr", help="more kernel arguments (nokaslr)")


def main(options: argparse.Namespace) -> int:
    """Do what was parsed; returns the command's own status. Raises DynamosError."""
    if options.out is not None and not options.out.is_dir():
        raise UsageError(f"{options.out}: not a folder")
    if options.lab == "shell":
        if not sys.stdin.isatty():
            raise UsageError("lab shell: needs a terminal; for a single command use lab run -- COMMAND")
        machine.shell(cpus=options.cpus, memory=options.memory, cmdline=options.cmdline, out_dir=options.out)
        return 0
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        raise UsageError("lab run: no command given")

    def show(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    result = machine.run(
        command, timeout=options.timeout, cpus=options.cpus, memory=options.memory, cmdline=options.cmdline,
        out_dir=options.out, on_output=show,
    )  # fmt: skip
    return result.status


def run(argv: Sequence[str]) -> int:
    """Parse and do; errors go to stderr as ``dynamos: …`` and become the exit status."""
    parser = argparse.ArgumentParser("dynamos lab", description=__doc__)
    add_arguments(parser)
    try:
        return main(parser.parse_args(argv))
    except DynamosError as error:
        print(f"dynamos: {error}", file=sys.stderr)
        return error.exit_code
