"""A shell in a guest, on a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_shell_takes_what_is_typed_and_ends_with_exit(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    shell = subprocess.Popen(
        [sys.executable, "-m", "dynamos_ng", "lab", "shell", "--out", tmp_path, "--cpus", "1"],
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 300
    typed = False
    while time.monotonic() < deadline:
        if select.select([ours], [], [], 1)[0]:
            try:
                data = os.read(ours, 4096)
            except OSError:  # the terminal's other side is closed
                break
            seen += data
        if not typed and b"root@lab" in seen:
            os.write(ours, b"echo $((6 * 7)) >/out/answer; test -t 0 && tty >>/out/answer; exit\n")
            typed = True
    assert shell.wait(30) == 0, seen.decode(errors="replace")
    assert (tmp_path / "answer").read_text() == "42\n/dev/ttyS0\n"
    os.close(ours)
