"""Type 1, variable value: limits that the kernel keeps to itself are lowered, obeyed, and given back."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import EXAMPLES

from dynamos_ng import control
from dynamos_ng.demo import load as work

#: The others list no data.
listed = pytest.mark.kernels("6.1", "6.12", "7.2")

OPEN = Path("/proc/sys/fs/nr_open")
HUNG = Path("/proc/sys/kernel/hung_task_timeout_secs")


@pytest.fixture(autouse=True)
def kept() -> Iterator[None]:
    """Leave the sysctls as they were."""
    values = {path: path.read_text() for path in (OPEN, HUNG)}
    yield
    for path, value in values.items():
        path.write_text(value)


def takes(path: Path, value: int) -> bool:
    """Return whether a sysctl takes a value."""
    try:
        path.write_text(str(value))
    except OSError as error:
        assert error.errno == errno.EINVAL
        return False
    return True


@listed
def test_limits_are_lowered_and_given_back(loaded: Callable[[Path], Any], cli: Callable[..., Any]) -> None:
    assert takes(OPEN, 1_300_000)
    assert takes(HUNG, 700)
    loaded(EXAMPLES / "type01-limit")
    assert takes(OPEN, 1_300_000), "loading changes nothing"
    with work.repeated(lambda: OPEN.write_text("1100000"), lambda: HUNG.write_text("500")):
        assert control.call("activate", name="type01-limit")["state"] == "redirected"
        assert not takes(OPEN, 1_300_000)
        assert not takes(HUNG, 700)
        assert takes(HUNG, 600)
        assert "variable sysctl_nr_open_max is 1200000\n" in cli("status").stdout
        refused = cli("activate", "type01-limit")
        assert refused.returncode == 1
        assert refused.stderr == "dynamos: activate: it is already active\n"
        assert cli("activate", "type01-limit", "--class", "3").returncode == 2, "a variable knows no classes"
        assert control.call("deactivate", name="type01-limit")["notes"] == []
        assert takes(OPEN, 1_300_000)
        assert takes(HUNG, 700)
    control.call("activate", name="type01-limit")
    assert not takes(HUNG, 700)
    control.call("unload", name="type01-limit")
    assert takes(HUNG, 700)


def variable(folder: Path, name: str, value: int, more: str = "", kind: str = "u32") -> Path:
    text = f'name = "{folder.name}"\n[[variable]]\nname = "{name}"\ntype = "{kind}"\nvalue = {value}\n{more}\n'
    folder.mkdir()
    (folder / "update.toml").write_text(text)
    return folder


@listed
def test_what_somebody_else_wrote_is_left(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    OPEN.write_text("1000000")
    loaded(variable(tmp_path / "ours", "sysctl_nr_open", 1_000_001, "expected = 1_000_000"))
    loaded(variable(tmp_path / "theirs", "sysctl_nr_open", 1_000_002))
    loaded(variable(tmp_path / "nothing", "sysctl_nr_open", 1_000_003, "expected = 5"))
    refused = cli("activate", "nothing")
    assert refused.returncode == 1
    assert "not the expected ones" in refused.stderr
    assert refused.stderr.endswith(": sysctl_nr_open\n")
    control.call("activate", name="ours")
    assert OPEN.read_text() == "1000001\n"
    refused = cli("activate", "theirs")
    assert refused.returncode == 1
    assert "writes this variable" in refused.stderr
    assert OPEN.read_text() == "1000001\n"
    OPEN.write_text("900000")
    assert control.call("deactivate", name="ours")["notes"] == [
        "sysctl_nr_open was not put back to 1000000: somebody else has made it 900000"
    ]
    assert OPEN.read_text() == "900000\n"


@listed
@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("vfs_read", "u32", "code"),
        ("no_such_variable", "u32", "no variable of this name"),
        ("kernel_cpustat", "u64", "own|image|freed"),
        ("print_fatal_signals", "u64", "bytes further"),
    ],
)
def test_what_is_no_variable_is_refused(
    cli: Callable[..., Any], daemon: object, tmp_path: Path, name: str, kind: str, reason: str
) -> None:
    refused = cli("build", variable(tmp_path / "wrong", name, 1, kind=kind), "--output", tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"dynamos: {name}: refused")
    assert any(word in refused.stderr for word in reason.split("|")), refused.stderr


@pytest.mark.kernels("6.1-i386")
def test_a_kernel_that_lists_no_data_says_so(cli: Callable[..., Any], daemon: object, tmp_path: Path) -> None:
    refused = cli("build", EXAMPLES / "type01-limit", "--output", tmp_path)
    assert "lists no data" in refused.stderr
