"""`dynamos doctor` in a guest: a stock kernel is fit; what is made wrong is named; nothing is changed by looking."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import Daemon

from dynamos_ng.build import kbuild
from dynamos_ng.doctor import BAD, UNKNOWN

NOBODY = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups")


def doctor(*prefix: str, own_build: bool = False) -> dict[str, Any]:
    """Run it, perhaps by way of another program, and return its report; its status agrees with what it says."""
    environment = {name: value for name, value in os.environ.items() if name != kbuild.COMMAND or not own_build}
    done = subprocess.run(
        [*prefix, sys.executable, "-m", "dynamos_ng", "doctor", "--json"],
        capture_output=True, text=True, check=False, env=environment, timeout=200,
    )  # fmt: skip
    assert done.stderr == ""
    report: dict[str, Any] = json.loads(done.stdout)
    assert done.returncode == (0 if report["works"] else 1)
    return report


def told(report: dict[str, Any], verdict: str) -> set[str]:
    return {one["name"] for one in report["findings"] if one["verdict"] == verdict}


def finding(report: dict[str, Any], name: str) -> str:
    """Return what is found and advised."""
    one = next(one for one in report["findings"] if one["name"] == name)
    return f"{one['found']}: {one['advice']}"


def behind(script: str) -> tuple[str, ...]:
    """Return what runs a command after a script, in mounts of its own."""
    return "unshare", "--mount", "--propagation", "private", "sh", "-ec", f'{script}\nexec "$@"', "sh"


@contextmanager
def setting(path: str, value: str) -> Iterator[None]:
    old = Path(path).read_text()
    Path(path).write_text(value)
    try:
        yield
    finally:
        Path(path).write_text(old)


def state() -> dict[str, Any]:
    """Return what of a kernel a careless look could change."""
    def output(*argv: str) -> str:
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout

    tracing = Path("/sys/kernel/tracing")
    settings = ("kernel/kptr_restrict", "kernel/ftrace_enabled", "kernel/tainted", "kernel/pid_max",
                "kernel/unprivileged_bpf_disabled", "net/core/bpf_jit_enable", "kernel/modules_disabled")  # fmt: skip
    return {
        "modules": [line.split()[:2] for line in Path("/proc/modules").read_text().splitlines()],
        "mounts": Path("/proc/self/mounts").read_text(),
        "settings": {name: (Path("/proc/sys") / name).read_text() for name in settings},
        "tracing": {name: (tracing / name).read_text() for name in ("kprobe_events", "enabled_functions",
                                                                    "current_tracer", "set_event")},
        "kprobes": Path("/sys/kernel/debug/kprobes/list").read_text(),
        "files": output("find", "/sys/fs/bpf", "/var/cache", "/run", "/lib/modules", "-newer", "/proc/1/stat"),
        "warnings": output("dmesg", "--level=emerg,alert,crit,err,warn"),
    }  # fmt: skip


def test_a_stock_kernel_is_fit_and_stays_as_it_was(cli: Callable[..., Any]) -> None:
    before = state()
    report = doctor()
    assert told(report, BAD) == told(report, UNKNOWN) == set()
    shown = cli("doctor")
    assert shown.returncode == 0
    assert shown.stdout.endswith("dynamos can work here\n")
    assert len(shown.stdout.splitlines()) < 24
    doctor(*NOBODY)
    assert state() == before


def test_a_user_is_told_what_root_could_see() -> None:
    report = doctor(*NOBODY)
    assert told(report, BAD) == {"privilege"}
    assert told(report, UNKNOWN) == {"kernel memory", "symbols", "tracing"}
    assert "run as root" in finding(report, "privilege")


def test_root_without_a_capability_is_told_which() -> None:
    report = doctor("setpriv", "--bounding-set", "-sys_module")
    assert told(report, BAD) == {"privilege"}
    assert "CAP_SYS_MODULE" in finding(report, "privilege")


def test_hidden_headers_are_named_by_their_package() -> None:
    folder = os.path.realpath(f"/lib/modules/{platform.release()}/build")
    report = doctor(*behind(f"[ ! -d {folder} ] || mount -t tmpfs tmpfs {folder}"), own_build=True)
    assert told(report, BAD) - told(doctor(own_build=True), BAD) <= {"headers"}
    assert f"apt install linux-headers-{platform.release()}" in finding(report, "headers")


def test_hidden_symbols_are_told_with_the_setting() -> None:
    with setting("/proc/sys/kernel/kptr_restrict", "2"):
        report = doctor()
    assert told(report, BAD) == {"symbols"}
    assert "kernel.kptr_restrict is 2: sysctl kernel.kptr_restrict=1" in finding(report, "symbols")


@pytest.mark.parametrize("package", ["psutil", "rich"])
def test_a_missing_package_is_named_as_debian_names_it(package: str) -> None:
    (folder,) = __import__(package).__path__
    hide = behind(f"mount -t tmpfs tmpfs {folder}")
    report = doctor(*hide)
    assert told(report, BAD) == {"Python"}
    assert f"apt install python3-{package}" in finding(report, "Python")
    shown = subprocess.run([*hide, sys.executable, "-m", "dynamos_ng", "doctor"],
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert shown.returncode == 1
    assert shown.stdout.endswith("dynamos cannot work here: Python\n")
    assert shown.stderr == ""


def test_file_systems_that_are_not_mounted_are_named() -> None:
    report = doctor(*behind("umount /sys/fs/bpf /sys/kernel/debug"))
    assert told(report, BAD) == {"bpffs", "tracing"}
    assert "mount -t bpf bpf /sys/fs/bpf" in finding(report, "bpffs")
    assert "mount -t debugfs debugfs /sys/kernel/debug" in finding(report, "tracing")


def test_a_running_daemon_is_told(daemon: Daemon) -> None:
    assert daemon.process is not None
    report = doctor()
    assert f"PID {daemon.process.pid}" in finding(report, "dynamos")
    assert "0 of 0 functions redirected" in finding(report, "dynamos")
    assert told(report, BAD) == set()


LOCKED = "nokaslr lockdown="


def is_refused(path: str) -> bool:
    """Tell whether the kernel lets nobody read a file."""
    try:
        with open(path, "rb") as file:
            file.read(1)
    except PermissionError:
        return True
    return False


@pytest.mark.boot(cmdline=LOCKED + "confidentiality")
def test_lockdown_is_named_as_the_one_cause() -> None:
    assert is_refused("/proc/kcore")
    report = doctor()
    assert told(report, BAD) == {"lockdown"}
    assert told(report, UNKNOWN) == {"kernel memory", "tracing"}
    seen = doctor(*behind("mount -t securityfs securityfs /sys/kernel/security"))
    assert told(seen, BAD) == {"lockdown"}
    assert "confidentiality" in finding(seen, "lockdown")


@pytest.mark.boot(cmdline="nokaslr module.sig_enforce=1")
def test_signing_that_is_enforced_is_named() -> None:
    report = doctor()
    assert told(report, BAD) == {"signing"}
    assert "module.sig_enforce" in finding(report, "signing")
