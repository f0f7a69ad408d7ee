"""How commands print their results."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from dynamos_ng.printable import cleaned


def show(options: argparse.Namespace, result: Any, render: Callable[[Any], object]) -> int:
    """Print a result as JSON, or let it be rendered for people; returns the exit status."""
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        render(cleaned(result))
    return 0
