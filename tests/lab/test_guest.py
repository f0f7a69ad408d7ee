"""Real boots: how a run ends is told apart, and what a guest may touch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynamos_ng import lab
from dynamos_ng.errors import GuestDied, GuestTimeout, LabError
from dynamos_ng.lab import machine

ROOT = Path(__file__).parents[2]

LOOK = r"""
echo to stdout; echo to stderr >&2; echo via a path >/dev/stderr
echo in >/dynamos/written; cat /dynamos/written
echo in >/out/written
cat /out/given
for place in /sys/kernel/debug/tracing /sys/kernel/tracing/events /sys/fs/bpf /proc/1 /dev/pts; do
    [ -d $place ] && echo "has $place"
done
[ "$(stat -fc %T /sys/fs/bpf)" = bpf_fs ] && echo "has bpffs"
cat /proc/sys/kernel/panic_on_oops /proc/sys/kernel/panic_on_warn
nproc
python3 -c 'import dynamos_ng, urllib.request as u, socket
s = socket.create_server(("127.0.0.1", 0)); socket.create_connection(s.getsockname()); print("loopback up")
print(dynamos_ng.__file__)'
echo "$SPECIAL"
sh -c 'sleep 1000 & echo "left behind"'
exit 42
"""


def test_a_command_sees_its_guest_and_its_status_comes_back(tmp_path: Path) -> None:
    (tmp_path / "given").write_text("from the host\n")
    pieces: list[str] = []
    result = lab.run(
        ["sh", "-c", LOOK],
        timeout=120,
        out_dir=tmp_path,
        on_output=pieces.append,
        env={"SPECIAL": "quotes ' \" $x `y`"},
    )
    assert result.status == 42
    assert "".join(pieces) == result.output
    lines = result.output.splitlines()
    assert lines[:3] == ["to stdout", "to stderr", "via a path"]
    assert lines[3:] == [
        "in",
        "from the host",
        "has /sys/kernel/debug/tracing",
        "has /sys/kernel/tracing/events",
        "has /sys/fs/bpf",
        "has /proc/1",
        "has /dev/pts",
        "has bpffs",
        "1",
        "1",
        "2",
        "loopback up",
        "/dynamos/dynamos_ng/__init__.py",
        "quotes ' \" $x `y`",
        "left behind",
    ]
    assert (tmp_path / "written").read_text() == "in\n"
    assert not (ROOT / "written").exists(), "of the checkout the guest has a view of its own"
    assert sorted(os.listdir(tmp_path)) == ["given", "written"]


def test_a_panic_shows_the_end_of_the_console() -> None:
    with pytest.raises(GuestDied) as caught:
        # What was said is passed on by another process, which must have run once more.
        lab.run(["sh", "-c", "echo last words; sleep 2; echo c >/proc/sysrq-trigger"], timeout=120)
    assert "Kernel panic - not syncing: sysrq triggered crash" in str(caught.value)
    assert "last words" in str(caught.value)
    assert caught.value.exit_code == 125


def test_a_command_that_does_not_end_is_a_timeout() -> None:
    with pytest.raises(GuestTimeout) as caught:
        lab.run(["sh", "-c", "echo '<4>the last on the console' >/dev/kmsg; echo waiting; sleep 1000"], timeout=4)
    assert "the command did not end within 4 s" in str(caught.value)
    assert "the last on the console" in str(caught.value)
    assert "waiting" in str(caught.value)
    assert caught.value.exit_code == 124


def test_a_kernel_that_complains_fails_a_command_that_succeeds() -> None:
    with pytest.raises(GuestDied, match="WARNING: said the kernel"):
        lab.run(["sh", "-c", "echo '<4>WARNING: said the kernel' >/dev/kmsg"], timeout=120)


def test_a_kernel_that_does_not_find_its_root_is_a_dead_guest() -> None:
    with pytest.raises(GuestDied, match="dynamos lab: failed: insmod /modules/ext4"):
        lab.run(["true"], timeout=120, cmdline="module_blacklist=ext4")


def test_a_boot_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["rdinit=/no/such", "nokaslr"]
    boot = machine._Guest.boot
    monkeypatch.setattr(machine._Guest, "boot", lambda guest, cpus, memory, _, *rest: boot(
        guest, cpus, memory, lines.pop(0), *rest))  # fmt: skip
    assert lab.run(["cat", "/proc/cmdline"], timeout=120).output.endswith(" nokaslr\n")
    assert not lines
    assert "lab: the kernel did not survive its boot, so again: [" in capsys.readouterr().err


def test_an_output_folder_serves_one_guest_at_a_time(tmp_path: Path) -> None:
    (tmp_path / ".lab").mkdir()
    with pytest.raises(LabError, match="another guest uses this output folder"):
        lab.run(["true"], timeout=1, out_dir=tmp_path)


KBUILD = r"""
mkdir -p /tmp/a /tmp/b
echo 'obj-m := good.o' >/tmp/a/Kbuild
printf '#include <linux/module.h>\nMODULE_LICENSE("GPL");\n' >/tmp/a/good.c
echo 'obj-m := bad.o' >/tmp/b/Kbuild
printf '#include <linux/module.h>\nint nonsense(void) { return missing; }\n' >/tmp/b/bad.c
$DYNAMOS_KBUILD /tmp/a >/tmp/a.log 2>&1 & first=$!
$DYNAMOS_KBUILD /tmp/b CONFIG_DEBUG_INFO_BTF_MODULES= >/tmp/b.log 2>&1 & second=$!
wait $first; echo "good $?"
wait $second; echo "bad $?"
insmod /tmp/a/good.ko && grep -c ^good /proc/modules
grep -o "/tmp/b/bad.c:2:29: error: .missing. undeclared" /tmp/b.log
$DYNAMOS_KBUILD /tmp/a >/tmp/again.log && grep -c "CC .*good.o" /tmp/again.log
mkdir "/tmp/a/a folder"
$DYNAMOS_KBUILD /tmp/a clean >/tmp/clean.log && echo /tmp/a/*
"""


def test_modules_are_built_outside_and_load_inside() -> None:
    result = lab.run(["bash", "-c", KBUILD], timeout=200)
    lines = result.output.splitlines()
    assert lines[:3] == ["good 0", "bad 2", "1"]
    assert lines[3] == "/tmp/b/bad.c:2:29: error: 'missing' undeclared"
    assert lines[4] == "0", "what was built already came back and is not built again"
    assert lines[5:] == ["/tmp/a/Kbuild /tmp/a/a folder /tmp/a/good.c"], "what make removes is removed"
    mounts = Path("/proc/self/mounts").read_text()
    assert "dynamos_ng" not in mounts


ORPHAN = """
import pathlib, sys
from dynamos_ng import lab
lab.run(["sleep", "1000"], timeout=900, out_dir=pathlib.Path(sys.argv[1]))
"""


def test_a_guest_dies_with_the_process_that_wanted_it(tmp_path: Path) -> None:
    owner = subprocess.Popen([sys.executable, "-c", ORPHAN, tmp_path], cwd=ROOT, stdout=subprocess.DEVNULL)
    console = tmp_path / ".lab" / "console"
    deadline = time.monotonic() + 120
    while not console.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    children = Path(f"/proc/{owner.pid}/task/{owner.pid}/children").read_text().split()
    qemu = [pid for pid in children if Path(f"/proc/{pid}/comm").read_text().startswith("qemu-system")]
    assert len(qemu) == 1
    owner.kill()
    owner.wait()
    while Path(f"/proc/{qemu[0]}").exists() and "State:\tZ" not in Path(f"/proc/{qemu[0]}/status").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the lab's command line."""
    return subprocess.run(
        [sys.executable, "-m", "dynamos_ng", "lab", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_gives_the_status_and_the_output(tmp_path: Path) -> None:
    done = cli("run", "--cpus", "1", "--out", str(tmp_path), "--", "sh", "-c", "nproc; exit 7")
    assert (done.returncode, done.stdout) == (7, "1\n")


def test_one_command_on_every_kernel() -> None:
    """The doctor finds each of them fit, as Debian ships it."""
    done = cli("matrix", "--json", "--", "sh", "-c", "uname -rm && python3 -m dynamos_ng doctor")
    rows = json.loads(done.stdout)
    assert [(row["kernel"], row["status"], row["error"]) for row in rows] == [
        (name, 0, "") for name in ("6.1", "6.12", "7.2", "6.1-i386")
    ], rows
    assert done.returncode == 0
    for row in rows:
        version, _, architecture = row["kernel"].partition("-")
        assert row["release"].startswith(f"{version}.")
        assert row["output"].startswith(f"{row['release']} {'i686' if architecture else 'x86_64'}\n")
        assert row["output"].endswith("dynamos can work here\n")


def test_a_matrix_tells_a_timeout_and_a_dead_guest_and_goes_on() -> None:
    command = "grep -q Milan /proc/cpuinfo && echo c >/proc/sysrq-trigger; grep -q Skylake /proc/cpuinfo || sleep 1000"
    done = cli("matrix", "--kernel", "6.1", "--processors", "--timeout", "4", "--", "sh", "-c", command)
    assert done.returncode == 1
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stdout
    table = [line.split() for line in done.stdout.splitlines()[-4:]]
    assert table[0] == ["kernel", "release", "cpu", "status", "seconds"]
    assert [" ".join(row[2:-1]) for row in table[1:]] == ["max 124 timeout", "its 0", "srso 125 guest died"]


def test_the_command_line_tells_a_timeout() -> None:
    done = cli("run", "--timeout", "2", "--", "sleep", "1000")
    assert done.returncode == 124
    assert done.stderr.startswith("dynamos: the command did not end within 2 s.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run"], "lab run: no command given"),
        (["matrix", "--kernel", "7.2"], "lab matrix: no command given"),
        (["run", "--out", "/no/such", "true"], "/no/such: not a folder"),
        (["shell"], "lab shell: needs a terminal"),
        (["save-image", "/tmp"], "/tmp: is there already"),
        (["save-image", "/no/such/folder"], "/no/such/folder: No such file or directory"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_booted(arguments: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dynamos_ng", "lab", *arguments],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith(f"dynamos: {message}")
