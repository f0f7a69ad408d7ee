"""The lab: throw-away guests of a stock Debian kernel, for tests, the demo, and trying an update out."""

from dynamos_ng.lab.command import add_arguments, main
from dynamos_ng.lab.machine import Result, check_file, out_folder, run, shell

__all__ = ["Result", "add_arguments", "check_file", "main", "out_folder", "run", "shell"]
