"""Where in a TOML text each table and key stands; tomllib does not tell.

The text must be one that tomllib has accepted: what it refuses is not looked for here.
"""

from __future__ import annotations

import re
import tomllib

#: Keys from the top, and the places of elements in arrays.
Place = tuple[str | int, ...]

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_BLANKS = re.compile(r"[ \t]*")
_KEY = re.compile(r"""[A-Za-z0-9_-]+|"(?:[^"\\\n]|\\.)*"|'[^'\n]*'""")
#: The longer quotes come first. A multi-line text may end in one or two quotes of its own.
_TEXT = re.compile(
    r'"""(?:[^\\]|\\.)*?"""(?:"{0,2}(?!"))|\'\'\'.*?\'\'\'(?:\'{0,2}(?!\'))|"(?:[^"\\\n]|\\.)*"|\'[^\'\n]*\'', re.DOTALL
)
_PLAIN = re.compile(r"[^,\]}\n#]*")


def lines(text: str) -> dict[Place, int]:
    """Return the line of each key and array element, counted from 1."""
    return _Scanner(text).places


class _Scanner:
    def __init__(self, text: str) -> None:
        self.places: dict[Place, int] = {(): 1}
        self._text = text.replace("\r\n", "\n")
        self._at = 0
        self._last: dict[Place, int] = {}  # of arrays of tables: the element that was begun last
        table: Place = ()
        while self._over(_SPACE) < len(self._text):
            if self._text.startswith("[[", self._at):
                table = self._element(2)
            elif self._text[self._at] == "[":
                table = self._element(1)
            else:
                self._pair(table)

    def _over(self, what: re.Pattern[str]) -> int:
        """Go over what is there, and return where that ends."""
        found = what.match(self._text, self._at)
        assert found is not None, (self._at, what.pattern)
        self._at = found.end()
        return self._at

    def _note(self, place: Place, at: int) -> None:
        self.places.setdefault(place, self._text.count("\n", 0, at) + 1)

    def _keys(self) -> list[str]:
        keys = []
        while True:
            start = self._over(_BLANKS)
            raw = self._text[start : self._over(_KEY)]
            keys.append(next(iter(tomllib.loads(f"{raw} = 0"))))
            self._over(_BLANKS)
            if not self._text.startswith(".", self._at):
                return keys
            self._at += 1

    def _element(self, brackets: int) -> Place:
        """Go over a table's header; two brackets begin another element of an array."""
        start = self._at
        self._at += brackets
        place: Place = ()
        keys = self._keys()
        for number, key in enumerate(keys, 1):
            place += (key,)
            self._note(place, start)
            if brackets == 2 and number == len(keys):
                self._last[place] = self._last.get(place, -1) + 1
            if place in self._last:
                place += (self._last[place],)
        self._note(place, start)
        self._at += brackets
        return place

    def _pair(self, table: Place) -> None:
        start = self._at
        place = table
        for key in self._keys():
            place += (key,)
            self._note(place, start)
        self._at += 1  # =
        self._over(_BLANKS)
        self._value(place)

    def _value(self, place: Place) -> None:
        first = self._text[self._at]
        if first in "\"'":
            self._over(_TEXT)
        elif first in "[{":
            self._at += 1
            number = 0
            while self._text[self._over(_SPACE)] not in "]}":
                if first == "[":
                    self._note((*place, number), self._at)
                    self._value((*place, number))
                    number += 1
                else:
                    self._pair(place)
                if self._text[self._over(_SPACE)] == ",":
                    self._at += 1
            self._at += 1
        else:
            self._over(_PLAIN)
