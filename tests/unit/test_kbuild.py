"""Building on a machine of one's own: what is missing is named by its package."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from dynamos_ng.build import kbuild
from dynamos_ng.errors import BuildError, MissingTool


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder that stands for the kernel's headers; nobody builds in this machine's stead."""
    monkeypatch.delenv(kbuild.COMMAND, raising=False)
    monkeypatch.setattr(kbuild, "headers", lambda: tmp_path)
    return tmp_path


def test_missing_headers_are_named_by_their_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(kbuild.COMMAND, raising=False)
    monkeypatch.setattr(platform, "release", lambda: "none")
    with pytest.raises(MissingTool, match=r"/lib/modules/none/build.*: apt install linux-headers-none"):
        kbuild.make(Path("/tmp"), "modules")


def test_missing_make_is_named_by_its_package(monkeypatch: pytest.MonkeyPatch, host: Path) -> None:
    monkeypatch.setenv("PATH", str(host))
    with pytest.raises(MissingTool, match="make is not installed: apt install make gcc"):
        kbuild.make(host, "modules")


@pytest.mark.parametrize(("command", "tool", "package"), [
    ("gcc-99 -c f.c", "gcc-99", "gcc-99"),
    ("gcc-99 -c f.c && true", "gcc-99", "gcc-99"),  # by way of a shell
    ("PATH=/nowhere; ld -r f.o", "ld", "binutils"),
])  # fmt: skip
def test_a_missing_compiler_is_named_by_its_package(host: Path, command: str, tool: str, package: str) -> None:
    (host / "Makefile").write_text(f"modules:\n\t@{command}\n")
    with pytest.raises(MissingTool, match=f"^{tool} is not installed: apt install {package}$"):
        kbuild.make(host, "modules")


def test_the_headers_own_makefile_builds_and_its_errors_are_told(host: Path, tmp_path: Path) -> None:
    """As kbuild is called: with the folder as M, and without what an update does not need."""
    (host / "Makefile").write_text("""\
modules:
\t@echo $(M) '$(CONFIG_DEBUG_INFO)' >$(M)/made
broken:
\t@echo '$(M)/f.c:1: error: nonsense'; exit 1
""")
    (tmp_path / "update").mkdir()
    kbuild.make(tmp_path / "update", "modules")
    assert (tmp_path / "update/made").read_text() == f"{tmp_path}/update \n"
    with pytest.raises(BuildError, match=r"the kernel's build failed:\nf\.c:1: error: nonsense"):
        kbuild.make(tmp_path / "update", "broken")
