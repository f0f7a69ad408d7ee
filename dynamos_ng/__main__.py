"""python3 -m dynamos_ng: the command line, and what a fresh machine starts with: demo and test.

Until what is missing has been installed there is nothing but the standard library, and perhaps an old Python, so
this file has to be readable for one.
"""

from __future__ import annotations

import os
import sys

OLDEST = (3, 11)
HELP = """\
usage: python3 -m dynamos_ng demo [--yes] [--kernel K] [--json FILE]   show the main job in a guest
       python3 -m dynamos_ng test [--yes] [pytest's arguments]   run all tests
       python3 -m dynamos_ng VERB ...   the command line, the same as: dynamos VERB ...
"""


def test(argv: list[str]) -> int:
    """Run the tests; all arguments but --yes go to pytest. Returns pytest's status."""
    from dynamos_ng import setup
    from dynamos_ng.errors import UsageError

    tests = setup.CHECKOUT / "tests"
    if not tests.is_dir():
        raise UsageError(f"{tests}: not there; the tests come with the source, not with an installed package")
    setup.ensure(tests=True, yes="--yes" in argv, again=["test", *argv])
    arguments = [argument for argument in argv if argument != "--yes"]
    if not any(os.path.exists(argument.split("::")[0]) for argument in arguments):
        arguments.append(str(tests))
    settings = setup.CHECKOUT / "pyproject.toml"
    command = [sys.executable, "-m", "pytest", "-c", str(settings), f"--rootdir={setup.CHECKOUT}", *arguments]
    path = os.pathsep.join(filter(None, (str(setup.CHECKOUT), os.environ.get("PYTHONPATH"))))
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, "PYTHONPATH": path})


def demo(argv: list[str]) -> int:
    """Show the main job. Returns 0 only if every step was seen to work."""
    from dynamos_ng import setup

    if not {"-h", "--help"} & set(argv):
        setup.ensure(tests=False, yes="--yes" in argv, again=["demo", *argv])
    from dynamos_ng import demo as shown

    return shown.main(argv)


def command_line(argv: list[str]) -> int:
    """Do one of the other verbs, if the packages that they need are here; MissingTool names one that is not."""
    from dynamos_ng.errors import MissingTool

    try:
        if argv[0] == "lab":
            from dynamos_ng.lab import command

            return command.run(argv[1:])
        from dynamos_ng import cli

        return cli.main(argv)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "dynamos_ng"):
            raise
        if argv[0] == "doctor":
            from dynamos_ng import doctor

            return doctor.main("--json" in argv)
        if argv[0] in ("-h", "--help"):
            sys.stdout.write(HELP)
            return 0
        raise MissingTool(
            f"the Python package {package} is not installed: apt install python3-capstone python3-psutil "
            "python3-pyelftools python3-rich, or python3 -m pip install with the same names without python3-; "
            "demo and test fetch what they need by themselves"
        ) from None


def main(argv: list[str]) -> int:
    """Do one command; returns the exit status. Errors go to stderr as ``dynamos: …``."""
    if sys.version_info < OLDEST:
        found = ".".join(str(part) for part in sys.version_info[:2])
        wanted = ".".join(str(part) for part in OLDEST)
        sys.stderr.write(f"dynamos: this is Python {found}; Python {wanted} or newer is needed\n")
        return 1
    if not argv:
        sys.stderr.write(HELP)
        return 2
    from dynamos_ng.errors import DynamosError
    from dynamos_ng.printable import clean

    try:
        if argv[0] == "test":
            return test(argv[1:])
        if argv[0] == "demo":
            return demo(argv[1:])
        return command_line(argv)
    except DynamosError as error:
        sys.stderr.write("dynamos: " + clean(str(error), "\n") + "\n")
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except PermissionError as error:
        sys.stderr.write(f"dynamos: {error.filename}: {error.strerror}\n")
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
