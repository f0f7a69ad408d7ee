"""Examples keep step with what they change, where that is in this tree."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
SELF_TIMING = ROOT / "dynamos_ng" / "examples" / "self-timing" / "self_timing.c"


def declaration(text: str, function: str) -> str:
    """Return a function's declaration on one line, without its name."""
    found = re.search(rf"^(\w[\w ]*[ *]){function}(\([^)]*\));", text, re.MULTILINE)
    assert found, f"{function} is not declared"
    return " ".join((found[1] + found[2]).split())


def test_self_timing_has_the_installers_own_signature() -> None:
    original = declaration((ROOT / "kmod" / "dynamos.h").read_text(), "text_write_all")
    source = SELF_TIMING.read_text()
    assert declaration(source, "text_write_all_v1") == original
    assert declaration(source, "text_write_all_v2") == original
