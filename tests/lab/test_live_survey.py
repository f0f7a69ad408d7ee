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
#: Tells all of each chosen function, by the running kernel and by the image, as `--why` does, without a start each.
EACH_WHY = """
import json, pathlib
from dynamos_ng import image, survey
out = pathlib.Path("/out")
for kind, kernel in ("live", image.Kernel.live()), ("image", image.saved(out / "image")):
    told = {name: survey.why(kernel, name) for name in (out / "chosen").read_text().split()}
    (out / f"each.{kind}").write_text(json.dumps(told))
"""


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
    # The image is surveyed in the guest too, for another capstone would know other instructions.
    shutil.copytree(saved.ensure(), tmp_path / "image")
    (tmp_path / "chosen").write_text("\n".join(chosen))
    commands = [
        f"python3 -m dynamos_ng survey {source} {what} --json /out/{name}.{kind}"
        for name, what in [("one", f"--why {chosen[0]}"), *([("all", "")] if thorough else [])]
        for kind, source in (("live", ""), ("image", "--image /out/image"))
    ]
    done = machine.run(
        ["sh", "-ec", "\n".join([f"python3 -c '{EACH_WHY}'", *commands])], timeout=SECONDS, out_dir=tmp_path
    )
    assert done.status == 0, done.output
    for first in tmp_path.glob("*.live"):
        live, of_image = (json.loads(file.read_text()) for file in (first, first.with_suffix(".image")))
        assert live.keys() == of_image.keys()
        for key in live.keys() - OWN:
            assert live[key] == of_image[key], f"{first.stem}: {key}"
        assert live.get("peak_memory", 0) < 1 << 30
    assert json.loads((tmp_path / "each.live").read_text()).keys() == set(chosen)
