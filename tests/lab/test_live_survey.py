"""A survey of a running kernel finds what one of its saved image finds."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

from dynamos_ng import image, survey
from dynamos_ng.lab import machine, saved

#: What a report tells of the machine that surveyed, not of the kernel.
OWN = {"seconds", "cpu_seconds", "peak_memory"}
SEED = 7
#: How many functions are refused, each for another reason, and how many are not, each with other traits.
EACH = 6
SECONDS = 3600.0


def test_functions_are_judged_alike(thorough: bool, tmp_path: Path) -> None:
    """One refused for each of several reasons, and some that can be cloned; at full size all of them are counted."""
    kernel = image.saved(saved.ensure())
    functions = list(survey.census(kernel).functions)
    random.Random(SEED).shuffle(functions)
    refused: dict[str, str] = {}
    fine: dict[int, str] = {}
    while min(len(refused), len(fine)) < EACH:
        symbol = functions.pop()
        finding, _original, _body = survey.look(kernel, symbol)
        if len(kernel.symbols.find(symbol.name)) > 1:
            continue
        if finding.kind:
            refused.setdefault(finding.kind, symbol.name)
        elif len(fine) < EACH:
            fine.setdefault(finding.traits, symbol.name)
    chosen = [*refused.values(), *fine.values()]
    wanted = {name: f"--why {name}" for name in chosen} | ({"all functions": ""} if thorough else {})
    # The image is surveyed in the guest too, for another capstone would know other instructions.
    shutil.copytree(saved.ensure(), tmp_path / "image")
    commands = [
        f"python3 -m dynamos_ng survey {what} {source} --json '/out/{name}{kind}'"
        for name, what in wanted.items()
        for kind, source in (("", ""), (" of image", "--image /out/image"))
    ]
    done = machine.run(["sh", "-ec", "\n".join(commands)], timeout=SECONDS, out_dir=tmp_path)
    assert done.status == 0, done.output
    for name in wanted:
        live, of_image = (json.loads((tmp_path / (name + kind)).read_text()) for kind in ("", " of image"))
        assert live.keys() == of_image.keys()
        for key in live.keys() - OWN:
            assert live[key] == of_image[key], f"{name}: {key}"
        assert live.get("peak_memory", 0) < 1 << 30
