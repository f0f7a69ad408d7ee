"""Keys: what a terminal sends, by name."""

from __future__ import annotations

import re

_NAMED = {
    b"\x1b[A": "up", b"\x1b[B": "down", b"\x1b[C": "right", b"\x1b[D": "left", b"\x1bOA": "up", b"\x1bOB": "down",
    b"\x1bOC": "right", b"\x1bOD": "left", b"\x1b[5~": "page up", b"\x1b[6~": "page down", b"\x1b[H": "home",
    b"\x1b[F": "end", b"\x1b[1~": "home", b"\x1b[4~": "end", b"\x1bOH": "home", b"\x1bOF": "end", b"\r": "enter",
    b"\n": "enter", b"\x7f": "backspace", b"\x08": "backspace", b"\x1b": "escape", b"\x03": "q",
}  # fmt: skip
_SEQUENCE = re.compile(rb"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1bO[@-~]|[^\x1b]|\x1b", re.DOTALL)


def names(data: bytes) -> list[str]:
    """Return the keys that were pressed; unknown sequences and bytes that are no ASCII are passed over."""
    found = []
    for sequence in _SEQUENCE.findall(data):
        if sequence in _NAMED:
            found.append(_NAMED[sequence])
        elif len(sequence) == 1 and 0x20 <= sequence[0] < 0x7F:
            found.append(sequence.decode())
    return found
