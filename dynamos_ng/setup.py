"""Finds what this machine lacks for the demo and the tests, says it, and installs it. Standard library only.

Debian packages come through apt-get; Python packages go into a private environment in the cache, in which the call
is then started again: the system's own Python stays as it is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from dynamos_ng.errors import MissingTool
from dynamos_ng.lab.root import cache

CHECKOUT = Path(__file__).parents[1]
#: A program or file, and the Debian package that brings it.
LAB = {
    "mmdebstrap": "mmdebstrap",
    "arch-test": "arch-test",
    "mke2fs": "e2fsprogs",
    "modprobe": "kmod",
    "mount": "mount",
    "unshare": "util-linux",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
}
TEST = {
    "gcc": "gcc",
    "/usr/include/stdio.h": "libc6-dev",
    "objdump": "binutils",
    "make": "make",
    "cpio": "cpio",
    "perl": "perl",
    "xz": "xz-utils",
    "zstd": "zstd",
    "git": "git",
    "tmux": "tmux",
}
#: Set in a call that was started again in the private environment, so that it is not started a third time.
AGAIN = "DYNAMOS_SETUP_DONE"
SYSTEM_PATH = ("/usr/sbin", "/sbin")


def missing_debian(wanted: dict[str, str]) -> list[str]:
    """Return the Debian packages whose program or file is not here."""
    path = os.pathsep.join((os.environ.get("PATH", ""), *SYSTEM_PATH))
    here = (os.path.exists(name) if name.startswith("/") else shutil.which(name, path=path) for name in wanted)
    return [package for package, found in zip(wanted.values(), here, strict=True) if not found]


def requirements() -> list[str]:
    """Return what pyproject.toml asks for, with what the tests need."""
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["test"]]


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def satisfied(requirement: str) -> bool:
    """Tell whether this Python has a package of the asked version ("NAME>=1.2,<3"; nothing else is used)."""
    name, conditions = re.fullmatch(r"([\w.-]+)(.*)", requirement).groups()  # type: ignore[union-attr]
    try:
        version = _number(metadata.version(name))
    except metadata.PackageNotFoundError:
        return False
    least = re.search(r">=([\d.]+)", conditions)
    below = re.search(r"<([\d.]+)", conditions)
    return (not least or version >= _number(least[1])) and (not below or version < _number(below[1]))


def ensure(*, tests: bool, yes: bool, again: Sequence[str]) -> None:
    """Install what is missing for the lab, and for the tests if wanted; may start the call AGAIN instead of returning.

    Asks first if there is a terminal and not `yes`. Raises MissingTool when it cannot be had.
    """
    debian = missing_debian({**LAB, **TEST} if tests else LAB)
    python = [item for item in requirements() if not satisfied(item)] if tests else []
    home = _environment() if python else cache()
    made = bool(python) and (home / "complete").exists()
    if python and AGAIN in os.environ:
        raise MissingTool(f"{sys.prefix} still lacks {', '.join(python)}: remove that folder and try again")
    if python and not made and not _has_venv():
        debian.append(f"python{sys.version_info.major}.{sys.version_info.minor}-venv")
    if debian or (python and not made):
        _agree(debian, [] if made else python, home, yes)
    if debian:
        _install_debian(debian)
    if python:
        if not made:
            _install_python(home)
        _start_again(home, again)


def _environment() -> Path:
    """Return the private environment's place, one per Python and set of requirements."""
    recipe = "\n".join((sys.version, sys.base_prefix, *requirements()))
    return cache() / f"python-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}"


def _has_venv() -> bool:
    """Tell whether an environment with pip can be made; Debian packages ensurepip on its own."""
    from importlib.util import find_spec

    return find_spec("ensurepip") is not None and find_spec("venv") is not None


def _agree(debian: list[str], python: list[str], home: Path, yes: bool) -> None:
    print("dynamos needs, and this machine lacks:", file=sys.stderr)
    if debian:
        print(f"  Debian packages: {' '.join(debian)}", file=sys.stderr)
    if python:
        print(f"  Python packages: {' '.join(python)}\n    (into {home}; the system's own Python stays as it is)",
              file=sys.stderr)  # fmt: skip
    if yes or not sys.stdin.isatty():
        return
    print("Install them now? [Y/n] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("", "y", "yes"):
        raise MissingTool("nothing was installed")


def _install_debian(packages: list[str]) -> None:
    by_hand = f"install by hand: {' '.join(packages)}"
    if shutil.which("apt-get") is None:
        raise MissingTool(f"there is no apt-get on this machine; {by_hand}")
    prefix: list[str] = []
    if os.geteuid():
        if shutil.which("sudo") is None:
            raise MissingTool(f"not root, and there is no sudo; {by_hand}")
        prefix = ["sudo"]
    # A machine that has just started may be busy with upgrades of its own.
    patient = ["-o", "DPkg::Lock::Timeout=600", "-o", "Acquire::Retries=3"]
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-q", *patient]
    # An update that fails in part (a third party's key, say) may still have brought what is needed.
    subprocess.run([*prefix, *quiet, "update"], stdout=sys.stderr, check=False)
    argv = [*prefix, *quiet, "install", "--yes", "--no-install-recommends", *packages]
    if subprocess.run(argv, stdout=sys.stderr, check=False).returncode:
        raise MissingTool(f"apt-get could not install what is missing; {by_hand}")


def _install_python(home: Path) -> None:
    shutil.rmtree(home, ignore_errors=True)
    home.parent.mkdir(parents=True, exist_ok=True)
    python = home / "bin" / "python3"
    try:
        subprocess.run([sys.executable, "-m", "venv", str(home)], stdout=sys.stderr, check=True)
        pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, *requirements()], stdout=sys.stderr, check=True)
    except (subprocess.CalledProcessError, OSError) as error:
        with contextlib.suppress(OSError):
            shutil.rmtree(home)
        raise MissingTool(
            f"the Python packages could not be installed ({error}); by hand: pip install {' '.join(requirements())}"
        ) from None
    (home / "complete").touch()


def _start_again(home: Path, again: Sequence[str]) -> None:
    python = str(home / "bin" / "python3")
    path = os.pathsep.join((str(home / "bin"), os.environ.get("PATH", "")))
    sys.stderr.flush()
    os.execve(python, [python, "-m", "dynamos_ng", *again], {**os.environ, "PATH": path, AGAIN: "1"})
