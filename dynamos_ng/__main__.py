"""python3 -m dynamos_ng: the command line, and what a fresh machine can start with: demo and test.

Until what is missing has been installed there is nothing but the standard library.
"""

import sys


def main(argv):  # type: ignore[no-untyped-def]
    """Do one command; returns the exit status."""
    if argv[:1] == ["lab"]:
        from dynamos_ng.lab import command

        return command.run(argv[1:])
    from dynamos_ng import cli

    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
