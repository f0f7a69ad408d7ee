"""The guests' root file systems, one for each kernel, of the suite that ships it: made once from Debian packages.

A root is kept as a folder, in which modules are built by the kernel's own compiler, and as a disk image.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from dynamos_ng.errors import LabError, MissingTool

#: What every guest needs to build a module, to run dynamos and its tests, and to build what benchmarks run.
COMMON = (
    "bpftool", "e2fsprogs", "gcc", "iproute2", "kmod", "libc6-dev", "make", "procps", "psmisc", "python3",
    "python3-capstone", "python3-psutil", "python3-pyelftools", "python3-pytest", "python3-rich", "strace", "systemd",
)  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """A kernel that Debian ships: the suite, Debian's name of the architecture, the flavour, and what is special.

    `packages` are put into its guests besides COMMON. `features` are what tests may ask for (`needs`): "bcc", and
    "livepatch" with the reliable stack traces that it stands on. `processors` name those PROCESSORS of
    lab/machine.py for which this kernel patches its own code in another way.
    """

    suite: str
    architecture: str
    flavour: str
    packages: tuple[str, ...]
    features: frozenset[str] = frozenset()
    processors: tuple[str, ...] = ("max",)


_BCC, _ALL = ("python3-bpfcc",), frozenset({"bcc", "livepatch"})
KERNELS = {
    "6.1": Kernel("bookworm", "amd64", "amd64", _BCC, _ALL, ("max", "its", "srso")),
    "6.12": Kernel("trixie", "amd64", "amd64", _BCC, _ALL, ("max", "its", "srso", "stuff")),
    "7.2": Kernel("forky", "amd64", "amd64", _BCC, _ALL, ("max", "its", "srso", "stuff")),
    # Debian has no bcc for i386: programs for libbpf are compiled by clang. Python's own test-suite is a load for
    # libraries.
    "6.1-i386": Kernel(
        "bookworm", "i386", "686-pae",
        ("clang", "libbpf-dev", "libbpf1", "libpython3.11-testsuite", "libssl3", "zlib1g"),
    ),
}
DEFAULT = "6.1"
#: The image's packages are unpacked, not installed: their scripts want a boot loader and an initramfs of their own.
#: busybox-static conflicts with busybox, so it is unpacked too. Newer suites have one of two places for each, and split
#: the image.
UNPACK = """\
set -e
parts() {
    echo $(chroot "$root" apt-cache depends $1 | sed -nE 's/^ *Depends: (linux-(image|binary|modules)-[0-9].*)$/\\1/p')
}
root=$1
image=$(parts linux-image-@FLAVOUR@)
release=${image#linux-image-}
mkdir "$root/lab"
chroot "$root" sh -ec "cd /lab && apt-get -q download $image $(parts $image) busybox-static && mkdir box kernel
    dpkg -x busybox-static_*.deb box && rm busybox-static_*.deb
    mv box/bin/busybox busybox || mv box/usr/bin/busybox busybox
    for part in *.deb; do dpkg -x \\$part kernel; done
    cp -a kernel/boot/. /boot/ || true
    cp -a kernel/lib/modules/. /lib/modules/ || cp -a kernel/usr/lib/modules/. /lib/modules/
    [ -e /boot/vmlinuz-$release ] || cp /lib/modules/$release/vmlinuz /boot/vmlinuz-$release
    rm -r box kernel *.deb"
chroot "$root" depmod "$release"
"""
#: apt's settings that a machine may need to reach its mirror; all others stay at their defaults.
SETTINGS = re.compile(r"^Acquire::(Check-Valid-Until|Check-Date|Retries|https?::Proxy.*) ")
#: A root that no guest was booted from for so long is dropped when another one is made.
KEPT_DAYS = 30
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


def sources(suite: str) -> list[str]:
    """Return apt's source lines for a suite, on the mirrors that this machine uses itself.

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
        raise LabError("apt knows no Debian mirror: the lab needs one with the suite " + suite)
    lines = [f"deb {main} {suite} main", f"deb {main} {suite}-updates main"]
    return lines + ([f"deb {security} {suite}-security main"] if security else [])


def mmdebstrap(
    tree: Path, suite: str, architecture: str, packages: Sequence[str], *options: str, variant: str = "minbase"
) -> list[str]:
    """Return the call that fills TREE with packages of a suite."""
    # Mirrors seldom fetched from lag behind the security archive's signed index for i386, and apt then trusts nothing.
    without = ("-security main",) if architecture == "i386" else ()
    settings = [line for line in _output(["apt-config", "dump"]).splitlines() if SETTINGS.match(line)]
    return [
        "mmdebstrap", "--mode=root", f"--variant={variant}", "--format=directory",
        f"--architectures={architecture}", f"--include={','.join(packages)}",
        *(f"--aptopt={line}" for line in settings),
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in EXCLUDED),
        *options, suite, str(tree), *(line for line in sources(suite) if not line.endswith(without)),
    ]  # fmt: skip


def _packages(kernel: Kernel) -> tuple[str, ...]:
    return (f"linux-headers-{kernel.flavour}", *COMMON, *kernel.packages)


def _unpack(kernel: Kernel) -> str:
    return UNPACK.replace("@FLAVOUR@", kernel.flavour)


def _key(kernel: Kernel) -> str:
    recipe = "\n".join((kernel.suite, kernel.architecture, *_packages(kernel), _unpack(kernel), *EXCLUDED, "ext4-1"))
    return hashlib.sha256(recipe.encode()).hexdigest()[:16]


def ensure(name: str = DEFAULT) -> Root:
    """Return the root of one of KERNELS, made now if the cache has none for its recipe (about a minute and a half)."""
    root = Root(cache() / f"root-{_key(KERNELS[name])}")
    if not root.folder.exists():
        with locked(root.folder.name):
            if not root.folder.exists():
                _make(root, name)
    used(root.folder)
    return root


def used(folder: Path) -> None:
    """Note that something made once is in use; what nobody uses is dropped some day."""
    with suppress(PermissionError):
        os.utime(folder)


def _make(root: Root, name: str) -> None:
    if os.geteuid():
        raise LabError("the lab's root file system can be made by root only: run this as root")
    told = f"lab: making the root file system of {name} guests (once, one to three minutes) …"
    print(told, file=sys.stderr, flush=True)
    _drop_unused(root.folder.parent)
    partial = Root(root.folder.with_suffix(".partial"))
    shutil.rmtree(partial.folder, ignore_errors=True)
    partial.folder.mkdir(parents=True)
    log = partial.folder / "log"
    kernel = KERNELS[name]
    hook = f"--customize-hook={_unpack(kernel)}"
    logged(mmdebstrap(partial.tree, kernel.suite, kernel.architecture, _packages(kernel), hook), log)
    kernels = sorted((partial.tree / "boot").glob("vmlinuz-*"))
    if len(kernels) != 1:
        raise LabError(f"the new root holds {len(kernels)} kernels where one was expected: see {log}")
    (partial.folder / "release").write_text(kernels[0].name.removeprefix("vmlinuz-"))
    size = _megabytes(partial.tree)
    logged(["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-L", "dynamos-lab",
             "-d", str(partial.tree), str(partial.image), f"{size * 5 // 4 + 64}M"], log)  # fmt: skip
    partial.folder.rename(root.folder)


def _drop_unused(folder: Path) -> None:
    """Remove the roots and emulators not used for KEPT_DAYS, those of recipes long gone among them."""
    for old in (*folder.glob("root-*/"), *folder.glob("qemu-*/")):
        if old.stat().st_mtime < time.time() - KEPT_DAYS * 86400:
            shutil.rmtree(old)


def _megabytes(tree: Path) -> int:
    return int(_output(["du", "-sm", str(tree)]).split()[0])


def logged(argv: Sequence[str], log: Path) -> None:
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


if __name__ == "__main__":
    for wanted in sys.argv[1:]:
        ensure(wanted)
