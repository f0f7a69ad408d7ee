"""Functions of loadable modules: redirected under load and given back, and what becomes of their modules meanwhile."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon, entered, unload, write_update

from dynamos_ng import control
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work
from dynamos_ng.errors import DynamosError
from dynamos_ng.kprobes import tracefs

pytestmark = pytest.mark.usefixtures("daemon")

#: By module, and what is special about each on a stock 6.1 kernel.
KINDS = {
    "ext4": {
        "ext4_file_write_iter": "the entry of a file system",
        "ext4_map_blocks": "static keys of the module itself (its tracepoints), a cold part",
        "ext4_mb_new_blocks": "WARNs, static keys",
        "ext4_mark_iloc_dirty": "a static call",
        "ext4_lookup": "an error path",
    },
    "jbd2": {"jbd2_journal_dirty_metadata": "called from another module"},
    "virtio_blk": {"virtblk_done": "runs in interrupts"},
    "overlay": {"ovl_permission": "runs with every look-up of the guest's root"},
    "9p": {"v9fs_vfs_lookup": "how the guest reads this file"},
    "dm_mod": {"ctl_ioctl": "an exception table"},
}
#: _IOWR(0xfd, 0, struct dm_ioctl)
DM_VERSION = 0xC138FD00


def module_update(folder: Path, functions: dict[str, list[str]], editions: str = "", source: str = "") -> Path:
    """Write an update's folder for functions by module; all get the same editions."""
    entries = "".join(
        f'[[function]]\nname = "{name}"\nmodule = "{module}"\neditions = [{editions}]\n'
        for module, names in functions.items()
        for name in names
    )
    write_update(folder, {}, source)
    (folder / "update.toml").write_text(f'name = "{folder.name}"\n{entries}')
    return folder


def modprobe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["modprobe", *arguments], capture_output=True, text=True, check=False)


def rmmod(module: str) -> int:
    """Return the errno with which the kernel refuses to let a module go, or 0."""
    libc = ctypes.CDLL(None, use_errno=True)
    numbers = {8: 176, 4: 129}
    number = ctypes.c_long(numbers[ctypes.sizeof(ctypes.c_long)])
    return ctypes.get_errno() if libc.syscall(number, module.encode(), os.O_NONBLOCK) else 0


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """Mount an ext4 file system of our own, in an image on a tmpfs."""
    image, folder = tmp_path / "image", tmp_path / "mounted"
    folder.mkdir()
    image.write_bytes(b"")
    os.truncate(image, 64 << 20)
    assert modprobe("loop").returncode == 0
    subprocess.run(["mke2fs", "-q", "-t", "ext4", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def churn(folder: Path) -> None:
    """Write, sync, read, rename and remove files; fail at some."""
    for number in range(30):
        path = folder / f"file{number}"
        data = os.urandom(40_000)
        # Unbuffered: what Python still holds back is not there to be synced, and no block of the disk is asked for.
        with path.open("wb", buffering=0) as file:
            assert file.write(data) == len(data)
            os.fsync(file.fileno())
        assert path.read_bytes() == data
        path.rename(folder / "other")
        (folder / "other").unlink()
        assert not path.exists()


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def test_kinds_under_load(loaded: Callable[[Path], Any], mounted: Path, tmp_path: Path) -> None:
    assert modprobe("dm-mod").returncode == 0
    update = loaded(module_update(tmp_path / "kinds", {module: list(names) for module, names in KINDS.items()}))
    assert update["unwatched"] == []
    control.call("activate", name="kinds")
    with work.Pipes(2) as pipes:
        churn(mounted)
        drop_caches()
        with next(Path("/dev").glob("vd?")).open("rb") as disk:
            assert len(disk.read(1 << 20)) == 1 << 20
        assert Path(__file__).read_text()
        with Path("/dev/mapper/control").open("rb") as control_file:
            block = bytearray(struct.pack("=3III", 4, 0, 0, 312, 312).ljust(312, b"\0"))
            fcntl.ioctl(control_file, DM_VERSION, block)
            assert struct.unpack_from("=I", block) == (4,)
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.ioctl(control_file.fileno(), ctypes.c_ulong(DM_VERSION), ctypes.c_void_p(8)) == -1
            assert ctypes.get_errno() == errno.EFAULT, "a fault in the clone is caught in the clone"
        # The clone's static keys follow those of the module.
        event = tracefs() / "events" / "ext4" / "ext4_request_blocks" / "enable"
        event.write_text("1")
        churn(mounted)
        event.write_text("0")
        moved, intact = pipes.finish()
    assert intact
    assert moved
    assert "ext4_request_blocks" in (tracefs() / "trace").read_text(), "ext4_mb_new_blocks traces, in its clone"
    names = [name for functions in KINDS.values() for name in functions]
    assert {name for name in names if not entered(name)} == set()
    unload("kinds")
    churn(mounted)


EDITION = """
#include <linux/fs.h>
ssize_t bm_status_read_v1(struct file *file, char __user *to, size_t size, loff_t *at);
ssize_t bm_status_read_v2(struct file *file, char __user *to, size_t size, loff_t *at);
/* Another function of the module, which nobody exports. */
ssize_t bm_status_write(struct file *file, const char __user *from, size_t size, loff_t *at);
ssize_t bm_status_read_v2(struct file *file, char __user *to, size_t size, loff_t *at)
{
	char text[32];
	int length = scnprintf(text, sizeof(text), "%lx\\n", (unsigned long)bm_status_write);

	if (size < 100)
		return bm_status_read_v1(file, to, size, at);
	return simple_read_from_buffer(to, size, at, text, length);
}
"""


@pytest.fixture
def status(tmp_path: Path) -> Iterator[Path]:
    """Mount binfmt_misc, a module that can go, and return its status file."""
    folder = tmp_path / "binfmt"
    folder.mkdir()
    subprocess.run(["mount", "-t", "binfmt_misc", "none", folder], check=True)
    yield folder / "status"
    subprocess.run(["umount", folder], check=True)


def test_an_edition_in_c_knows_its_module(loaded: Callable[[Path], Any], status: Path, tmp_path: Path) -> None:
    loaded(module_update(tmp_path / "status", {"binfmt_misc": ["bm_status_read"]}, "2", EDITION))
    control.call("activate", name="status", classes=[7])
    assert status.read_text() == "enabled\n"
    control.call("policy_process", pid=os.getpid(), policy_class=7)
    address = status.read_text().strip()
    asked = control.call("quiescence", function="binfmt_misc:bm_status_read")
    assert {use["number"] for use in asked["uses"]} == {1, 2}
    (update,) = control.call("status")["updates"]
    assert update["functions"][0]["probes"] is not None, "who asked has taken the probes away"
    fd = os.open(status, os.O_RDONLY)
    assert os.read(fd, 50) == b"enabled\n", "the edition calls the original"
    os.close(fd)
    control.call("policy_process", pid=os.getpid(), policy_class=0)
    assert f"{address} t bm_status_write\t[binfmt_misc]" in Path("/proc/kallsyms").read_text()
    control.call("deactivate", name="status")
    assert status.read_text() == "enabled\n"


def test_a_module_stays_as_long_as_its_update_and_another_load_of_it_is_another(daemon: Daemon, tmp_path: Path) -> None:
    assert modprobe("binfmt_misc").returncode == 0
    module = build(module_update(tmp_path / "held", {"binfmt_misc": ["load_misc_binary"]}), tmp_path)
    control.call("load", path=str(module))
    assert rmmod("binfmt_misc") == errno.EAGAIN, "its clone names addresses of the module"
    control.call("activate", name="held")
    subprocess.run(["/bin/true"], check=True)
    assert entered("load_misc_binary"), "it is asked about every exec"
    assert rmmod("binfmt_misc") == errno.EAGAIN
    unload("held")
    assert rmmod("binfmt_misc") == 0
    with pytest.raises(DynamosError, match="an earlier load of a module that has gone"):
        control.call("load", path=str(module))
    with pytest.raises(DynamosError, match="binfmt_misc: no such module is loaded"):
        build(tmp_path / "held", tmp_path)
    assert modprobe("binfmt_misc").returncode == 0
    with pytest.raises(DynamosError, match="an earlier load of a module that has gone"):
        control.call("load", path=str(module))
    assert not Path("/sys/module/dynamos_held").exists()
    assert rmmod("binfmt_misc") == 0, "a refused update holds nothing"


def test_what_update_toml_must_say(tmp_path: Path, daemon: Daemon) -> None:
    assert modprobe("binfmt_misc").returncode == 0
    folder = write_update(tmp_path / "unsaid", {"bm_status_read": []})
    with pytest.raises(DynamosError, match=r'name it in update\.toml: module = "binfmt_misc"'):
        build(folder, tmp_path)
    with pytest.raises(DynamosError, match="no such function in module binfmt_misc"):
        build(module_update(tmp_path / "wrong", {"binfmt_misc": ["pipe_read"]}), tmp_path)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_an_update_takes_effect_when_its_module_comes(daemon: Daemon, cli: Callable[..., Any], tmp_path: Path) -> None:
    assert rmmod("binfmt_misc") in (0, errno.ENOENT)
    good = module_update(tmp_path / "waits", {"binfmt_misc": ["bm_status_read"]}, "2", EDITION)
    bad = module_update(tmp_path / "in-vain", {"binfmt_misc": ["no_such_function"]})
    assert "waits: [pending], waits for module binfmt_misc" in cli("load", "--when-module", good).stdout
    assert cli("load", "--when-module", bad).returncode == 0
    daemon.stop()
    daemon.start()
    assert [update["name"] for update in control.call("status")["pending"]] == ["waits", "in-vain"]
    folder = tmp_path / "binfmt"
    folder.mkdir()
    subprocess.run(["mount", "-t", "binfmt_misc", "none", folder], check=True)
    try:
        wait_until(lambda: [update["failure"] != "" for update in control.call("status")["pending"]] == [True])
        shown = cli("status").stdout
        assert "in-vain: [pending], waits for module binfmt_misc" in shown
        assert "no such function in module binfmt_misc" in " ".join(shown.split())
        assert "waits [enabled]" in shown
        assert (folder / "status").read_text() != "enabled\n"
        assert entered("bm_status_read") >= 0
        assert cli("unload", "in_vain").returncode == 0
        unload("waits")
        assert (folder / "status").read_text() == "enabled\n"
        done = cli("load", "--when-module", good)
        assert "activate waits: [enabled]" in done.stdout, "the module is there already"
        assert (folder / "status").read_text() != "enabled\n"
        unload("waits")
        refused = cli("load", "--when-module", bad)
        assert refused.returncode == 1
        assert "no such function in module binfmt_misc" in refused.stderr
        assert control.call("status")["pending"] == []
    finally:
        subprocess.run(["umount", folder], check=True)
    assert rmmod("binfmt_misc") == 0
