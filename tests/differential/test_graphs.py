"""Functions that Hypothesis makes of random control-flow graphs: their clones compute the same."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import graphs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dynamos_ng.arch import Arch, known


@pytest.mark.parametrize("arch", known.ALL, ids=lambda arch: arch.name)
def test_clones_compute_the_same(arch: Arch, thorough: bool, tmp_path: Path) -> None:
    host = graphs.build(tmp_path, "host.c", arch, *graphs.constants(graphs.DIALECTS[arch.name]))
    cloned = made = 0

    @settings(
        max_examples=2000 if thorough else 60, deadline=None, database=None, derandomize=not thorough,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.randoms(use_true_random=False), st.integers(1, 6))
    def check(chance: random.Random, count: int) -> None:
        nonlocal cloned, made
        with tempfile.TemporaryDirectory(dir=tmp_path) as work:
            cloned += graphs.compare(chance, Path(work), arch, host, count)
        made += count

    check()
    assert cloned > made / 2
    assert cloned > 60

    chance = random.Random(1)
    with tempfile.TemporaryDirectory(dir=tmp_path) as work:
        count = 1000 if thorough else 200
        assert graphs.compare(chance, Path(work), arch, host, count) > count * 0.7
