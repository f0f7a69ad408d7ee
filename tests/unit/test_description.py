"""update.toml: what is accepted, and that each mistake is told by file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from dynamos_ng.build import description
from dynamos_ng.errors import UsageError

GOOD = """
name = "cmdline"
[[function]]
name = "cmdline_proc_show"
editions = [3, 2]
"""


def folder(tmp_path: Path, text: str, *sources: str) -> Path:
    (tmp_path / description.FILE).write_text(text)
    for source in sources:
        (tmp_path / source).write_text("")
    return tmp_path


def test_a_description_names_module_sources_and_editions(tmp_path: Path) -> None:
    found = description.read(folder(tmp_path, GOOD, "b.c", "a.c"))
    assert found.module == "dynamos_cmdline"
    assert [source.name for source in found.sources] == ["a.c", "b.c"]
    assert found.functions == (description.FunctionChange("cmdline_proc_show", 0, (2, 3)),)
    assert found.functions[0].symbol(2) == "cmdline_proc_show_v2"


def test_a_file_in_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / description.FILE
    path.write_bytes(b'summary = "caf\xe9"\n')
    with pytest.raises(UsageError, match=rf"{path}: .*utf-8"):
        description.read(tmp_path)


def test_an_update_may_have_variables_alone(tmp_path: Path) -> None:
    text = '[[variable]]\nname = "limit"\ntype = "s32"\nvalue = -1\nexpected = 7\n'
    found = description.read(folder(tmp_path, 'name = "alone"\n' + text))
    assert found.functions == ()
    assert found.variables == (description.VariableChange("limit", "s32", -1, 7),)


def test_an_adaptation_handler_is_no_source_of_editions(tmp_path: Path) -> None:
    (tmp_path / "a.bpf.c").write_text("int choose(void *ctx)\n{\n\treturn 1;\n}\n")
    text = '[[function]]\nname = ["f", "g"]\neditions = [2]\nadapt = "a.bpf.c:choose"\n'
    found = description.read(folder(tmp_path, f'name = "u"\n{text}', "a.c"))
    assert [source.name for source in found.sources] == ["a.c"]
    assert found.functions[0].adapt == description.Handler("a.bpf.c", "choose")
    assert (found.functions[0].name, found.functions[0].others) == ("f", ("g",))


def test_a_function_of_a_module(tmp_path: Path) -> None:
    text = '[[function]]\nname = "f"\nmodule = "dm-mod"\n[[function]]\nname = "f"\n'
    found = description.read(folder(tmp_path, text))
    assert [(change.name, change.module) for change in found.functions] == [("f", "dm_mod"), ("f", "")]
    assert found.modules == ("dm_mod",)


def test_dash_and_underscore_are_the_same() -> None:
    assert description.module_name("two-words") == description.module_name("two_words") == "dynamos_two_words"
    assert description.update_name("dynamos_two_words") == "two_words"


@pytest.mark.parametrize(
    ("text", "key", "remedy"),
    [
        ('name = "Bad Name"\n[[function]]\nname = "f"', "name", "lower-case"),
        ('[[function]]\nname = "f"\nedition = [2]', "function 1: edition", "editions"),
        ('[[function]]\nname = "f g"', "function 1: name", "kernel function"),
        ('[[function]]\nname = "f"\neditions = [1]', "function 1: editions", "from 2"),
        ('[[function]]\nname = "f"\neditions = [16]', "function 1: editions", "to 15"),
        ('[[function]]\nname = "f"\neditions = [2, 2]', "function 1: editions", "twice"),
        ('[[function]]\nname = "f"\neditions = [2]', "sources", "needs a C source"),
        ('[[function]]\nname = "f"\n[[function]]\nname = "f"', "function", "twice"),
        ('sources = ["../x.c"]\n[[function]]\nname = "f"', "sources", "not a C file"),
        ('[[function]]\nname = "f"\nmodule = "dynamos_x"', "function 1: module", "is an update"),
        ('[[function]]\nname = "f"\nmodule = "a b"', "function 1: module", "kernel module"),
        ('[[function]]\nname = "f"\nposition = 0', "position", "from 1"),
        ('[[function]]\nname = "f"\n[symbols]\ng = "x"', "g", "number"),
        ("name = 3", "name", "text"),
        ('[[function]]\nname = ["f", "g h"]', "function 1: name", "'g h' is not"),
        ('[[function]]\nname = []', "function 1: name", "kernel function"),
        ('[[function]]\nname = "f"\nadapt = 3', "adapt", "text"),
        ('[[function]]\nname = "f"\nadapt = "a.bpf.c"', "function 1: adapt", "FILE:PROGRAM"),
        ('[[function]]\nname = "f"\nadapt = "a.c:choose"', "function 1: adapt", "*.bpf.c"),
        ('[[function]]\nname = "f"\nadapt = "../a.bpf.c:choose"', "function 1: adapt", "in this folder"),
        ('[[function]]\nname = "f"\nadapt = "none.bpf.c:choose"', "function 1: adapt", "none.bpf.c cannot be read"),
        ('[[function]]\nname = "f"\nadapt = "a.bpf.c:other"', "function 1: adapt", "no program other"),
        ('consistent = true\n[[function]]\nname = "f"\nadapt = "a.bpf.c:choose"', "consistent", "program's"),
        ('sources = ["a.bpf.c"]\n[[function]]\nname = "f"', "sources", "adapt"),
        ("", "function", "needs a"),
        ('[[variable]]\nname = "v"\ntype = "int"\nvalue = 1', "variable 1: type", "u32"),
        ('[[variable]]\nname = "v"\ntype = "u32"', "variable 1: value", "missing"),
        ('[[variable]]\nname = "v"\ntype = "bool"\nvalue = 1', "variable 1: value", "true or false"),
        ('[[variable]]\nname = "v"\ntype = "u32"\nvalue = 1\nexpected = "x"', "variable 1: expected", "number"),
        ("name = [", "", ""),
    ],
)
def test_each_mistake_names_file_and_key(tmp_path: Path, text: str, key: str, remedy: str) -> None:
    (tmp_path / "a.bpf.c").write_text("int choose(void *ctx) { return other(ctx); }\n")
    with pytest.raises(UsageError) as caught:
        description.read(folder(tmp_path, text))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / description.FILE}: {key}")
    assert remedy in message


def test_a_folder_without_a_description_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file; an update is a folder"):
        description.read(tmp_path)
