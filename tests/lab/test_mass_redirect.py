"""Hundreds of functions redirected at once under load; and a wrong one among good ones is named."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from dynamos_ng.lab import mass
from dynamos_ng.lab.root import DEFAULT, KERNELS
from dynamos_ng.lab.variants import Variant, variants

USUAL = Variant(DEFAULT, "max")
ROOT = Path(__file__).parents[2]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Take the usual kernel, or at full size all, on each processor for which they patch their own code differently."""
    if "variant" in metafunc.fixturenames:
        every = variants(KERNELS, processors=True)
        metafunc.parametrize("variant", every if metafunc.config.option.thorough else [USUAL], ids=str)


def test_hundreds_of_functions_at_once(variant: Variant, thorough: bool) -> None:
    """At full size the functions are other ones each time; a run is repeated with the seed that a failure tells."""
    count, seconds = (1000, 120.0) if thorough and variant == USUAL else (300, 15.0)
    seed = random.SystemRandom().randrange(1 << 32) if thorough else 1
    plan = mass.Plan(seed, count, seconds, kernel=variant.kernel, cpu=variant.cpu)
    outcome = mass.run(plan, bisect=False, say=lambda text: print(text, end=""))
    assert len(outcome.names) == count
    report = outcome.report
    entered = [name for name in report["hot"] if report["entered"][name]]
    assert len(report["hot"]) >= count * 0.8
    assert len(entered) >= len(report["hot"]) * 0.8, "what the load called before, it calls through the clones"
    assert sum(report["entered"].values()) > 100 * count


#: All take up to six words in registers and return one, which is all that a C edition has to know to pass them on.
WRAPPED = ("vfs_write", "vfs_unlink")
WRONG = "vfs_unlink"


def wrapper(name: str) -> str:
    """Return C for an edition that runs the original; that of the wrong function writes where nothing is, first."""
    words = ", ".join(f"unsigned long {word}" for word in "abcdef")
    fault = "*(volatile int *)64 = 1; " if name == WRONG else ""
    return (
        f"unsigned long {name}_v1({words});\nunsigned long {name}_v2({words});\n"
        f"unsigned long {name}_v2({words})\n{{ {fault}return {name}_v1(a, b, c, d, e, f); }}\n"
    )


def test_the_culprit_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "wrong"
    folder.mkdir()
    tables = "".join(f'[[function]]\nname = "{name}"\neditions = [2]\n' for name in WRAPPED)
    (folder / "update.toml").write_text(f'name = "wrong"\n{tables}')
    (folder / "wrong.c").write_text("".join(map(wrapper, WRAPPED)))
    done = subprocess.run(
        [sys.executable, "-m", "dynamos_ng", "lab", "mass", "--update", folder, "--seconds", "3", "--bisect"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "2 functions: fail\n1 functions: good\n1 functions: fail\n" in done.stdout
    assert f"dynamos: lab mass: culprit: {WRONG}\n" in done.stderr
    assert f"RIP: 0010:{WRONG}_v2+" in done.stderr
