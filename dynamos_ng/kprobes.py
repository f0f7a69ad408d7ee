"""Kprobe events in tracefs: defined, counted and taken away; what runs at them is attached by probes.py.

Definitions outlive the process that made them (what it attached does not, so they are then at rest). They carry
its PID in their names, and `sweep` takes away those of processes that are gone.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from pathlib import Path

from dynamos_ng.errors import MissingTool

GROUP = "dynamos"
LIST = Path("/sys/kernel/debug/kprobes/list")
#: The most instances of a kretprobe that the kernel takes (KRETPROBE_MAXACTIVE_MAX).
MAXACTIVE_MAX = 4096

#: Of an address in the kernel's list of probes.
_DIGITS = 2 * struct.calcsize("P")
_COMPLAINTS = {
    "Invalid probed address or symbol": errno.ENOENT,
    "The symbol is not unique": errno.EADDRNOTAVAIL,
}
_NAME = re.compile(rf":{GROUP}/(\w*?_(\d+)_\d+_\d+) ")


def tracefs() -> Path:
    """Return where tracefs is mounted."""
    for path in (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing")):
        if (path / "kprobe_events").exists():
            return path
    raise MissingTool("no kprobe events in tracefs: mount -t tracefs tracefs /sys/kernel/tracing")


def _command(text: str) -> None:
    # O_APPEND: without it the kernel takes all definitions away first, other people's too.
    fd = os.open(tracefs() / "kprobe_events", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        # Later kernels say EINVAL to whatever they do not like in a command, and what it was in a log.
        number = complaint((tracefs() / "error_log").read_text(), text)
        raise OSError(number, os.strerror(number)) from None
    finally:
        os.close(fd)


def complaint(log: str, command: str) -> int:
    """Return the errno for what tracefs' error_log says last of a command; EINVAL if it says nothing special."""
    said = re.findall(rf"error: (.*)\n *Command: {re.escape(command)}\n", log)
    return _COMPLAINTS.get(said[-1] if said else "", errno.EINVAL)


def define_entry(event: str, place: str) -> int:
    """Define an event at the entry of a function (symbol, MODULE:symbol or 0xADDRESS) and return its id."""
    return _define("p", event, place)


def define_return(event: str, place: str, maxactive: int) -> int:
    """Define an event at a function's returns; up to `maxactive` calls in progress are followed at one time."""
    return _define(f"r{maxactive}", event, place)


def _define(kind: str, event: str, place: str) -> int:
    _command(f"{kind}:{GROUP}/{event} {place}")
    return int((tracefs() / "events" / GROUP / event / "id").read_text())


def remove(event: str) -> None:
    """Take a definition away; nothing of ours may be attached to it any more.

    One that somebody else has enabled stays, and counts for him, until `sweep` finds it after our end.
    """
    try:
        _command(f"-:{GROUP}/{event}")
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EBUSY):
            raise


def sweep() -> None:
    """Take away the definitions of processes that are gone."""
    for line in (tracefs() / "kprobe_events").read_text().splitlines():
        match = _NAME.search(line)
        if match and not Path(f"/proc/{match[2]}").exists():
            remove(match[1])


def profile() -> dict[str, tuple[int, int]]:
    """Return (hits, missed) of each event by name, of all groups."""
    found = {}
    for line in (tracefs() / "kprobe_profile").read_text().splitlines():
        name, hits, missed = line.split()
        found[name] = int(hits), int(missed)
    return found


def uses_breakpoint(place: str) -> bool:
    """Return whether a defined probe would write a breakpoint, there being no ftrace site to use."""
    wanted = [f" {place}+0x"]
    if place.startswith("0x"):  # the kernel puts it behind an endbr
        wanted = [f"{int(place, 16) + passed:0{_DIGITS}x} " for passed in (0, 4)]
    try:
        lines = LIST.read_text().splitlines()
    except FileNotFoundError:
        raise MissingTool("no list of kprobes: mount -t debugfs debugfs /sys/kernel/debug") from None
    return any("[FTRACE]" not in line and any(one in line for one in wanted) for line in lines)


def written_over(listing: str) -> list[int]:
    """Return in order where probes have changed the kernel's code, from the text of kprobes/list."""
    elsewhere = ("[FTRACE]", "[DISABLED]", "[GONE]")  # at a site of ftrace's; and not in the code now
    lines = (line for line in listing.splitlines() if not any(word in line for word in elsewhere))
    return sorted(int(line.split()[0], 16) for line in lines)


def why(error: OSError) -> str:
    """Return in words why the kernel takes no probe at a place."""
    return {
        errno.ENOENT: "no such function in the kernel",
        errno.EADDRNOTAVAIL: "several functions have this name: give its address",
        errno.EINVAL: "the kernel allows no probes there: it is noinstr, or has no ftrace site",
        errno.EILSEQ: "no instruction begins at this address",
        errno.EBUSY: "another probe of the same name is in use",
    }.get(error.errno or 0, error.strerror or str(error))
