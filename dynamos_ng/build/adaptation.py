"""What an update's module file carries of its adaptation handlers: a section that the kernel's loader passes over.

It holds the BPF sources as text, for they are compiled where they are loaded; which function each program adapts, by
its address; and the constants that the update's C sources give (kmod/update/dynamos_update.h).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from elftools.common.exceptions import ELFError
from elftools.elf.elffile import ELFFile

from dynamos_ng.build.description import Handler
from dynamos_ng.errors import UsageError
from dynamos_ng.rewrite.objects import Object
from dynamos_ng.rewrite.writer import data

#: modpost wonders at other sections that are not to be loaded.
SECTION = ".comment.dynamos"
_CONSTANT = "dynamos_constant_"


@dataclass(frozen=True)
class Carried:
    """Handlers by the address of their function, the texts of their files, and constants for these."""

    handlers: Mapping[int, Handler] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, int] = field(default_factory=dict)


def constants(objects: Iterable[Object]) -> dict[str, int]:
    """Return the constants that compiled C sources define."""
    return {
        name.removeprefix(_CONSTANT): value for item in objects for name, value in item.constants(_CONSTANT).items()
    }


def text(carried: Carried) -> list[str]:
    """Return assembler text of the section; [] if there are no handlers."""
    if not carried.handlers:
        return []
    value = {
        "handlers": [[address, one.file, one.program] for address, one in carried.handlers.items()],
        "sources": dict(carried.sources),
        "constants": dict(carried.constants),
    }
    return [f'\t.section {SECTION},"",@progbits', data(json.dumps(value).encode())]


def read(module: Path) -> Carried:
    """Return what a module file carries; UsageError if it is no such file."""
    try:
        with module.open("rb") as file:
            section = ELFFile(file).get_section_by_name(SECTION)
            raw = section.data() if section else b""
        if not raw:
            return Carried()
        value = json.loads(raw)
        handlers = {int(address): Handler(file, program) for address, file, program in value["handlers"]}
        return Carried(handlers, value["sources"], value["constants"])
    except (OSError, ELFError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{module}: its adaptation handlers cannot be read: {error}: build it again") from None
