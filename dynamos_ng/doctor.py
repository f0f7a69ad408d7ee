"""What works on this machine's kernel, what does not, and why: one pure function per check, from facts to a finding."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from dynamos_ng import bpfmaps
from dynamos_ng.facts import (
    BLACKLIST,
    ENGINES,
    FTRACE_ON,
    JIT,
    KALLSYMS,
    KCORE,
    KPROBE_EVENTS,
    KPROBES_ON,
    KPTR_RESTRICT,
    LOCKDOWN,
    LOCKED,
    MODULES,
    MODULES_DISABLED,
    MOUNTS,
    PACKAGES,
    PID_MAX,
    SECURE_BOOT,
    SIG_ENFORCE,
    STATUS,
    THUNKS,
    UNPRIVILEGED_BPF,
    VULNERABILITIES,
    Facts,
    look,
)

OK, WARNING, BAD, UNKNOWN = "ok", "warning", "bad", "unknown"
MACHINES = ("x86_64", "i686")
#: Options of the kernel without which nothing works, and what needs them.
NEEDED = {
    "MODULES": "updates are modules",
    "MODULE_UNLOAD": "an update could never be taken back",
    "KALLSYMS": "functions are found by name",
    "PROC_KCORE": "functions are read from memory",
    "DEBUG_FS": "the list of what must not be probed is there",
    "KPROBES": "calls of originals are counted",
    "KPROBE_EVENTS": "calls of originals are counted",
    "PERF_EVENTS": "stacks are sampled",
    "BPF_SYSCALL": "policy is kept in BPF maps",
    "BPF_EVENTS": "processes are classified at fork, exec and exit",
}
#: Options that help, and what is lost without them.
HELPFUL = {
    "DYNAMIC_FTRACE": "functions have no ftrace site: trampolines stand at the entry, where probes cannot",
    "BPF_JIT": "BPF programs are interpreted, which is slow",
}
#: Options that findings tell of.
TOLD = ("CC_VERSION_TEXT", "LIVEPATCH", "X86_KERNEL_IBT", "UNWINDER_ORC", "UNWINDER_FRAME_POINTER", "UNWINDER_GUESS",
        "MODULE_SIG_FORCE", "RANDOMIZE_BASE", "LOCK_DOWN_KERNEL_FORCE_INTEGRITY",
        "LOCK_DOWN_KERNEL_FORCE_CONFIDENTIALITY")  # fmt: skip
CAPABILITIES = {
    "CAP_DAC_READ_SEARCH": 2, "CAP_SYS_MODULE": 16, "CAP_SYS_RAWIO": 17, "CAP_SYS_ADMIN": 21, "CAP_SYSLOG": 34,
    "CAP_PERFMON": 38, "CAP_BPF": 39,
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What one check found: `verdict` is ok, warning, bad or unknown; `advice` is what to do, if anything."""

    name: str
    verdict: str
    found: str
    advice: str = ""


def architecture(facts: Facts) -> Finding:
    """Is there code for this processor?"""
    found = f"{facts.machine}, kernel {facts.release}"
    if facts.machine in MACHINES:
        return Finding("architecture", OK, found)
    return Finding("architecture", BAD, found, f"only {' and '.join(MACHINES)} can be changed")


def privilege(facts: Facts) -> Finding:
    """May we do all that root may?"""
    match = re.search(r"^CapEff:\s+([0-9a-f]+)", facts.files.get(STATUS, ""), re.MULTILINE)
    have = int(match[1], 16) if match else 0
    lacking = [name for name, bit in CAPABILITIES.items() if not have >> bit & 1]
    if facts.user:
        advice = "run as root; that also tells what is unknown here"
        return Finding("privilege", BAD, f"user {facts.user}, not root", advice)
    if lacking:
        return Finding("privilege", BAD, f"root, but without {', '.join(lacking)}", "run outside the container")
    return Finding("privilege", OK, "root, with all capabilities that are needed")


def config(facts: Facts) -> Finding:
    """Was the kernel built with what is needed?"""
    if not facts.config:
        places = f"/boot/config-{facts.release}, /proc/config.gz and the headers"
        return Finding("config", UNKNOWN, f"not to be found: looked for {places}")
    lost = [f"no CONFIG_{name}: {why}" for name, why in NEEDED.items() if name not in facts.config]
    if lost:
        return Finding("config", BAD, "; ".join(lost), "another kernel is needed")
    poor = [f"no CONFIG_{name}: {why}" for name, why in HELPFUL.items() if name not in facts.config]
    if poor:
        return Finding("config", WARNING, "; ".join(poor))
    return Finding("config", OK, f"{len(NEEDED) + len(HELPFUL)} options as they must be, in {facts.config_source}")


def lockdown(facts: Facts) -> Finding:
    """Does the kernel protect itself from root?"""
    if facts.lockdown:
        advice = "boot without lockdown=, and with secure boot off"
        return Finding("lockdown", BAD, f"{facts.lockdown}: {LOCKED[facts.lockdown]}", advice)
    told = LOCKDOWN in facts.files
    return Finding("lockdown", OK, "none" if told else "none asked for at boot; securityfs is not mounted")


def signing(facts: Facts) -> Finding:
    """Does the kernel take modules that nobody signed?"""
    secure = facts.files.get(SECURE_BOOT, "")[-1:] == "\1"
    if facts.text(MODULES_DISABLED) == "1":
        return Finding("signing", BAD, "kernel.modules_disabled is 1: no module is taken until a reboot", "reboot")
    if facts.text(SIG_ENFORCE) == "Y" or "MODULE_SIG_FORCE" in facts.config:
        why = "CONFIG_MODULE_SIG_FORCE" if "MODULE_SIG_FORCE" in facts.config else "module.sig_enforce"
        return Finding("signing", BAD, f"modules must be signed ({why})", "boot without it, and with secure boot off")
    if SIG_ENFORCE in facts.errors and not facts.config:
        return Finding("signing", UNKNOWN, "whether modules must be signed is not told")
    return Finding("signing", OK, "unsigned modules are taken; secure boot is " + ("on" if secure else "off"))


def headers(facts: Facts) -> Finding:
    """Can modules be built for this kernel?"""
    where = f"/lib/modules/{facts.release}/build"
    if facts.headers:
        return Finding("headers", OK, where)
    return Finding("headers", BAD, f"{where} is not there", f"apt install linux-headers-{facts.release}")


def compiler(facts: Facts) -> Finding:
    """Is the compiler there that the kernel was built with?"""
    if facts.builder:
        return Finding("compiler", OK, f"not needed here: {facts.builder} builds")
    own = re.search(r"\(\S*?(gcc|clang)\S* .*?(\d+)\.\d+\.\d+[,)]", facts.text("/proc/version"))
    absent = [name for name in (facts.compiler, "make") if name not in facts.programs]
    if absent:
        return Finding("compiler", BAD, f"{' and '.join(absent)}: not installed", f"apt install {' '.join(absent)}")
    have = facts.programs[facts.compiler]
    if own is None:
        return Finding("compiler", UNKNOWN, f"{facts.compiler} {have}; the kernel's own is not told")
    found = f"{facts.compiler} is of version {have}, the kernel was built by {own[1]} {own[2]}"
    if have == own[2]:
        return Finding("compiler", OK, found)
    return Finding("compiler", WARNING, found, f"apt install {own[1]}-{own[2]}")


def memory(facts: Facts) -> Finding:
    """Can the kernel's memory be read?"""
    if facts.text(KCORE).startswith("\x7fELF"):
        return Finding("kernel memory", OK, f"{KCORE} can be read")
    if facts.user:
        return Finding("kernel memory", UNKNOWN, f"{KCORE} is for root only")
    if facts.lockdown == "confidentiality":
        return Finding("kernel memory", UNKNOWN, "closed by lockdown")
    problem = facts.errors.get(KCORE, "no ELF file")
    why = "CONFIG_PROC_KCORE" if problem == "ENOENT" else "no lockdown, and CAP_SYS_RAWIO"
    return Finding("kernel memory", BAD, f"{KCORE}: {problem}", f"needs {why}")


def symbols(facts: Facts) -> Finding:
    """Does the kernel tell where its functions are?"""
    line = facts.text(KALLSYMS)
    if line and int(line.split()[0], 16):
        return Finding("symbols", OK, f"{KALLSYMS} tells addresses")
    hidden = f"kernel.kptr_restrict is {facts.text(KPTR_RESTRICT)}"
    if facts.user:
        return Finding("symbols", UNKNOWN, f"addresses are for root only ({hidden})")
    if not line:
        return Finding("symbols", BAD, f"{KALLSYMS}: {facts.errors.get(KALLSYMS, 'no functions')}")
    return Finding("symbols", BAD, f"addresses are hidden: {hidden}", "sysctl kernel.kptr_restrict=1")


def tracing(facts: Facts) -> Finding:
    """Can kprobes be set, and is known where they must not be?"""
    if not facts.mounted("debugfs"):
        return Finding("tracing", BAD, "debugfs is not mounted", "mount -t debugfs debugfs /sys/kernel/debug")
    if facts.user and (facts.denied(KPROBE_EVENTS) or facts.denied(BLACKLIST)):
        return Finding("tracing", UNKNOWN, "tracefs and debugfs are mounted, for root only")
    if facts.lockdown == "confidentiality":
        return Finding("tracing", UNKNOWN, "closed by lockdown")
    if BLACKLIST in facts.errors:
        return Finding("tracing", BAD, f"{BLACKLIST}: {facts.errors[BLACKLIST]}", "needs CONFIG_KPROBES")
    if KPROBE_EVENTS in facts.errors and facts.mounted("tracefs") == KPROBE_EVENTS.rpartition("/")[0]:
        return Finding("tracing", BAD, f"{KPROBE_EVENTS}: {facts.errors[KPROBE_EVENTS]}", "needs CONFIG_KPROBE_EVENTS")
    if facts.text(KPROBES_ON) == "0":
        return Finding("tracing", BAD, "kprobes are switched off", f"echo 1 > {KPROBES_ON}")
    if facts.text(FTRACE_ON) == "0":
        advice = "sysctl kernel.ftrace_enabled=1"
        return Finding("tracing", WARNING, "ftrace is switched off: originals cannot be counted", advice)
    where = facts.mounted("tracefs") or "/sys/kernel/debug/tracing, mounted when first used"
    return Finding("tracing", OK, f"kprobes can be set; tracefs at {where}")


def bpffs(facts: Facts) -> Finding:
    """Can maps be pinned?"""
    rows = [line.split() for line in facts.files.get(MOUNTS, "").splitlines()]
    if any(row[1:3] == [str(bpfmaps.BPFFS), "bpf"] for row in rows):
        return Finding("bpffs", OK, f"mounted at {bpfmaps.BPFFS}")
    return Finding("bpffs", BAD, f"not mounted at {bpfmaps.BPFFS}", f"mount -t bpf bpf {bpfmaps.BPFFS}")


def bpf(facts: Facts) -> Finding:
    """Who may use BPF, and how fast is it?"""
    who = {"0": "anybody may use some of it", "1": "for root only, for good", "2": "for root only"}
    found = who.get(facts.text(UNPRIVILEGED_BPF), "who may use it is not told")
    if facts.text(JIT) == "0":
        return Finding("BPF", WARNING, f"{found}; interpreted, which is slow", "sysctl net.core.bpf_jit_enable=1")
    return Finding("BPF", OK, found + ("; compiled" if facts.text(JIT) else ""))


def btf(facts: Facts) -> Finding:
    """Does the kernel describe its own types?"""
    if facts.btf:
        return Finding("BTF", OK, "/sys/kernel/btf/vmlinux")
    return Finding("BTF", OK, "none: there is no fentry")


def engine(facts: Facts) -> Finding:
    """What serves the probes? bcc compiles what it runs, for libbpf that is done ahead."""
    bcc = ENGINES["bcc"][2]
    for name, (package, library, _) in ENGINES.items():
        if library not in facts.libraries or (package and package not in facts.packages):
            continue
        if not package and not facts.builder and "clang" not in facts.programs:
            advice = f"apt install {bcc if facts.machine == 'x86_64' else 'clang libbpf-dev'}"
            return Finding("probe engine", BAD, f"{name}, but no clang for it", advice)
        if not package and not facts.builder and not facts.libbpf_headers:
            return Finding("probe engine", BAD, f"{name}, but not its headers", "apt install libbpf-dev")
        return Finding("probe engine", OK, f"{name} ({library})")
    wanted = bcc if facts.machine == "x86_64" else f"{ENGINES['libbpf'][2]} clang libbpf-dev"
    return Finding("probe engine", BAD, f"neither {' nor '.join(ENGINES)}", f"apt install {wanted}")


def unwinder(facts: Facts) -> Finding:
    """How are kernel stacks read?"""
    if "UNWINDER_ORC" in facts.config:
        return Finding("unwinder", OK, "ORC: clones bring their own entries")
    if "UNWINDER_FRAME_POINTER" in facts.config:
        return Finding("unwinder", OK, "frame pointers: every word of a stack is judged")
    if facts.config:
        return Finding("unwinder", WARNING, "none that is certain: every word of a stack is judged")
    return Finding("unwinder", UNKNOWN, "the kernel's config is not to be found")


def features(facts: Facts) -> Finding:
    """What else is in the kernel's code?"""
    has = ["livepatch" if "LIVEPATCH" in facts.config else "no livepatch"]
    has.append("IBT" if facts.ibt and "X86_KERNEL_IBT" in facts.config else "IBT off"
               if "X86_KERNEL_IBT" in facts.config else "no IBT")  # fmt: skip
    thunks = [text.removeprefix("Mitigation: ").partition(";")[0] for name in THUNKS
              if (text := facts.text(VULNERABILITIES + name)).startswith("Mitigation:")]  # fmt: skip
    found = ", ".join([*has, *dict.fromkeys(thunks)])
    if facts.livepatches:
        names = ", ".join(facts.livepatches)
        return Finding("features", WARNING, f"{found}; live patches: {names}", "what they replace cannot be redirected")
    return Finding("features", OK, found)


def python(facts: Facts) -> Finding:
    """Are the Python packages there?"""
    missing = [debian for name, debian in PACKAGES.items() if name not in facts.packages]
    if missing:
        return Finding("Python", BAD, f"missing: {', '.join(missing)}", f"apt install {' '.join(missing)}")
    return Finding("Python", OK, ", ".join(PACKAGES))


def processes(facts: Facts) -> Finding:
    """Has the policy map room for every process?"""
    limit = facts.text(PID_MAX)
    if not limit:
        return Finding("processes", UNKNOWN, "kernel.pid_max is not told")
    if int(limit) > bpfmaps.PID_LIMIT:
        advice = f"sysctl kernel.pid_max={bpfmaps.PID_LIMIT}"
        return Finding("processes", BAD, f"kernel.pid_max is {limit}: too many for the policy map", advice)
    return Finding("processes", OK, f"pid_max {limit}, the policy map has {bpfmaps.PID_LIMIT}")


def space(facts: Facts) -> Finding:
    """Is there room for more modules?"""
    used = sum(int(line.split()[1]) for line in facts.text(MODULES).splitlines()) >> 20
    if facts.machine == "x86_64":
        # From the end of the kernel's image to MODULES_END; with KASLR the image has twice the room.
        room = 1008 if "RANDOMIZE_BASE" in facts.config else 1520
    else:
        match = re.search(r"^VmallocTotal:\s+(\d+)", facts.text("/proc/meminfo"), re.MULTILINE)
        room = int(match[1]) >> 10 if match else 0
    found = f"modules hold {used} of {room} MiB"
    if used < room * 3 // 4:
        return Finding("module space", OK, found)
    return Finding("module space", WARNING, found, "unload modules that are not needed")


def dynamos(facts: Facts) -> Finding:
    """Is dynamos at work already?"""
    found = f"dynamos.ko: {facts.module or 'not loaded'}; dynamosd: {facts.daemon or 'does not run'}"
    return Finding("dynamos", OK, found)


CHECKS: tuple[Callable[[Facts], Finding], ...] = (
    architecture, privilege, config, lockdown, signing, headers, compiler, memory, symbols, tracing, bpffs, bpf, btf,
    engine, unwinder, features, python, processes, space, dynamos,
)  # fmt: skip


def examine(facts: Facts) -> tuple[Finding, ...]:
    """Return what each check finds."""
    return tuple(check(facts) for check in CHECKS)


def verdict(findings: Iterable[Finding]) -> str:
    """Return in one line whether dynamos can work, and if not, for which checks."""
    bad = [finding.name for finding in findings if finding.verdict == BAD]
    return f"dynamos cannot work here: {', '.join(bad)}" if bad else "dynamos can work here"


def plain(findings: Iterable[Finding]) -> None:
    """Print findings as lines of text."""
    for one in findings:
        print(f"{one.verdict:8} {one.name:13} {one.found}" + (f": {one.advice}" if one.advice else ""))


def main(as_json: bool, show: Callable[[Sequence[Finding]], None] = plain) -> int:
    """Look, and show findings and verdict, or print them as JSON with the facts; returns 0 if dynamos can work, else 1.

    Nothing that could be missing is needed, unless SHOW needs it.
    """
    facts = look({*NEEDED, *HELPFUL, *TOLD})
    findings = examine(facts)
    works = all(finding.verdict != BAD for finding in findings)
    if as_json:
        told = {"works": works, "findings": [dataclasses.asdict(one) for one in findings]}
        print(json.dumps({**told, "facts": dataclasses.asdict(facts)}, indent=2))
    else:
        show(findings)
        print(verdict(findings))
    return 0 if works else 1
