"""The first file system of a guest: busybox, a few modules in the order they need, and the guest's own scripts."""

from __future__ import annotations

import hashlib
import os
import subprocess
import threading
from pathlib import Path

from dynamos_ng.errors import LabError, MissingTool
from dynamos_ng.lab.cpio import Archive
from dynamos_ng.lab.root import Root

GUEST = Path(__file__).with_name("guest")
#: What Debian keeps as modules and the guest needs before it has a root.
MODULES = ("virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "9pnet_virtio", "9p", "overlay", "ext4")
#: Older kernels' ext4 asks for it by name at run time; newer ones have it built in.
OPTIONAL = "crc32c_generic"
APPLETS = ("sh", "mount", "insmod", "mkdir", "cp", "ln", "sleep", "chmod", "hostname", "ifconfig", "switch_root")


def module_order(root: Root) -> list[Path]:
    """Return the module files to insert, each after those it depends on."""
    order: dict[Path, None] = {}
    for name in (OPTIONAL, *MODULES):
        argv = ["modprobe", "-d", str(root.tree), "-S", root.release, "--show-depends", name]
        path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "PATH": path})
        except FileNotFoundError:
            raise MissingTool("modprobe is not installed: apt install kmod") from None
        except subprocess.CalledProcessError as error:
            if name == OPTIONAL:
                continue
            raise LabError(f"the guest's kernel has no module {name}: {error.stderr.strip()}") from None
        for line in done.stdout.splitlines():
            verb, _, path = line.partition(" ")
            if verb == "insmod":  # the others are "builtin NAME"
                order[Path(path.split()[0])] = None
    return list(order)


def _build(root: Root, scripts: dict[str, bytes]) -> bytes:
    archive = Archive()
    for folder in ("proc", "sys", "dev", "lower", "checkout", "writable", "root"):
        archive.folder(folder)
    archive.file("bin/busybox", (root.tree / "lab/busybox").read_bytes(), 0o755)
    for applet in APPLETS:
        archive.link(f"bin/{applet}", "busybox")
    modules = module_order(root)
    for module in modules:
        archive.file(f"modules/{module.name}", module.read_bytes())
    archive.file("modules/order", "".join(f"{module.name}\n" for module in modules).encode())
    for name, script in scripts.items():
        archive.file(name if name == "init" else f"guest/{name}", script, 0o755)
    return archive.finish()


def ensure(root: Root) -> Path:
    """Return the initramfs for a root, made now if one of its parts has changed (well under a second)."""
    scripts = {path.name: path.read_bytes() for path in sorted(GUEST.iterdir()) if path.is_file()}
    parts = [Path(__file__).read_bytes(), *(name.encode() for name in scripts), *scripts.values()]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]
    path = root.folder / f"initramfs-{key}"
    if not path.exists():
        partial = path.with_suffix(f".{os.getpid()}-{threading.get_ident()}")
        partial.write_bytes(_build(root, scripts))
        partial.rename(path)
    return path
