"""The search for a culprit: a failing part of which nothing can be left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamos_ng.errors import UsageError
from dynamos_ng.lab.mass import read_names, smallest

NAMES = [f"function{number}" for number in range(300)]


@settings(deadline=None)
@given(st.sets(st.sampled_from(NAMES), min_size=1, max_size=4))
def test_exactly_the_culprits_are_found(culprits: set[str]) -> None:
    """However many must come together for a failure."""
    asked: list[frozenset[str]] = []

    def fails(names: Sequence[str]) -> bool:
        assert 0 < len(names) < len(NAMES)
        asked.append(frozenset(names))
        return culprits <= set(names)

    assert set(smallest(NAMES, fails)) == culprits
    assert len(culprits) > 1 or len(asked) <= 18, "for one culprit, two questions a halving at most"


@settings(deadline=None)
@given(st.sets(st.sampled_from(NAMES), min_size=1, max_size=4))
def test_of_several_culprits_one_is_found(culprits: set[str]) -> None:
    (found,) = smallest(NAMES, lambda names: bool(culprits & set(names)))
    assert found in culprits


def test_a_failure_of_no_part_is_all_of_them() -> None:
    assert smallest(NAMES[:5], lambda _: False) == tuple(NAMES[:5])


def test_names_are_read_one_a_line(tmp_path: Path) -> None:
    file = tmp_path / "names"
    file.write_text("vfs_read\n\n  vfs_write\n")
    assert read_names(file) == ("vfs_read", "vfs_write")
    file.write_text("\n")
    with pytest.raises(UsageError, match="no functions in it"):
        read_names(file)
    with pytest.raises(UsageError, match="No such file"):
        read_names(tmp_path / "none")
