"""What the doctor says of machines whose facts were captured in guests, and of the same with one thing made wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dynamos_ng import doctor
from dynamos_ng import facts as machine
from dynamos_ng.cli import doctor as table
from dynamos_ng.cli import tables
from dynamos_ng.doctor import BAD, OK, UNKNOWN, WARNING, Finding, examine, verdict
from dynamos_ng.facts import Facts

CAPTURED = Path(__file__).with_name("doctor")
STOCK = "6.1-x86_64-stock"


def facts(name: str = STOCK) -> Facts:
    """Return captured facts: the `facts` of `dynamos doctor --json`."""
    plain: dict[str, Any] = json.loads((CAPTURED / f"{name}.json").read_text())
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
    return Facts(**values)


def told(seen: Facts, *verdicts: str) -> list[str]:
    return [finding.name for finding in examine(seen) if finding.verdict in verdicts]


def finding(seen: Facts, name: str) -> Finding:
    return next(one for one in examine(seen) if one.name == name)


def with_file(path: str, text: str) -> Facts:
    seen = facts()
    return replace(seen, files={**seen.files, path: text})


def without_file(path: str, error: str) -> Facts:
    seen = facts()
    kept = {name: text for name, text in seen.files.items() if name != path}
    return replace(seen, files=kept, errors={**seen.errors, path: error})


def without_option(*names: str) -> Facts:
    seen = facts()
    return replace(seen, config={name: value for name, value in seen.config.items() if name not in names})


@pytest.mark.parametrize("path", sorted(CAPTURED.glob("*-stock.json")), ids=lambda path: path.stem)
def test_a_stock_kernel_is_fit(path: Path) -> None:
    findings = examine(facts(path.stem))
    assert [one for one in findings if one.verdict in (BAD, UNKNOWN)] == []
    assert verdict(findings) == "dynamos can work here"
    assert len({one.name for one in findings}) == len(doctor.CHECKS)


def test_a_user_learns_what_root_would_be_told() -> None:
    seen = facts("6.1-x86_64-unprivileged")
    assert told(seen, BAD) == ["privilege"]
    assert told(seen, UNKNOWN) == ["kernel memory", "symbols", "tracing"]
    assert "run as root" in finding(seen, "privilege").advice


def test_a_locked_down_kernel_is_not_blamed_for_what_follows_from_it() -> None:
    seen = facts("6.1-x86_64-confidentiality")
    assert told(seen, BAD) == ["lockdown"]
    assert told(seen, UNKNOWN) == ["kernel memory", "tracing"]
    assert verdict(examine(seen)) == "dynamos cannot work here: lockdown"


STATUS = facts().files[machine.STATUS]
MOUNTS = facts().files[machine.MOUNTS]


def unmounted(kind: str) -> str:
    return "".join(line for line in MOUNTS.splitlines(keepends=True) if line.split()[2] != kind)


#: What is made wrong, the one check that is to say so, and words of what it says.
WRONG: dict[str, tuple[Callable[[], Facts], str, str]] = {
    "architecture": (lambda: replace(facts(), machine="aarch64"), "architecture", "aarch64"),
    "container": (
        lambda: with_file(machine.STATUS, STATUS.replace("CapEff:\t000001ffffffffff", "CapEff:\t000001fffffeffff")),
        "privilege",
        "without CAP_SYS_MODULE",
    ),
    "config": (lambda: without_option("MODULE_UNLOAD", "KPROBES"), "config", "CONFIG_MODULE_UNLOAD"),
    "integrity": (lambda: with_file(machine.LOCKDOWN, "none [integrity] confidentiality\n"), "lockdown", "integrity"),
    "enforced": (lambda: with_file(machine.SIG_ENFORCE, "Y\n"), "signing", "module.sig_enforce"),
    "no modules": (lambda: with_file(machine.MODULES_DISABLED, "1\n"), "signing", "kernel.modules_disabled"),
    "headers": (lambda: replace(facts(), headers=False), "headers", "apt install linux-headers-6.1.0-56-amd64"),
    "compiler": (lambda: replace(facts(), programs={"make": "4"}), "compiler", "apt install gcc-12"),
    "make": (lambda: replace(facts(), programs={"gcc-12": "12"}), "compiler", "apt install make"),
    "kcore": (lambda: without_file(machine.KCORE, "EPERM"), "kernel memory", "EPERM"),
    "hidden": (
        lambda: with_file(machine.KALLSYMS, "0000000000000000 T startup_64\n"), "symbols", "kernel.kptr_restrict"
    ),
    "debugfs": (lambda: with_file(machine.MOUNTS, unmounted("debugfs")), "tracing", "mount -t debugfs"),
    "kprobes": (lambda: with_file(machine.KPROBES_ON, "0\n"), "tracing", "switched off"),
    "bpffs": (lambda: with_file(machine.MOUNTS, unmounted("bpf")), "bpffs", "mount -t bpf"),
    "engine": (lambda: replace(facts(), libraries=()), "probe engine", "apt install python3-bpfcc"),
    "packages": (lambda: replace(facts(), packages=("bcc", "capstone", "rich")), "Python",
                 "apt install python3-pyelftools python3-psutil"),
    "pids": (lambda: with_file(machine.PID_MAX, "5000000\n"), "processes", "5000000"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_and_nothing_else(case: str) -> None:
    make, name, words = WRONG[case]
    seen = make()
    assert told(seen, BAD, WARNING, UNKNOWN) == [name]
    one = finding(seen, name)
    assert one.verdict == BAD
    assert words in f"{one.found}: {one.advice}"


#: The same for what is worth knowing, but stops nobody.
POOR: dict[str, tuple[Callable[[], Facts], str, str]] = {
    "jit": (lambda: with_file(machine.JIT, "0\n"), "BPF", "net.core.bpf_jit_enable=1"),
    "ftrace": (lambda: with_file(machine.FTRACE_ON, "0\n"), "tracing", "kernel.ftrace_enabled=1"),
    "no ftrace": (lambda: without_option("DYNAMIC_FTRACE"), "config", "CONFIG_DYNAMIC_FTRACE"),
    "other compiler": (
        lambda: replace(facts(), compiler="gcc", programs={"gcc": "14", "make": "4"}), "compiler", "apt install gcc-12"
    ),
    "livepatch": (lambda: replace(facts(), livepatches=("fix_of_others",)), "features", "fix_of_others"),
    "modules": (lambda: with_file(machine.MODULES, f"big {900 << 20} 0 - Live 0x0\n"), "module space", "900 of 1008"),
    "stacks": (lambda: without_option("UNWINDER_ORC"), "unwinder", "every word"),
}  # fmt: skip


@pytest.mark.parametrize("case", POOR)
def test_what_is_poor_is_a_warning(case: str) -> None:
    make, name, words = POOR[case]
    seen = make()
    assert told(seen, BAD, WARNING, UNKNOWN) == [name]
    one = finding(seen, name)
    assert one.verdict == WARNING
    assert words in f"{one.found}: {one.advice}"


def test_lockdown_is_what_the_kernel_says_and_else_what_was_asked_for() -> None:
    assert finding(with_file(machine.LOCKDOWN, "[none] integrity confidentiality\n"), "lockdown").found == "none"
    asked = with_file("/proc/cmdline", "quiet lockdown=integrity")
    assert finding(asked, "lockdown").verdict == BAD
    undone = replace(asked, files={**asked.files, machine.LOCKDOWN: "[none] integrity confidentiality\n"})
    assert finding(undone, "lockdown").verdict == OK


def test_secure_boot_alone_forbids_nothing() -> None:
    on = finding(with_file(machine.SECURE_BOOT, "\6\0\0\0\1"), "signing")
    assert (on.verdict, "secure boot is on" in on.found) == (OK, True)


def test_without_a_config_nothing_is_made_up() -> None:
    seen = replace(facts(), config={}, config_source="")
    assert told(seen, BAD) == []
    assert told(seen, UNKNOWN) == ["config", "unwinder"]


def test_where_another_command_builds_no_compiler_is_needed() -> None:
    for name in (STOCK, "6.1-i386-stock"):
        assert told(replace(facts(name), programs={}, builder="/run/lab/kbuild"), BAD) == []


def test_libbpf_wants_a_compiler_of_its_own() -> None:
    seen = facts("6.1-i386-stock")
    without = {name: version for name, version in seen.programs.items() if name != "clang"}
    assert told(replace(seen, programs=without), BAD) == ["probe engine"]
    assert "apt install clang" in finding(replace(seen, programs=without), "probe engine").advice


def test_libbpf_wants_its_headers() -> None:
    seen = replace(facts("6.1-i386-stock"), libbpf_headers=False)
    assert told(seen, BAD) == ["probe engine"]
    assert finding(seen, "probe engine").advice == "apt install libbpf-dev"


def test_a_tracefs_that_came_with_debugfs_is_as_good() -> None:
    elsewhere = MOUNTS.replace(" /sys/kernel/tracing ", " /sys/kernel/debug/tracing ")
    assert elsewhere != MOUNTS
    seen = without_file(machine.KPROBE_EVENTS, "ENOENT")
    assert told(seen, BAD) == ["tracing"]
    assert told(replace(seen, files={**seen.files, machine.MOUNTS: elsewhere}), BAD) == []


def test_the_table_fits_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    output = StringIO()
    monkeypatch.setattr(tables, "console", Console(width=80, file=output, highlight=False))
    table.show(examine(facts()))
    lines = [line.rstrip() for line in output.getvalue().splitlines()]
    assert len(lines) < 23, "with the verdict and the prompt it is 24 lines"
    assert all(len(line) <= 80 for line in lines)
    assert "✓  probe engine   bcc (libbcc.so.0)" in lines


def test_nothing_needs_a_package_that_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "look", lambda _: replace(facts(), packages=()))
    assert doctor.main(as_json=False) == 1
    out = capsys.readouterr().out
    assert "bad      Python        missing: python3-capstone, python3-pyelftools" in out
    assert out.splitlines()[-1] == "dynamos cannot work here: probe engine, Python"
    assert doctor.main(as_json=True) == 1
    report: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert report["works"] is False
    assert {one["name"] for one in report["findings"] if one["verdict"] == BAD} == {"probe engine", "Python"}
