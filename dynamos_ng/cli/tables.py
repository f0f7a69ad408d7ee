"""Results as tables that fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dynamos_ng.errors import GuestDied, GuestTimeout, MissingTool

if TYPE_CHECKING:
    from dynamos_ng.lab.matrix import Row

WORDS = {
    "loaded": "[disabled]", "enabling": "[enabling...]", "redirected": "[enabled]", "draining": "[disabling...]",
}  # fmt: skip
COLOURS = {"loaded": "", "enabling": "yellow", "redirected": "green", "draining": "yellow"}

console = Console(highlight=False, markup=False)  # names are anybody's, and may hold brackets


def plain_table(*columns: str, title: str = "") -> Table:
    """Return an empty table; columns whose name begins with # hold numbers."""
    table = Table(title=title or None, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        number = column.startswith("#")
        table.add_column(column.lstrip("#"), justify="right" if number else "left", overflow="fold")
    return table


def bar(value: float, most: float, width: int) -> str:
    """Return a bar that is WIDTH wide for MOST, in eighths of a character."""
    eighths = max(0, round(8 * width * value / most)) if most > 0 else 0
    return "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")


def pyplot() -> Any:
    """Return what draws; MissingTool if it is not installed."""
    try:
        import matplotlib
    except ModuleNotFoundError:
        raise MissingTool("--png needs matplotlib: apt install python3-matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot as found

    return found


def state(word: str) -> Text:
    """Return a state as kpatch's users know it."""
    return Text(WORDS[word], style=COLOURS[word])


def _in_flight(use: dict[str, Any]) -> int:
    return int(use["entered"]) - int(use["exited"])


def matrix(rows: Iterable[Row]) -> None:
    """Show how a command ended on each kernel."""
    words = {GuestTimeout.exit_code: "timeout", GuestDied.exit_code: "guest died"}
    table = plain_table("kernel", "release", "cpu", "status", "#seconds")
    for row in rows:
        word = words.get(row.status, "") if row.error else ""
        said = Text(f"{row.status} {word}".strip(), style="red" if row.status else "green")
        table.add_row(row.kernel, row.release, row.cpu, said, f"{row.seconds:.1f}")
    console.print(table)


def loaded(update: dict[str, Any]) -> None:
    """Show what a load brought."""
    names = ", ".join(part["name"] for part in (*update["functions"], *update["variables"])) or "hooks alone"
    console.print(f"loaded {update['name']}: {names}", markup=False)
    for name, reason in update["unwatched"]:
        console.print(f"  probes do not count {name}: {reason}", markup=False)


def waiting(update: dict[str, Any]) -> None:
    """Show an update that waits for its modules, or what it did where they were there already."""
    if "modules" not in update:
        return change(update)
    console.print(f"{update['name']}: [pending], waits for module {', '.join(update['modules'])}", markup=False)
    if update["failure"]:
        console.print(f"  when it was loaded last: {update['failure']}", markup=False)
    return None


def status(snapshot: dict[str, Any]) -> None:
    """Show updates, functions, editions and their use."""
    console.print(f"probes: {snapshot['engine']}")
    for update in snapshot["pending"]:
        waiting(update)
    for update in snapshot["enabled"]:
        told = f"not active: {update['trouble']}" if update["trouble"] else update["folder"]
        console.print(f"{update['name']}: [enabled at boot], {told}", markup=False)
    if not snapshot["updates"]:
        console.print("no update is loaded")
        return
    for update in snapshot["updates"]:
        word = state("enabling" if _gets_on(update["phase"]) else update["state"])
        console.print(Text(f"{update['name']} ", style="bold") + word)
        table = plain_table("  function", "", "#entered", "#exited", "#in flight", "classes")
        for status in update["functions"]:
            function = status["function"]
            name = f"  {function['module']}:{function['name']}" if function["module"] else f"  {function['name']}"
            chosen = _classes_by_edition(bytes.fromhex(status["row"]))
            for use in status["uses"]:
                number = use["number"]
                table.add_row(
                    name, f"v{number}", str(use["entered"]), str(use["exited"]),
                    str(_in_flight(use)), chosen.get(number, "-"),
                )  # fmt: skip
                name = ""
        if update["functions"]:
            console.print(table)
        if update["phase"]["phased"] or update["phase"]["consistent"]:
            phase(update["name"], update["phase"])
        if update["confirmation"]:
            console.print(f"  {_confirmation(update['name'], update['confirmation'])}", markup=False)
        for variable in update["variables"]:
            console.print(f"  {_variable(variable)}", markup=False)
        if update["shadows"]:
            console.print(f"  {update['shadows']} objects have shadow data", markup=False)
        for status in update["functions"]:
            for note in status["notes"]:
                console.print(f"{status['function']['name']}: {note}", markup=False)


def _confirmation(name: str, value: dict[str, Any]) -> str:
    if value["state"] == "waiting":
        return f"is taken back by itself in {value['left']} s, unless it is confirmed: dynamos confirm {name}"
    if value["state"] == "reverted":
        return "was not confirmed in time: it was taken back by itself"
    why = f"; not yet: {value['reason']}" if value["reason"] else ""
    return f"was not confirmed in time: it is being taken back{why}"


def _variable(variable: dict[str, Any]) -> str:
    """Return a variable's value, and the one that the update has for it where that is another."""
    now, value = (int.from_bytes(bytes.fromhex(variable[key]), "little") for key in ("now", "value"))
    return f"variable {variable['name']} is {now}" + ("" if now == value else f", the update's value is {value}")


def _gets_on(value: dict[str, Any]) -> bool:
    """Tell whether tasks are still to leave what was before an activation."""
    return bool(value["phase"] == 1 or value["pinned"])


def phase(name: str, value: dict[str, Any]) -> None:
    """Show where an update stands that gets on by itself."""
    if value["phased"]:
        words = {
            0: "not active",
            1: "phase 1: tasks may still be in originals or first editions",
            2: "phase 2: nobody is in an original or a first edition",
            3: "phase 3: new calls run the new editions",
        }[value["phase"]]
        if value["must_update"] and value["phase"] in (1, 2):
            words += "; phase 3 is wanted"
        if task := value["delayed"]:
            words += f"; TID {task['pid']} ({task['comm']}) is, at {task['address']}"
    elif value["consistent"]:
        words = f"consistent group; {value['pinned']} tasks keep to v1 until they leave the originals"
    else:
        words = "neither a synchronised update nor a consistent group"
    console.print(f"{name}: {words}", markup=False)


def _classes_by_edition(row: bytes) -> dict[int, str]:
    """Return, for each edition of a row, its classes as a text like ``0,2-255``."""
    chosen: dict[int, list[int]] = {}
    for policy_class, edition in enumerate(row):
        chosen.setdefault(edition or 1, []).append(policy_class)
    return {edition: _spans(classes) for edition, classes in chosen.items()}


def _spans(numbers: Sequence[int]) -> str:
    """Return ascending numbers as spans; `all` for every class."""
    if len(numbers) == 256:
        return "all"
    spans = []
    for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0]):
        span = [number for _, number in run]
        spans.append(str(span[0]) if len(span) == 1 else f"{span[0]}-{span[-1]}")
    return ",".join(spans)


def change(result: dict[str, Any]) -> None:
    """Show what a change did, measured before and after."""
    word = WORDS[result["state"]] if result["verb"] != "unload" else "[unloaded]"
    stop = int(result["stop_ns"])
    line = f"{result['verb']} {result['update']}: {word}"
    console.print(line + (f", {stop / 1000:.0f} µs in the stop" if stop else ""), markup=False)
    measured(result)


def measured(result: dict[str, Any]) -> None:
    """Show what was measured before and after a change, and what is to be known of it."""
    measures = [("before", value) for value in result["before"]] + [("after", value) for value in result["after"]]
    table = _measures()
    for when, value in measures:
        _quiescence_rows(table, when, value)
    if measures:
        console.print(table)
    for note in result["notes"]:
        console.print(note, markup=False)


def changes(results: Iterable[dict[str, Any]]) -> None:
    """Show several changes."""
    for result in results:
        change(result)


def _measures() -> Table:
    """Return an empty table for `_quiescence_rows`."""
    return plain_table("", "function", "edition", "#entered", "#exited", "#in flight", "#stacks")


def _quiescence_rows(table: Table, when: str, value: dict[str, Any]) -> None:
    """Add one function's rows: the original as probes counted it, then each edition by its use counters."""
    holders = value["walk"]["holders"]
    probes = value["probes"]
    counted = ["-", "-", "-"]
    if probes:
        missed = f"{probes['missed']} missed" if probes["missed"] else "-"
        counted = [str(probes["entries"]), str(probes["exits"]), missed]
    sleeping = sum(1 for holder in holders if holder["edition"] == 0)
    table.add_row(when, value["function"], "original, BPF", *counted, str(sleeping))
    for use in value["uses"]:
        inside = sum(1 for holder in holders if holder["edition"] == use["number"])
        table.add_row(
            "", "", f"v{use['number']}", str(use["entered"]), str(use["exited"]),
            str(_in_flight(use)), str(inside),
        )  # fmt: skip


#: A kernel's schedule has hundreds of sleepers; a screen has room for these.
HOLDERS_SHOWN = 12


def quiescence(values: Iterable[dict[str, Any]]) -> None:
    """Show what counters, probes and stacks say of functions, and who is inside."""
    for value in values:
        table = _measures()
        _quiescence_rows(table, "", value)
        console.print(table)
        walk = value["walk"]
        busy = walk["found"] or any(_in_flight(use) for use in value["uses"])
        verdict = Text("in use", style="yellow") if busy else Text("quiescent", style="green")
        console.print(
            Text(f"{value['function']}: ") + verdict
            + Text(f"; {walk['tasks']} stacks read, {int(walk['stop_ns']) / 1000:.0f} µs in the stop")
        )  # fmt: skip
        if value["samples"] is not None:
            console.print(f"sampled stacks with a frame inside: {value['samples']}")
        holders_table(walk["holders"])


def holders_table(holders: Sequence[dict[str, Any]]) -> None:
    """Show the tasks that are inside, with the innermost frames of their stacks."""
    if not holders:
        return
    table = plain_table("#TID", "comm", "inside", "sleeps in")
    for holder in holders[:HOLDERS_SHOWN]:
        edition = f"v{holder['edition']}" if holder["edition"] else "original"
        frames = [frame.split("+")[0] for frame in holder["stack"][:3]]
        table.add_row(str(holder["pid"]), holder["comm"], edition, " < ".join(frames))
    console.print(table)
    if len(holders) > HOLDERS_SHOWN:
        console.print(f"and {len(holders) - HOLDERS_SHOWN} more; --json has them all")


def policy(value: dict[str, Any]) -> None:
    """Show classes by process and by program, and editions by class."""
    table = plain_table("who", "#class", title="classes")
    for pid, policy_class, name in value["processes"]:
        table.add_row(f"PID {pid} ({name})", str(policy_class))
    for comm, policy_class in value["rules"]:
        table.add_row(f"exec of {comm}", str(policy_class))
    table.add_row("every other process", "0")
    console.print(table)
    editions(value["rows"])


def editions(rows: Sequence[Sequence[str]]) -> None:
    """Show the edition of each class, by function."""
    if rows:
        table = plain_table("function", "edition", "classes", title="editions")
        for name, row in rows:
            chosen = sorted(_classes_by_edition(bytes.fromhex(row)).items())
            for index, (edition, classes) in enumerate(chosen):
                table.add_row("" if index else name, f"v{edition}", classes)
        console.print(table)
