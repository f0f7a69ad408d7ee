"""Tests of tests/guest run in guests and are reported by the host's pytest: shown with a checkout of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

SAMPLE = """
import os, pytest, time

def test_passes():
    assert os.path.exists("/run/lab/start")

def test_fails():
    print("what the test printed")
    with open("/dev/kmsg", "w") as log:
        log.write("what the kernel said")
    assert [1, 2] == [1, 3], "odd"

@pytest.mark.parametrize("n", [1, 2])
def test_parameters(n):
    assert n

@pytest.fixture
def bad():
    raise ValueError("bad fixture")

def test_fixture(bad):
    pass

@pytest.mark.limit(4)
def test_hangs():
    time.sleep(1000)

def test_goes_on_after_a_hang():
    pass

def test_panics():
    with open("/proc/sysrq-trigger", "w") as trigger:
        trigger.write("c")
    time.sleep(1000)

@pytest.mark.boot(cpus=1)
def test_own_boot():
    assert os.cpu_count() == 1

def test_kernel_complains_and_goes_on():
    with open("/dev/kmsg", "w") as log:
        log.write("<4>WARNING: said the kernel")
"""


def test_each_guest_test_is_reported_as_it_ended(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "dynamos_ng", tmp_path / "dynamos_ng")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "tests/guest").mkdir(parents=True)
    shutil.copy(ROOT / "tests/conftest.py", tmp_path / "tests")
    (tmp_path / "tests/guest/test_sample.py").write_text(SAMPLE)
    (tmp_path / "tests/test_host.py").write_text(
        "import os\n\ndef test_host():\n    assert not os.path.exists('/run/lab/start')\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-rA", "tests"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    ended = re.findall(r"^tests/\S*::(\S+) (\w+) +\[", done.stdout, re.MULTILINE)
    assert ended[0] == ("test_host", "PASSED"), done.stdout + done.stderr
    assert [(re.sub(r"[\[-]6\.1\]$", "", name), how) for name, how in ended[1:]] == [
        ("test_passes", "PASSED"),
        ("test_fails", "FAILED"),
        ("test_parameters[1", "PASSED"),
        ("test_parameters[2", "PASSED"),
        ("test_fixture", "ERROR"),
        ("test_hangs", "FAILED"),
        ("test_goes_on_after_a_hang", "PASSED"),
        ("test_panics", "FAILED"),
        ("test_kernel_complains_and_goes_on", "PASSED"),
        ("test_kernel_complains_and_goes_on", "ERROR"),
        ("test_own_boot", "PASSED"),
    ], done.stdout + done.stderr
    assert "AssertionError: odd" in done.stdout
    assert "what the test printed" in done.stdout
    assert "what the kernel said" in done.stdout
    assert "ValueError: bad fixture" in done.stdout
    assert "the test did not end within 4 s" in done.stdout
    assert "Kernel panic - not syncing: sysrq triggered crash" in done.stdout
    assert re.search(r"the guest's kernel reported trouble: .*WARNING: said the kernel", done.stdout)
    assert re.search(r"^6\.1 +6\.1\.\S+ +max +6 +5 +0 +4 +\d+$", done.stdout, re.MULTILINE), "in four guests"
    assert re.search(r"=+ 3 failed, 7 passed, 2 errors in .*=+$", done.stdout.strip())
    assert done.returncode == 1
