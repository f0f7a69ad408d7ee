"""Builds kernel modules for a guest: on the host's processor, in the guest's own root.

Under emulation one kbuild takes over a minute; here a second. A guest asks by a folder in the output share (see
guest/kbuild): ``NAME.request`` with ``in.tar`` and ``arguments``; the answer is ``output``, ``out.tar``, ``gone``
(what the build has removed) and lastly ``status``. Guests of one process that ask for the same get the same: most need
dynamos.ko.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import threading
from collections import defaultdict
from pathlib import Path

from dynamos_ng.lab.root import Root

#: Where the build's folder shows up in the chroot; its true place in the guest is put back into the messages.
PLACE = "/mnt/build"
#: Runs in a mount namespace of its own: whatever happens, its mounts are gone with it.
OUTSIDE = """\
mount --bind "$JOB" "$TREE/mnt" && mount -t proc proc "$TREE/proc" || exit 2
[ -c "$TREE/dev/null" ] || mount --bind /dev "$TREE/dev"
exec chroot "$TREE" /bin/sh -c "$INSIDE" sh "$@"
"""
#: Times from the guest may lie in this machine's future, which would confuse make.
INSIDE = f"""\
names() {{ (cd build && find . -print0) | sort -z; }}
cd /mnt && mkdir build && tar -C build -xf in.tar && touch now && names >before || exit 2
find build -newer now -exec touch -hr now {{}} +
make -C "/lib/modules/$RELEASE/build" M={PLACE} "$@" 2>&1
status=$?
names >after && comm -z23 before after >gone
tar -C build -cf out.tar . && rm -r build || exit 2
exit $status
"""
POLL_SECONDS = 0.05

#: What was built, by what it was built from: make's output, and the files that a request is answered with.
_BUILT: dict[str, tuple[str, dict[str, bytes]]] = {}
_LOCKS: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)


class Service(threading.Thread):
    """Answers a guest's build requests until `stop`; each request has a thread of its own."""

    def __init__(self, root: Root, folder: Path) -> None:
        super().__init__(name="kbuild", daemon=True)
        self.root = root
        self.folder = folder
        self._ended = threading.Event()
        self._jobs: list[threading.Thread] = []

    def run(self) -> None:
        """Look for requests; a folder is renamed to ``.request`` when it is complete."""
        seen: set[str] = set()
        while not self._ended.wait(POLL_SECONDS):
            for name in os.listdir(self.folder):
                if name.endswith(".request") and name not in seen:
                    seen.add(name)
                    job = threading.Thread(target=self._answer, args=(self.folder / name,), daemon=True)
                    self._jobs.append(job)
                    job.start()

    def stop(self) -> None:
        """End the service, after the builds that are under way."""
        self._ended.set()
        self.join()
        for job in self._jobs:
            job.join()

    def _answer(self, job: Path) -> None:
        directory, release, *arguments = (job / "arguments").read_text(errors="replace").split("\0")[:-1]
        arguments = [argument.replace(directory, PLACE) for argument in arguments]
        if re.fullmatch(r"[\w.+~-]+", release) and (self.root.tree / "lib/modules" / release).is_dir():
            status, output = _build_once(self.root, job, release, arguments)
        else:
            status, output = 2, f"the lab has no headers for {release}\n"
        if not (job / "out.tar").exists():
            shutil.copyfile(job / "in.tar", job / "out.tar")
        (job / "output").write_text(output.replace(PLACE, directory))
        (job / "status.partial").write_text(f"{status}\n")
        (job / "status.partial").rename(job / "status")


def _build_once(root: Root, job: Path, release: str, arguments: list[str]) -> tuple[int, str]:
    """Do as `build`, or what it has done before with the same files for the same root."""
    wanted = hashlib.sha256(repr((str(root.tree), release, arguments)).encode())
    with tarfile.open(job / "in.tar") as files:
        for member in sorted(files, key=lambda one: one.name):
            content = files.extractfile(member) if member.isreg() else None
            wanted.update(repr((member.name, member.type, member.mode, member.linkname)).encode())
            wanted.update(hashlib.sha256(content.read() if content else b"").digest())
    key = wanted.hexdigest()
    with _LOCKS[key]:
        if key in _BUILT:
            output, answer = _BUILT[key]
            for name, data in answer.items():
                (job / name).write_bytes(data)
            return 0, output
        status, output = build(root, job, release, arguments)
        if status == 0:
            _BUILT[key] = output, {name: (job / name).read_bytes() for name in ("out.tar", "gone")}
    return status, output


def build(root: Root, job: Path, release: str, arguments: list[str]) -> tuple[int, str]:
    """Build ``in.tar`` of a job's folder into ``out.tar``; return make's status and what it printed."""
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "MAKEFLAGS": f"-j{os.cpu_count() or 1}",
        "JOB": str(job), "TREE": str(root.tree), "RELEASE": release, "INSIDE": INSIDE,
    }  # fmt: skip
    done = subprocess.run(
        ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", OUTSIDE, "sh", *arguments],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        env=environment, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout
