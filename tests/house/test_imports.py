"""Arrows point one way: values, pure logic, kernel access, manager, daemon, command line."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "dynamos_ng"
#: A module may import from its own layer and those before it.
LAYERS: tuple[tuple[str, frozenset[str]], ...] = (
    ("values", frozenset({"closing", "errors", "latency", "model", "policy_values", "printable", "wire", "uapi"})),
    ("pure logic", frozenset({"arch", "rewrite", "policy", "elf"})),
    (
        "kernel access",
        frozenset(
            {"adaptation", "bpf", "bpfmaps", "build", "cache", "cgroups", "code_tables", "device", "engine", "host",
             "image", "kallsyms", "kprobes", "memory", "module_image", "modules", "neighbours", "policymaps", "probes",
             "stacks", "survey", "timing", "uevents", "vmlinuz"}
        ),
    ),
    (
        "manager",
        frozenset(
            {"boot", "enforcement", "explanation", "history", "holders", "journal", "jsonlines", "manager", "pending",
             "quiescence", "recording", "view"}
        ),
    ),
    ("daemon", frozenset({"daemon", "control", "metrics", "roles", "service"})),
    ("command line", frozenset({"cli", "dashboard", "demo", "doctor", "facts", "lab", "setup", "__main__"})),
)  # fmt: skip
RANK = {module: rank for rank, (_, modules) in enumerate(LAYERS) for module in modules}
#: What one module may import of this package, where the layers would allow it more: the dashboard knows no source.
MAY_IMPORT = {"dashboard": {"dashboard", "closing", "errors", "latency", "model", "policy_values", "printable"}}
ONLY_IMPORTER = {
    "bcc": {"engine"}, "psutil": {"host"}, "capstone": {"arch", "rewrite"}, "prometheus_client": {"metrics"},
}  # fmt: skip


def parts() -> dict[str, list[Path]]:
    """Return the files of each module or package of the first level."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent == PACKAGE and path.name == "__init__.py":
            continue
        found.setdefault(path.relative_to(PACKAGE).parts[0].removesuffix(".py"), []).append(path)
    return found


def imported(path: Path) -> Iterator[tuple[str, int, bool]]:
    """Yield every imported module, its line, and whether the import is at the top of the file."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if not isinstance(node, ast.stmt | ast.expr):
            continue
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [ast.literal_eval(node.args[0])]
        for name in names:
            yield name, node.lineno, node in tree.body


def test_every_module_has_a_layer() -> None:
    assert sorted(set(parts()) - set(RANK)) == []


@pytest.mark.parametrize("module", sorted(parts()))
def test_no_arrow_runs_back(module: str) -> None:
    back = []
    for path in parts()[module]:
        for name, line, _ in imported(path):
            other = name.split(".")[1] if name.startswith("dynamos_ng.") else ""
            if RANK.get(other, -1) > RANK[module]:
                back.append(f"{path.relative_to(ROOT)}:{line}: {module} imports {name}")
    assert not back


@pytest.mark.parametrize("module", sorted(MAY_IMPORT))
def test_a_module_knows_no_more_than_it_must(module: str) -> None:
    names = {name for path in parts()[module] for name, _, _ in imported(path)}
    known = {name.split(".")[1] for name in names if name.startswith("dynamos_ng.")}
    assert "model" in known
    assert known <= MAY_IMPORT[module]


@pytest.mark.parametrize("library", sorted(ONLY_IMPORTER))
def test_a_library_has_few_importers(library: str) -> None:
    importers = {
        module
        for module, paths in parts().items()
        for path in paths
        for name, _, _ in imported(path)
        if name.split(".")[0] == library
    }
    assert importers
    assert importers <= ONLY_IMPORTER[library]


@pytest.mark.parametrize("module", ["__main__", "doctor", "facts", "setup", "lab", "errors"])
def test_a_fresh_machine_can_start(module: str) -> None:
    """Before anything is installed there is only the standard library."""
    standard = sys.stdlib_module_names | {"dynamos_ng"}
    foreign = []
    for path in parts()[module]:
        if path.name.startswith("pytest_"):
            continue
        for name, line, at_top in imported(path):
            if at_top and name.split(".")[0] not in standard:
                foreign.append(f"{path.relative_to(ROOT)}:{line}: {name}")
    assert not foreign
