"""What an administrator sees of a running daemon: the history of changes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import DEMO_UPDATES, Daemon

from dynamos_ng import control
from dynamos_ng.build.update import build

CLI = Callable[..., subprocess.CompletedProcess[str]]

def test_history_tells_each_change_and_refusal_also_without_the_daemon(
    daemon: Daemon, cli: CLI, tmp_path: Path
) -> None:
    module = build(DEMO_UPDATES / "cmdline", tmp_path)
    assert cli("load", module).returncode == 0
    try:
        assert cli("activate", "cmdline", "--edition", "7").returncode == 2
        assert cli("activate", "cmdline", "--class", "1").returncode == 0
        Path("/proc/cmdline").read_bytes()
        daemon.kill()
        told = json.loads(cli("history", "cmdline", "--json").stdout)
        shown = cli("history", "cmdline").stdout
    finally:
        if daemon.process is None or daemon.process.poll() is not None:
            daemon.start()
        control.call("unload", name="cmdline", wait=60.0)
    assert told["torn"] == 0
    entries = told["entries"][-3:]  # others may have used the same name before
    assert [entry["verb"] for entry in entries] == ["load", "activate", "activate"]
    assert all(entry["who"]["uid"] == os.getuid() for entry in entries)
    assert all(entry["who"]["comm"].startswith("python3") for entry in entries)
    _, refused, done = (entry["answer"] for entry in entries)
    assert "has no edition 7" in refused["error"]
    (after,) = done["result"]["after"]
    assert after["function"] == "cmdline_proc_show"
    lines = shown.splitlines()
    assert any(line.startswith("  refused: cmdline_proc_show: update cmdline has no edition 7") for line in lines)
    assert any(line.endswith("activate cmdline --class 1") for line in lines)
    assert any("µs in the stop  by root (python3" in line for line in lines)
    assert any(line.startswith("after   cmdline_proc_show") for line in lines), "with what was measured"
    later: list[dict[str, Any]] = json.loads(cli("history", "--since", "1h", "--json").stdout)["entries"]
    assert [entry["verb"] for entry in later[-2:]] == ["dynamosd", "unload"]
    assert later[-2]["answer"]["result"]["functions"] == ["cmdline_proc_show"], "the next daemon took it over"
    assert not any(entry["cut_off"] for entry in later[-5:])
