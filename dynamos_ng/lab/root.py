"""The guest's root file system: made once from Debian packages, kept as a folder and as a disk image."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dynamos_ng.errors import LabError, MissingTool

SUITE = "bookworm"
#: i386 has no bcc, and what runs there is built elsewhere. Its test-suite of Python is a load for libraries.
I386 = (
    "kmod",
    "libpython3.11-testsuite",
    "libssl3",
    "procps",
    "python3",
    "python3-capstone",
    "python3-psutil",
    "python3-pyelftools",
    "python3-pytest",
    "python3-rich",
    "zlib1g",
)
AMD64 = (
    "linux-headers-amd64",
    "bpftool",
    "gcc",
    "iproute2",
    "kmod",
    "libelf1",
    "make",
    "procps",
    "psmisc",
    "python3",
    "python3-bpfcc",
    "python3-capstone",
    "python3-psutil",
    "python3-pyelftools",
    "python3-pytest",
    "python3-rich",
    "strace",
)  # fmt: skip
#: The image package is unpacked, not installed: its scripts want a boot loader and an initramfs of their own.
#: busybox-static conflicts with busybox, so it is unpacked too.
UNPACK = """\
set -e
kernel=$(chroot "$1" apt-cache depends @IMAGE@ | sed -n 's/^ *Depends: \\(linux-image-[0-9].*\\)$/\\1/p')
mkdir "$1/lab"
chroot "$1" sh -ec "cd /lab && apt-get -q download $kernel busybox-static && mkdir busybox kernel
    dpkg -x linux-image-*.deb kernel && dpkg -x busybox-static_*.deb busybox
    cp -a kernel/boot/. /boot/ && cp -a kernel/lib/modules/. /lib/modules/ && rm -r kernel *.deb"
chroot "$1" depmod "${kernel#linux-image-}"
"""
#: By the name that `uname -m` has for it: Debian's name, the kernel's package, what else is wanted.
ARCHITECTURES = {
    "x86_64": ("amd64", "linux-image-amd64", AMD64),
    "i386": ("i386", "linux-image-686-pae", I386),
}
#: apt's settings that a machine may need to reach its mirror; all others stay at their defaults.
SETTINGS = re.compile(r"^Acquire::(Check-Valid-Until|Check-Date|Retries|https?::Proxy.*) ")
EXCLUDED = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")


def cache() -> Path:
    """Return the folder that holds what is made once: $XDG_CACHE_HOME/dynamos_ng."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "dynamos_ng"


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold a lock in the cache: others that want to make the same thing wait, and then find it made."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class Root:
    """A finished root, in a folder of the cache."""

    folder: Path

    @property
    def tree(self) -> Path:
        """Return the root as a folder, for chroot."""
        return self.folder / "tree"

    @property
    def image(self) -> Path:
        """Return the root as an ext4 image, for the guest's disk."""
        return self.folder / "root.ext4"

    @property
    def release(self) -> str:
        """Return the release of its kernel."""
        return (self.folder / "release").read_text()

    @property
    def kernel(self) -> Path:
        """Return the kernel's file."""
        return self.tree / "boot" / f"vmlinuz-{self.release}"


def _output(argv: Sequence[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise MissingTool(f"{argv[0]} is not installed: the lab is made from Debian packages") from None
    except subprocess.CalledProcessError as error:
        raise LabError(f"{' '.join(argv)}: {error.stderr.strip()}") from None


def sources() -> list[str]:
    """Return apt's source lines for the guest's suite, on the mirrors that this machine uses itself.

    A mirror of Debian's security archive is told by its release ending in ``-security``.
    """
    form = "$(CREATED_BY)|$(ORIGIN)|$(COMPONENT)|$(RELEASE)|$(REPO_URI)"
    main = security = ""
    for line in _output(["apt-get", "indextargets", "--format", form]).splitlines():
        created_by, origin, component, release, uri = line.split("|")
        if not uri.startswith(("http", "file:", "copy:")):
            continue  # a disc, say
        if created_by != "Packages" or component != "main" or origin not in ("Debian", "$(ORIGIN)", ""):
            continue
        if release.endswith("-security"):
            security = security or uri
        elif "-" not in release and "/" not in release:
            main = main or uri
    if not main:
        raise LabError("apt knows no Debian mirror: the lab needs one with the suite " + SUITE)
    lines = [f"deb {main} {SUITE} main", f"deb {main} {SUITE}-updates main"]
    return lines + ([f"deb {security} {SUITE}-security main"] if security else [])


def _command(tree: Path, arch: str) -> list[str]:
    """Return the mmdebstrap call that fills TREE."""
    debian, _image, packages = ARCHITECTURES[arch]
    # Mirrors seldom fetched from lag behind the security archive's signed index for i386, and apt then trusts nothing.
    without = ("-security main",) if arch == "i386" else ()
    settings = [line for line in _output(["apt-config", "dump"]).splitlines() if SETTINGS.match(line)]
    return [
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory",
        f"--architectures={debian}", f"--include={','.join(packages)}",
        *(f"--aptopt={line}" for line in settings),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        f"--customize-hook={_unpack(arch)}",
        SUITE, str(tree), *(line for line in sources() if not line.endswith(without)),
    ]  # fmt: skip


def _unpack(arch: str) -> str:
    return UNPACK.replace("@IMAGE@", ARCHITECTURES[arch][1])


def _key(arch: str) -> str:
    recipe = "\n".join((SUITE, *ARCHITECTURES[arch][2], _unpack(arch), *EXCLUDED, "ext4-1"))
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def ensure(arch: str = "x86_64") -> Root:
    """Return an architecture's root, made now if the cache has none for this recipe (about a minute and a half)."""
    root = Root(cache() / f"root-{_key(arch)}")
    if not root.folder.exists():
        with locked("root"):
            if not root.folder.exists():
                _make(root, arch)
    return root


def _make(root: Root, arch: str) -> None:
    if os.geteuid():
        raise LabError("the lab's root file system can be made by root only: run this with sudo once")
    told = f"lab: making the root file system of {arch} guests (once, one to three minutes) …"
    print(told, file=sys.stderr, flush=True)
    partial = Root(root.folder.with_suffix(".partial"))
    for left_over in root.folder.parent.glob("root-*.partial"):
        shutil.rmtree(left_over)
    partial.folder.mkdir(parents=True)
    log = cache() / "root.log"
    _logged(_command(partial.tree, arch), log)
    kernels = sorted((partial.tree / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise LabError(f"the new root holds {len(kernels)} kernels where one was expected: see {log}")
    (partial.folder / "release").write_text(kernels[0].name.removeprefix("vmlinuz-"))
    size = _megabytes(partial.tree)
    _logged(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", "dynamos-lab",
             "-d", str(partial.tree), str(partial.image), f"{size * 5 // 4 + 64}M"], log)  # fmt: skip
    partial.folder.rename(root.folder)


def _megabytes(tree: Path) -> int:
    return int(_output(["du", "-sm", str(tree)]).split()[0])


def _logged(argv: Sequence[str], log: Path) -> None:
    """Run a program with its messages in a file; LabError ends with the last of them."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    try:
        with log.open("a") as out:
            done = subprocess.run(argv, stdout=out, stderr=out, env={**os.environ, "PATH": path}, check=False)
    except FileNotFoundError:
        raise MissingTool(f"{argv[0]} is not installed") from None
    if done.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        raise LabError(f"{argv[0]} failed (its messages: {log}):\n{end}")
