"""``dynamos survey``: how many of a kernel's functions can be cloned, and why the others cannot."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from dynamos_ng import modules, survey
from dynamos_ng.cli import tables
from dynamos_ng.device import Device
from dynamos_ng.errors import UsageError
from dynamos_ng.image import Kernel, saved
from dynamos_ng.module_image import ModuleImage

SHOWN = 14


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Give a parser the options that `main` takes."""
    parser.set_defaults(run=main)
    parser.add_argument("--image", type=Path, metavar="FILE",
                        help="a saved kernel: a folder of `lab save-image`, a vmlinux, a vmlinuz or a copy of "
                        "/proc/kcore (default: the running kernel)")  # fmt: skip
    parser.add_argument("--kallsyms", type=Path, metavar="FILE", help="its /proc/kallsyms, saved by root")
    parser.add_argument("--blacklist", type=Path, metavar="FILE", help="its /sys/kernel/debug/kprobes/blacklist")
    parser.add_argument("--vmlinux", type=Path, metavar="FILE",
                        help="its vmlinux or vmlinuz, if its kallsyms lists no data symbols (i386)")  # fmt: skip
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE",
                        help="print all figures as JSON, or write them to FILE")  # fmt: skip
    parser.add_argument("--why", metavar="FUNCTION", help="tell all that is known of a function, or of MODULE:FUNCTION")


def main(options: argparse.Namespace) -> int:
    """Survey the kernel that was asked for; returns 0."""
    kernel = opened(options)
    if options.why:
        module, _, name = options.why.rpartition(":")
        _show(options, survey.why(_module(options, kernel, module) if module else kernel, name), _why)
        return 0
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("functions", total=None)
        done = survey.survey(kernel, lambda count, total: bar.update(task, completed=count, total=total))
    _show(options, done.report(), report)
    return 0


def _module(options: argparse.Namespace, kernel: Kernel, name: str) -> ModuleImage:
    """Return a module of the running kernel."""
    if options.image is not None:
        raise UsageError(f"survey: module {name}: a saved kernel has no modules")
    with Device() as device:
        return ModuleImage(kernel, device.module(name), modules.used_by(name))


def opened(options: argparse.Namespace) -> Kernel:
    """Return the kernel that the options name."""
    if options.image is None:
        if options.kallsyms or options.blacklist or options.vmlinux:
            raise UsageError("survey: --kallsyms, --blacklist and --vmlinux belong to --image")
        return Kernel.live()
    return saved(options.image, options.kallsyms, options.blacklist, options.vmlinux)


def _show(options: argparse.Namespace, value: dict[str, Any], render: Any) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    if options.json == "-":
        sys.stdout.write(text)
        return
    if options.json:
        try:
            Path(options.json).write_text(text)
        except OSError as error:
            raise UsageError(f"{options.json}: {error.strerror}") from None
    render(value)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else "-"


def report(value: dict[str, Any]) -> None:
    """Show a survey's report as tables."""
    total = value["functions"]
    kernel = f"{value['release']}, {value['architecture']}"
    table = tables.plain_table(kernel, "#functions", "#%", "#cloneable", "#% of them")
    rows = [("no branch out, no table, no split part", value["plain"])]
    rows += [(name, counts) for name, counts in value["traits"].items() if counts["count"]]
    for name, counts in rows:
        count, fine = counts["count"], counts["cloneable"]
        table.add_row(name, str(count), _share(count, total), str(fine), _share(fine, count))
    tables.console.print(table)
    if value["refused"]:
        table = tables.plain_table("refused", "#functions", "#%", "for example")
        for kind, entry in list(value["refused"].items())[:SHOWN]:
            example = entry["example"].split(":")[0]
            table.add_row(kind, str(entry["count"]), _share(entry["count"], total), example)
        tables.console.print(table)
        if len(value["refused"]) > SHOWN:
            tables.console.print(f"and {len(value['refused']) - SHOWN} more reasons; --json has them all")
    labels = ", ".join(f"{count} {name}" for name, count in value["labels"].items() if count)
    lines = [
        f"{value['symbols']} symbols - {value['aliases']} aliases - {sum(value['labels'].values())} labels "
        f"({labels}) = {total} functions",
        f"cloneable: {value['cloneable']} of {total} functions, {_share(value['cloneable'], total)} %; "
        f"{value['cloneable_traceable']} of {value['traceable']} traceable ones, "
        f"{_share(value['cloneable_traceable'], value['traceable'])} %",
        f"{value['seconds']:.1f} s, {value['peak_memory'] >> 20} MiB",
    ]
    for line in lines:
        tables.console.print(line, markup=False)


def _why(value: dict[str, Any]) -> None:
    table = tables.plain_table("", "")
    table.show_header = False
    for key, what in value.items():
        if key == "parts":
            texts = [f"{p['name']} at {p['address']}: {p['size']} bytes" for p in what]
        elif key == "tables":
            texts = [f"{count} {name}" for name, count in what.items() if count]
        elif isinstance(what, list):
            texts = what
        elif isinstance(what, bool):
            texts = ["yes" if what else "no"]
        else:
            texts = [] if what is None else [str(what)]
        if texts:
            table.add_row(key.replace("_", " "), "\n".join(texts))
    tables.console.print(table)
