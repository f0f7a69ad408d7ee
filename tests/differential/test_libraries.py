"""Real shared libraries, every function of them cloned and redirected in live programs, behave as they did."""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import library
import pytest
from library import Cloned

from dynamos_ng.arch import known
from dynamos_ng.lab import root

HERE = Path(__file__).parent
LIBRARIES = ("libcrypto.so.3", "libc.so.6", "libm.so.6", "libz.so.1")
#: How many use counters a library may have: its share of the area.
SHARE = 1 << 14
#: Python's own tests of what stands upon these libraries.
SUITE = (
    "test_hashlib", "test_hmac", "test_math", "test_cmath", "test_struct", "test_zlib", "test_gzip",
    "test_binascii",
)  # fmt: skip
MORE = (
    "test_float", "test_int", "test_long", "test_format", "test_strtod", "test_random", "test_fractions",
    "test_time", "test_strftime", "test_strptime", "test_calendar", "test_codecs", "test_re", "test_json",
    "test_unicode", "test_bytes", "test_string", "test_textwrap", "test_difflib", "test_csv", "test_io",
    "test_file", "test_fileio", "test_bufio", "test_glob", "test_fnmatch", "test_tempfile", "test_zipfile",
    "test_mmap", "test_fcntl", "test_select", "test_sort", "test_heapq", "test_bisect", "test_array",
    "test_memoryview", "test_pickle", "test_marshal", "test_copy", "test_thread",
)  # fmt: skip
#: Enters a root in a mount namespace of its own; the test's folder is its /mnt.
ENTER = """\
mount --bind "$FOLDER" "$TREE/mnt" && mount -t proc proc "$TREE/proc" && mount -t tmpfs none "$TREE/tmp" || exit 2
[ -c "$TREE/dev/null" ] || mount --bind /dev "$TREE/dev"
cd / && exec chroot "$TREE" "$@"
"""
#: Whose root has the libraries.
KERNEL = {"x86_64": "6.1", "i386": "6.1-i386"}
REDIRECTED = {
    "DYNAMOS_AGENT": "/mnt",
    "LD_PRELOAD": ":".join(("/mnt/agent.so", *(name for name in LIBRARIES if name != "libc.so.6"))),
}


@dataclass(frozen=True)
class World:
    """An architecture's root, and a folder with the clones of its libraries."""

    tree: Path
    folder: Path
    cloned: tuple[Cloned, ...]

    def run(self, *argv: str, redirected: bool, seconds: int = 300) -> str:
        """Run a program in the root; return what it printed. It must succeed."""
        for left in self.folder.glob("use.*"):
            left.unlink()
        inside = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "TZ": "Europe/Zurich", "PYTHONPATH": "/mnt/suite"}
        given = {**inside, **(REDIRECTED if redirected else {})}
        done = subprocess.run(
            ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", ENTER, "sh", "/usr/bin/env",
             *(f"{name}={value}" for name, value in given.items()), *argv],
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TREE": str(self.tree), "FOLDER": str(self.folder)},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        return done.stdout

    def uses(self) -> dict[str, tuple[int, int, int, int]]:
        """Return the use counters of the program that ran last, and had no children."""
        (file,) = self.folder.glob("use.*")
        return {f"{part.name} {name}": use for part in self.cloned for name, use in library.counted(file, part).items()}


@pytest.fixture(scope="module", params=[arch.name for arch in known.ALL])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, thorough: bool) -> World:
    """Clone the libraries of an architecture's root, two at a time; of the largest half, if time is short."""
    arch = next(arch for arch in known.ALL if arch.name == request.param)
    tree = root.ensure(KERNEL[arch.name]).tree
    folder = tmp_path_factory.mktemp(arch.name)
    library.agent(folder, 8 * arch.word)
    shutil.copy(HERE / "driver.py", folder)
    shutil.copytree(root.ensure(KERNEL["i386"]).tree / "usr/lib/python3.11/test", folder / "suite/test")
    (files,) = tree.glob("usr/lib/*-linux-gnu")
    paths = [files / name for name in LIBRARIES]
    firsts = [library.USE + 16 * SHARE * number for number in range(len(paths))]
    steps = [1 if thorough or name != "libcrypto.so.3" else 2 for name in LIBRARIES]
    with ProcessPoolExecutor(2) as pool:
        cloned = tuple(pool.map(library.clone, paths, [folder] * len(paths), firsts, steps))
    return World(tree, folder, cloned)


def test_nearly_every_function_is_cloned(world: World) -> None:
    for part in world.cloned:
        assert len(part.uses) < SHARE
        print(part.name, part.functions, len(part.uses), dict(part.refused))
    assert sum(len(part.uses) for part in world.cloned) > 0.95 * sum(part.functions for part in world.cloned)


def test_libraries_return_what_they_returned(world: World, thorough: bool) -> None:
    call = ("python3", "/mnt/driver.py", "1", "2000" if thorough else "50")
    before = world.run(*call, redirected=False).splitlines()
    after = world.run(*call, redirected=True).splitlines()
    assert len(before) > 10_000
    differing = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
    assert not differing, f"{len(differing)} results differ, the first: {differing[0]}"
    uses = world.uses()
    entered = [name for name, (begin, _, end, _) in uses.items() if end > begin]
    assert len(entered) > 1_000, f"only {len(entered)} clones were entered"
    assert {name.split()[0] for name in entered} == set(LIBRARIES)
    # The dynamic linker leaves a failed look-up by longjmp, and the functions on the way with it.
    jumped = uses["libc.so.6 _dl_signal_exception"][2]
    inside = {name: (end - left) - (begin - gone) for name, (begin, gone, end, left) in uses.items()}
    lost = {name: count for name, count in inside.items() if count not in (0, jumped)}
    assert not lost, f"entered and not left: {lost}"
    assert sum(count != 0 for count in inside.values()) < 4


def outcomes(report: Path) -> dict[str, str]:
    """Return each test case's outcome, from a report in JUnit's form."""
    return {
        f"{case.get('name')} {number}": ",".join(child.tag for child in case) or "ok"
        for number, case in enumerate(ET.parse(report).iter("testcase"))
    }


def suite(world: World, tests: Sequence[str], *, redirected: bool) -> dict[str, str]:
    """Run some of Python's own tests; return each test case's outcome."""
    call = ("python3", "-m", "test", "--junit-xml", "/mnt/report.xml", *tests)
    world.run(*call, redirected=redirected, seconds=3000)
    return outcomes(world.folder / "report.xml")


def test_a_real_test_suite_passes(world: World, thorough: bool) -> None:
    tests = (*SUITE, *MORE) if thorough else SUITE
    before = suite(world, tests, redirected=False)
    after = suite(world, tests, redirected=True)
    assert len(before) > 300
    assert after == before
    assert list(world.folder.glob("use.*")), "no program was redirected"
