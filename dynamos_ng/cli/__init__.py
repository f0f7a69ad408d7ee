"""dynamos: the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from dynamos_ng import __version__, control
from dynamos_ng.cli import arguments
from dynamos_ng.cli.output import show
from dynamos_ng.errors import DynamosError, UsageError
from dynamos_ng.printable import clean

EXITS = """\
exit status:
  0    done
  1    refused or failed; nothing was changed (unload --all: after what it printed)
  2    wrong usage
  3    no daemon answers
  4    not allowed; the message says who may
  124  lab: the command did not end in time
  125  lab: the guest died
  130  interrupted
lab run otherwise ends with the command's own status."""


def _tables() -> ModuleType:
    """Return the module that prints tables: what --json prints goes without."""
    from dynamos_ng.cli import tables

    return tables


def _build(options: argparse.Namespace) -> int:
    from dynamos_ng.build.update import build

    module = build(options.folder, options.output or Path.cwd())
    return show(options, {"module": str(module)}, lambda result: print(result["module"]))


def _load(options: argparse.Namespace) -> int:
    path: Path = options.update
    if options.when_module:
        if options.output or options.no_probes:
            raise UsageError("load --when-module: the daemon builds and watches it: leave out --output and --no-probes")
        result = control.call(
            "load_when_module", folder=str(path.resolve()), edition=options.edition, classes=options.policy_class
        )
        return show(options, result, lambda value: _tables().waiting(value))
    if options.edition or options.policy_class:
        raise UsageError("load: --edition and --class belong to --when-module; else they are for 'dynamos activate'")
    if path.is_dir():
        from dynamos_ng.build.update import build

        path = build(path, options.output or Path.cwd())
    elif not path.exists() and not path.suffix:
        path = path.with_name(path.name.replace("-", "_") + ".ko")
    if not path.exists():
        raise UsageError(f"{options.update}: neither a module file nor an update's folder")
    result = control.call("load", path=str(path.resolve()), watch=not options.no_probes)
    return show(options, result, lambda value: _tables().loaded(value))


def _unload(options: argparse.Namespace) -> int:
    if options.all == bool(options.update):
        raise UsageError("unload: give one update's name, or --all")
    names = [options.update]
    if options.all:
        status = control.call("status")
        names = [update["name"] for update in (*status["pending"], *status["updates"])]
    wait = None if options.wait else options.timeout
    results: list[Any] = []
    try:
        for name in names:
            results.append(control.call("unload", name=name, wait=wait, nudge=options.nudge))
    finally:
        if results or not names:
            show(options, results, lambda value: _tables().changes(value))
    return 0


def _activate(options: argparse.Namespace) -> int:
    result = control.call(
        "activate", name=options.update, edition=options.edition, classes=options.policy_class,
        confirm_within=options.confirm_within,
    )  # fmt: skip
    return show(options, result, lambda value: _tables().change(value))


def _confirm(options: argparse.Namespace) -> int:
    control.call("confirm", name=options.update)
    result = {"confirmed": options.update}
    return show(options, result, lambda _: print(f"confirmed {options.update}: it stays"))


def _enable(options: argparse.Namespace) -> int:
    result = control.call(
        "enable", folder=str(options.folder.resolve()), edition=options.edition, classes=options.policy_class
    )
    said = "takes effect whenever dynamosd starts; for now it is as it was: dynamos load, dynamos activate"
    return show(options, result, lambda value: print(f"{value['name']}: [enabled at boot], {said}"))


def _disable(options: argparse.Namespace) -> int:
    result = control.call("disable", name=options.update)
    said = "no longer takes effect when dynamosd starts; for now it is as it was: dynamos unload"
    return show(options, result, lambda value: print(f"{value['name']}: {said}"))


def _deactivate(options: argparse.Namespace) -> int:
    wait = None if options.wait else options.timeout
    result = control.call("deactivate", name=options.update, wait=wait, nudge=options.nudge)
    return show(options, result, lambda value: _tables().change(value))


def _phase(options: argparse.Namespace) -> int:
    result = control.call("phase", name=options.update, move=options.move or "")
    return show(options, result, lambda value: _tables().phase(options.update, value))


def _status(options: argparse.Namespace) -> int:
    return show(options, control.call("status"), lambda value: _tables().status(value))


def _quiescence(options: argparse.Namespace) -> int:
    result = control.call("quiescence", function=options.function, seconds=options.seconds)
    return show(options, result, lambda value: _tables().quiescence([value]))


def _policy(parser: argparse.ArgumentParser) -> None:
    from dynamos_ng.cli import policy

    policy.add_verbs(parser)


def _completion(one: argparse.ArgumentParser) -> None:
    def run(_: argparse.Namespace) -> int:
        from dynamos_ng.cli import completion

        print(completion.script(parser()), end="")
        return 0

    one.set_defaults(run=run)


def _schema(parser: argparse.ArgumentParser) -> None:
    from dynamos_ng.cli import schema

    schema.add_arguments(parser)


def _top(parser: argparse.ArgumentParser) -> None:
    from dynamos_ng.cli import top

    top.add_arguments(parser)


def _ab(parser: argparse.ArgumentParser) -> None:
    from dynamos_ng.cli import ab

    ab.add_arguments(parser)


def _history(parser: argparse.ArgumentParser) -> None:
    from dynamos_ng.cli import history

    history.add_arguments(parser)


def _doctor(parser: argparse.ArgumentParser) -> None:
    from dynamos_ng.cli import doctor

    doctor.add_arguments(parser)


def _survey(parser: argparse.ArgumentParser) -> None:
    from dynamos_ng.cli import survey

    survey.add_arguments(parser)


def _lab(parser: argparse.ArgumentParser) -> None:
    from dynamos_ng import lab

    lab.add_arguments(parser)


#: Verbs that have a module of their own, which is imported only for them: the others start the quicker.
APART: tuple[tuple[str, Callable[[argparse.ArgumentParser], None], str], ...] = (
    ("policy", _policy, "which process gets which edition"),
    ("completion", _completion, "print completion for bash: source <(dynamos completion)"),
    ("schema", _schema, "print the JSON Schema of what a verb prints with --json"),
    ("top", _top, "watch updates, editions and calls; h tells the keys"),
    ("ab", _ab, "time the calls of a function's editions side by side, and tell what differs"),
    ("history", _history, "what was changed, when, by whom, and how it ended"),
    ("doctor", _doctor, "what works on this kernel, what does not, and why; changes nothing"),
    ("survey", _survey, "which functions of a kernel can be cloned, and why not the others"),
    ("lab", _lab, "try things out in a throw-away guest of a stock kernel"),
)


def _waiting(one: argparse.ArgumentParser) -> None:
    """Let it be said how long to wait for those who are inside, and whether to wake them."""
    one.add_argument("--wait", action="store_true", help="keep trying until it succeeds")
    one.add_argument("--timeout", type=float, default=5.0, metavar="S", help="give up after S seconds (5)")
    one.add_argument("--nudge", action="store_true",
                     help="have those who sleep inside begin their system call anew, as a signal without handler "
                          "would; kernel threads and uninterruptible sleeps are left alone")  # fmt: skip


def _add_choice(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options that say who gets which edition."""
    parser.add_argument("--edition", type=int, metavar="N",
                        help="which edition (default: what the policy in force says, else the newest; v1 where a BPF "
                             "program chooses)")  # fmt: skip
    parser.add_argument("--class", dest="policy_class", type=arguments.policy_class, action="append", metavar="C",
                        help="only for processes of this policy class, 0 to 254, or for calls made in 'interrupts'; "
                             "may be repeated")  # fmt: skip


def parser(asked: str = "") -> argparse.ArgumentParser:
    """Return the parser of the command line; if one verb is ASKED for, of those in APART no other has arguments."""
    top = argparse.ArgumentParser(
        "dynamos",
        description="Change running kernel functions, one edition per process.",
        epilog=EXITS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=__version__)
    verbs = top.add_subparsers(metavar="VERB", required=True)

    def verb(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        one: argparse.ArgumentParser = verbs.add_parser(name, help=text, description=text)
        one.set_defaults(run=run)
        one.add_argument("--json", action="store_true", help="print JSON")
        return one

    one = verb("build", _build, "compile an update's folder against the running kernel")
    one.add_argument("folder", type=Path)
    one.add_argument("--output", type=Path, metavar="DIR", help="where the module goes (default: here)")

    one = verb("load", _load, "load an update; nothing is redirected yet")
    one.add_argument("update", type=Path, help="a module file, or an update's folder, which is built first")
    one.add_argument("--output", type=Path, metavar="DIR", help="where a built module goes (default: here)")
    one.add_argument("--no-probes", action="store_true", help="do not count the originals' calls with probes")
    one.add_argument("--when-module", action="store_true",
                     help="build, load and activate it as soon as the modules that it names are loaded")  # fmt: skip
    _add_choice(one)

    one = verb("unload", _unload, "take an update back: deactivate, wait for quiescence, free its code")
    one.add_argument("update", nargs="?")
    one.add_argument("--all", action="store_true", help="every update that is loaded or waits for a module")
    _waiting(one)

    one = verb("activate", _activate, "redirect all functions of an update in one stop")
    one.add_argument("update")
    _add_choice(one)
    one.add_argument("--confirm-within", type=arguments.time, default=0, metavar="TIME",
                     help="take it back by itself after TIME (60s, 5m, 2h) unless 'dynamos confirm' comes before; the "
                          "kernel module does so even if the daemon is killed")  # fmt: skip

    one = verb("confirm", _confirm, "let an update stay that was activated with --confirm-within")
    one.add_argument("update")

    one = verb("deactivate", _deactivate, "give an update's functions back to their originals")
    one.add_argument("update")
    _waiting(one)

    one = verb("enable", _enable, "build, load and activate an update whenever dynamosd starts")
    one.add_argument("folder", type=Path, help="an update's folder, which root alone can write to")
    _add_choice(one)

    one = verb("disable", _disable, "let an update take effect at boot no more")
    one.add_argument("update")

    one = verb("phase", _phase, "where a synchronised update or a consistent group stands")
    one.add_argument("update")
    move = one.add_mutually_exclusive_group()
    move.add_argument("--raise", dest="move", action="store_const", const="raise",
                      help="raise must_update: phase 3 follows on phase 2")  # fmt: skip
    move.add_argument("--back", dest="move", action="store_const", const="back", help="from phase 3 to phase 2")

    verb("status", _status, "show updates, functions, editions and their use")

    one = verb("quiescence", _quiescence, "who is inside a function: counters, probes, stacks")
    one.add_argument("function")
    one.add_argument("--seconds", type=float, default=1.0, help="how long to sample stacks (1)")

    for name, give_arguments, text in APART:
        one = verbs.add_parser(name, help=text, description=text)
        if asked in ("", name):
            give_arguments(one)
    verbs.add_parser("bench", help="measure what is claimed, and compare two measurements")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; errors go to stderr as ``dynamos: …`` and become the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if words[:1] == ["bench"]:
            from dynamos_ng.cli import bench

            return bench.run(words[1:])
        named = words[:1] and not words[0].startswith("-")
        options = parser(words[0] if named else "-").parse_args(words)
        if not getattr(options, "json", None):
            _tables()  # before anything is changed: what it needs may not be installed
        return int(options.run(options))
    except DynamosError as error:
        print("dynamos:", clean(str(error), "\n"), file=sys.stderr)
        return error.exit_code
    except PermissionError as error:
        print(f"dynamos: {error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
