"""What the command line refuses before anything is done, in one line that says what to do."""

from __future__ import annotations

import json
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dynamos_ng import control, demo, engine
from dynamos_ng.cli import main
from dynamos_ng.errors import DaemonUnreachable, DynamosError, MissingTool
from dynamos_ng.lab import mass

EXAMPLES = Path(mass.__file__).parents[1] / "examples"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("policy set --comm less --class 1 --edition 2", "policy set: --edition belongs to --function"),
        ("policy set --pid 1 --edition 2", "policy set: --edition belongs to --function"),
        ("load x --when-module --no-probes", "load --when-module: the daemon builds and watches it"),
        ("load x --when-module --output /tmp", "load --when-module: the daemon builds and watches it"),
        ("load x --edition 2", "--edition and --class belong to --when-module"),
        ("lab mass --names /nowhere/names", "/nowhere/names: no file can be written there"),
        ("lab mass --names /tmp", "/tmp: no file can be written there"),
        (f"lab mass --update {EXAMPLES}/type01-limit", "type01-limit: it has no functions"),
        (f"lab mass --update {EXAMPLES}/type04-pipe-gauge", "its functions switch task by task"),
        (f"lab mass --update {EXAMPLES}/type11-pipe", "a BPF program chooses its editions"),
    ],
)
def test_what_would_be_ignored_or_in_vain_is_refused(line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("dynamos: ")
    assert said in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize("given", ["web", "255", "-1", "1.5", ""])
def test_a_wrong_class_is_told_what_a_class_is(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["activate", "x", f"--class={given}"])
    assert f"{given!r} is not a policy class: a number up to 254, or 'interrupts'" in capsys.readouterr().err


def test_the_demo_does_not_begin_if_its_report_has_no_place(capsys: pytest.CaptureFixture[str]) -> None:
    assert demo.main(["--json", "/nowhere/demo.json"]) == 2
    assert capsys.readouterr().err == "dynamos: /nowhere/demo.json: no file can be written there\n"


def test_unload_all_tells_what_it_did_before_it_was_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def call(verb: str, **words: Any) -> Any:
        if verb == "status":
            return {"pending": [{"name": "waiting"}], "updates": [{"name": "busy"}]}
        if words["name"] == "busy":
            raise DynamosError("busy: still in use")
        return {"update": words["name"]}

    monkeypatch.setattr(control, "call", call)
    assert main(["unload", "--all", "--json"]) == 1
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ('[\n  {\n    "update": "waiting"\n  }\n]\n', "dynamos: busy: still in use\n")


def test_what_programs_call_themselves_commands_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by escape sequences nor by what is no text at all."""
    name = "a\x1b[2J\udc80"
    policy = {"processes": [[7, 1, name]], "rules": [], "rows": [], "in_force": None}
    monkeypatch.setattr(control, "call", lambda verb, **words: policy)
    assert main(["policy", "show"]) == 0
    assert "a?[2J?" in capsys.readouterr().out
    assert main(["policy", "show", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == policy

    def call(verb: str, **words: Any) -> Any:
        raise DynamosError(f"busy: still in use\n  TID 7 ({name})")

    monkeypatch.setattr(control, "call", call)
    assert main(["unload", "busy"]) == 1
    assert capsys.readouterr().err == "dynamos: busy: still in use\n  TID 7 (a?[2J?)\n"


def test_a_daemon_that_dies_while_it_answers_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "socket"))
        sock.listen()

        def answer() -> None:
            with sock.accept()[0] as one:
                one.recv(4096)
                one.sendall(b'{"result": {"upda')

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(DaemonUnreachable, match="the daemon went away while it worked on status"):
            control.ask("status", {}, tmp_path / "socket", 30)
        thread.join()


def test_a_folder_named_bcc_is_not_bcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / engine.BCC).mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, engine.BCC, raising=False)
    monkeypatch.setattr(engine, "_LIBRARY", "libbpf-that-is-not-there.so")
    with pytest.raises(MissingTool, match="neither bcc's Python module nor libbpf"):
        engine.name()
