"""What can be seen of this machine and its kernel without changing anything.

Standard library only, for what is missing may be anything else. Paths that would mount something when they are touched
(tracefs inside debugfs) are left alone.
"""

from __future__ import annotations

import ctypes
import errno
import gzip
import importlib.util
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Callable, Container, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from dynamos_ng import control
from dynamos_ng.build import kbuild
from dynamos_ng.device import Device
from dynamos_ng.errors import DaemonUnreachable, DynamosError

#: Debian's package, by Python package.
PACKAGES = {
    "capstone": "python3-capstone",
    "elftools": "python3-pyelftools",
    "psutil": "python3-psutil",
    "rich": "python3-rich",
}
#: What serves the probes, best first: Python package or "", library, and Debian's package.
ENGINES = {"bcc": ("bcc", "libbcc.so.0", "python3-bpfcc"), "libbpf": ("", "libbpf.so.1", "libbpf1")}
#: Modes of lockdown, and what they forbid.
LOCKED = {
    "integrity": "unsigned modules are refused",
    "confidentiality": "unsigned modules, kernel memory and kprobes are refused",
}
KCORE, KALLSYMS, MOUNTS, STATUS = "/proc/kcore", "/proc/kallsyms", "/proc/self/mounts", "/proc/self/status"
LOCKDOWN = "/sys/kernel/security/lockdown"
SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
SIG_ENFORCE = "/sys/module/module/parameters/sig_enforce"
MODULES_DISABLED, MODULES = "/proc/sys/kernel/modules_disabled", "/proc/modules"
KPTR_RESTRICT, PID_MAX = "/proc/sys/kernel/kptr_restrict", "/proc/sys/kernel/pid_max"
UNPRIVILEGED_BPF, JIT = "/proc/sys/kernel/unprivileged_bpf_disabled", "/proc/sys/net/core/bpf_jit_enable"
BLACKLIST, KPROBES_ON = "/sys/kernel/debug/kprobes/blacklist", "/sys/kernel/debug/kprobes/enabled"
KPROBE_EVENTS, FTRACE_ON = "/sys/kernel/tracing/kprobe_events", "/proc/sys/kernel/ftrace_enabled"
VULNERABILITIES = "/sys/devices/system/cpu/vulnerabilities/"
THUNKS = ("spectre_v2", "retbleed", "spec_rstack_overflow", "indirect_target_selection")
TEXTS = (MOUNTS, STATUS, "/proc/cmdline", "/proc/version", "/proc/meminfo", LOCKDOWN, SIG_ENFORCE, MODULES_DISABLED,
         MODULES, KPTR_RESTRICT, PID_MAX, UNPRIVILEGED_BPF, JIT, KPROBES_ON, KPROBE_EVENTS, FTRACE_ON,
         *(VULNERABILITIES + name for name in THUNKS))  # fmt: skip


@dataclass(frozen=True)
class Facts:
    """What was seen of a machine.

    `files` has the text of what could be read (of some, just what matters), `errors` the errno's name of what could
    not. `config` has options without CONFIG_, from `config_source`. `programs` gives compilers and make with their
    major version, `folders` the names in some folders, `builder` the command that builds in place of make.
    """

    machine: str
    release: str
    files: Mapping[str, str] = field(default_factory=dict)
    errors: Mapping[str, str] = field(default_factory=dict)
    config: Mapping[str, str] = field(default_factory=dict)
    config_source: str = ""
    headers: bool = False
    compiler: str = "gcc"
    builder: str = ""
    programs: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    libbpf_headers: bool = False
    livepatches: tuple[str, ...] = ()
    btf: bool = False
    ibt: bool = False
    module: str = ""
    daemon: str = ""

    def text(self, path: str) -> str:
        """Return a file's text without white space around it, empty if it could not be read."""
        return self.files.get(path, "").strip()

    def denied(self, path: str) -> bool:
        """Tell whether a file is there, but not for us."""
        return self.errors.get(path) in ("EACCES", "EPERM")

    @property
    def lockdown(self) -> str:
        """Return the kernel's lockdown mode: integrity, confidentiality, or an empty text for none."""
        told = re.search(r"\[(\w+)\]", self.text(LOCKDOWN))
        asked = re.search(r"\blockdown=(\w+)", self.text("/proc/cmdline"))
        forced = (word for word in LOCKED if f"LOCK_DOWN_KERNEL_FORCE_{word.upper()}" in self.config)
        mode = told[1] if told else asked[1] if asked else next(forced, "")
        return mode if mode in LOCKED else ""

    @property
    def user(self) -> int:
        """Return the effective user's number."""
        match = re.search(r"^Uid:\s+\d+\s+(\d+)", self.files.get(STATUS, ""), re.MULTILINE)
        return int(match[1]) if match else 0

    def mounted(self, kind: str) -> str:
        """Return where a file system of a kind is mounted first, or an empty text."""
        rows = (line.split() for line in self.files.get(MOUNTS, "").splitlines())
        return next((row[1] for row in rows if len(row) > 2 and row[2] == kind), "")


def _config(release: str, wanted: Container[str]) -> tuple[str, dict[str, str]]:
    """Return where the kernel's config is, and those of its options that are wanted."""
    build = f"/lib/modules/{release}/build"
    for path in (f"/boot/config-{release}", "/proc/config.gz", f"/lib/modules/{release}/config", f"{build}/.config",
                 f"{build}/include/config/auto.conf"):  # fmt: skip
        with suppress(OSError):
            raw = Path(path).read_bytes()
            text = (gzip.decompress(raw) if path.endswith(".gz") else raw).decode(errors="replace")
            options = re.findall(r"^CONFIG_(\w+)=(.*)$", text, re.MULTILINE)
            return path, {name: value for name, value in options if name in wanted}
    return "", {}


def _first_function(path: str) -> str:
    with open(path) as lines:
        return next((line for line in lines if line.split()[1] in "tT"), "")


def _readers() -> Iterable[tuple[str, Callable[[str], str]]]:
    """Yield each file with what reads it, or the part of it that matters."""
    yield from ((path, lambda path: Path(path).read_text(errors="replace")) for path in TEXTS)
    yield from ((path, lambda path: Path(path).read_bytes().decode("latin-1")) for path in (SECURE_BOOT,))
    yield KALLSYMS, _first_function
    yield BLACKLIST, _first_line
    yield KCORE, _first_bytes


def _first_line(path: str) -> str:
    with open(path) as lines:
        return lines.readline()


def _first_bytes(path: str) -> str:
    with open(path, "rb") as file:
        return file.read(4).decode("latin-1")


def _read() -> tuple[dict[str, str], dict[str, str]]:
    files, errors = {}, {}
    for path, read in _readers():
        try:
            files[path] = read(path)
        except OSError as error:
            errors[path] = errno.errorcode.get(error.errno or 0, str(error))
    return files, errors


def _compiler(build: Path) -> str:
    """Return the compiler that Debian's headers name, or gcc."""
    with suppress(OSError):
        named = re.search(r"^CC = .*?([\w-]+)$", (build / ".kernelvariables").read_text(), re.MULTILINE)
        if named:
            return named[1]
    return "gcc"


def _programs(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        if shutil.which(name):
            argv = [name, "--version" if name == "make" else "-dumpversion"]
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
            number = re.search(r"\d+", done.stdout)
            found[name] = number[0] if number else ""
    return found


def _importable(package: str) -> bool:
    """Tell whether a package is installed; a mere folder of that name is none."""
    spec = importlib.util.find_spec(package)
    return spec is not None and spec.origin is not None


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _module() -> str:
    """Return what dynamos.ko says of itself, empty if it is not loaded."""
    if not Path("/sys/module/dynamos").exists():
        return ""
    try:
        with Device() as device:
            info = device.info()
    except DynamosError as error:
        return f"loaded, but {error}"
    return f"{info.redirected} of {info.functions} functions redirected"


def _daemon() -> str:
    try:
        answer = control.call("ping")
    except DaemonUnreachable as error:
        return "" if not control.SOCKET.exists() else str(error)
    except DynamosError as error:
        return str(error)
    return f"{answer['version']}, PID {answer['pid']}"


def look(options: Container[str]) -> Facts:
    """Return the facts of this machine; what cannot be seen is left out. OPTIONS are the kernel's that are wanted."""
    release = platform.release()
    build = Path("/lib/modules") / release / "build"
    files, errors = _read()
    source, found = _config(release, options)
    named = _compiler(build)
    modules = (*PACKAGES, *(package for package, _, _ in ENGINES.values() if package))
    try:
        processor = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        patches = tuple(sorted(os.listdir("/sys/kernel/livepatch")))
    except OSError:
        processor, patches = "", ()
    return Facts(
        machine=platform.machine(),
        release=release,
        files=files,
        errors=errors,
        config=found,
        config_source=source,
        headers=(build / "Makefile").exists(),
        compiler=named,
        builder=os.environ.get(kbuild.COMMAND, ""),
        programs=_programs(named, "make", "clang"),
        packages=tuple(name for name in modules if _importable(name)),
        libraries=tuple(library for _, library, _ in ENGINES.values() if _loads(library)),
        libbpf_headers=Path("/usr/include/bpf/bpf_helpers.h").exists(),
        livepatches=patches,
        btf=Path("/sys/kernel/btf/vmlinux").exists(),
        ibt=bool(re.search(r"^flags.*\bibt\b", processor, re.MULTILINE)),
        module=_module(),
        daemon=_daemon(),
    )
