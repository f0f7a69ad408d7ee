"""Values on the command line, for argparse."""

from __future__ import annotations

import argparse
import re

from dynamos_ng.uapi import CONFIRM_MAX, INTERRUPTS


def policy_class(text: str) -> int:
    """Parse a policy class for argparse: a number, or that of calls made in interrupts."""
    if text == "interrupts":
        return INTERRUPTS
    if not re.fullmatch(r"[0-9]{1,3}", text) or int(text) >= INTERRUPTS:
        raise argparse.ArgumentTypeError(f"{text!r} is not a policy class: a number up to 254, or 'interrupts'")
    return int(text)


def time(text: str) -> int:
    """Parse a time for argparse: 90, 90s, 5m, 2h."""
    found = re.fullmatch(r"(\d{1,6})([smh]?)", text)
    seconds = int(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0
    if not 1 <= seconds <= CONFIRM_MAX:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time like 60s, 5m or 2h, of up to {CONFIRM_MAX // 3600}h")
    return seconds
