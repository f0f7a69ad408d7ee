"""``dynamos bench``: the benchmarks, which come with the source and not with an installed package."""

from __future__ import annotations

import importlib
import sys

from dynamos_ng.errors import UsageError
from dynamos_ng.setup import CHECKOUT


def run(words: list[str]) -> int:
    """Do what WORDS say (bench/command.py parses them); returns 0 if every target is met."""
    if not (CHECKOUT / "bench").is_dir():
        raise UsageError(f"{CHECKOUT / 'bench'}: not there; the benchmarks come with the source")
    if str(CHECKOUT) not in sys.path:
        sys.path.insert(0, str(CHECKOUT))
    return int(importlib.import_module("bench.command").main(words))
