"""`dynamos top` in a real terminal: keys, sizes, signals, and the terminal as it was before."""

from __future__ import annotations

import json
import os
import re
import select
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from snapshots import BEGIN, snapshot

from dynamos_ng.wire import plain

ROOT = Path(__file__).parents[2]
SECONDS = 60


class Screen:
    """A shell in a terminal of tmux's, 80x24 at first."""

    def __init__(self, folder: Path) -> None:
        (folder / "conf").write_text("set -g status off\nset -g default-terminal screen-256color\n")
        self._tmux = ["tmux", "-u", "-S", str(folder / "socket"), "-f", str(folder / "conf")]
        shell = f"env PS1='ready> ' LC_ALL=C.UTF-8 PYTHONPATH={ROOT} bash --norc --noprofile"
        self.tmux("new-session", "-d", "-x", "80", "-y", "24", shell)
        self.until(lambda text: text.startswith("ready>"))

    def tmux(self, *arguments: str) -> str:
        done = subprocess.run([*self._tmux, *arguments], capture_output=True, text=True, check=True)
        return done.stdout

    def close(self) -> None:
        """Take the terminal away; closing twice is no error."""
        subprocess.run([*self._tmux, "kill-server"], stderr=subprocess.DEVNULL, check=False)

    def text(self) -> str:
        return self.tmux("capture-pane", "-p")

    def keys(self, *names: str) -> None:
        self.tmux("send-keys", *names)

    def until(self, holds: Callable[[str], object]) -> str:
        """Wait until something holds for the text on the screen; return the text."""
        deadline = time.monotonic() + SECONDS
        while not holds(text := self.text()):
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        return text

    def state(self) -> tuple[str, str]:
        """Return the terminal's settings as the shell has them for its programs, and what tmux says of its screen."""
        self.keys("clear; stty -g; echo settings", "Enter")
        text = self.until(lambda text: "\nsettings" in text)
        return text.splitlines()[0], self.tmux("display", "-p", "#{alternate_on} #{cursor_flag}")

    def start(self, *arguments: object, before: str = "") -> None:
        command = [sys.executable, "-m", "dynamos_ng", "top", *map(str, arguments)]
        self.keys(f"clear; {before} {shlex.join(command)}; echo status $?", "Enter")

    def process(self) -> int:
        """Return the PID of what the shell runs."""
        shell = self.tmux("display", "-p", "#{pane_pid}").strip()
        return int(Path(f"/proc/{shell}/task/{shell}/children").read_text().split()[0])


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Screen]:
    screen = Screen(tmp_path)
    try:
        yield screen
    finally:
        screen.close()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with ten minutes of 200 functions."""
    file = tmp_path_factory.mktemp("recording") / "file.jsonl"
    with file.open("w") as stream:
        for second in range(600):
            stream.write(json.dumps(plain(snapshot(second, functions=200 if second < 40 else 2))) + "\n")
    return file


def test_a_recording_is_shown_filtered_sorted_resized_and_left(terminal: Screen, recording: Path) -> None:
    before = terminal.state()
    terminal.start("--replay", recording)
    text = terminal.until(lambda text: re.search(r"recording [2-9] of 600", text) and "1000" in text)
    assert len(text.splitlines()) == 24
    assert max(map(len, text.splitlines())) <= 80
    terminal.keys("Space")
    terminal.until(lambda text: "PAUSED" in text)
    terminal.keys("/")
    terminal.keys(*"y_019")
    terminal.until(lambda text: "filter: y_019_   1 function" in text)
    terminal.keys("Enter")
    terminal.until(lambda text: "> many_019" in text)
    terminal.keys("Enter")
    terminal.until(lambda text: text.splitlines()[3].startswith("many_019 [enabled] of update mass"))
    terminal.keys("Escape")
    terminal.until(lambda text: "filter: y_019   1 function" in text)
    terminal.keys("Escape", "End")
    terminal.until(lambda text: re.search("^> ext4:pipe_write", text, re.MULTILINE))
    terminal.tmux("resize-window", "-x", "200", "-y", "50")
    text = terminal.until(lambda text: "  classes  " in text and text.splitlines()[-1].startswith("q quit"))
    assert len(text.splitlines()) == 50
    assert max(map(len, text.splitlines())) > 100
    terminal.keys("Left")
    at = int(re.findall(r"recording (\d+) of", terminal.text())[0])
    terminal.keys("Right", "Right", "Right")
    terminal.until(lambda text: f"recording {at + 2} of 600" in text or f"recording {at + 3} of 600" in text)
    terminal.tmux("resize-window", "-x", "30", "-y", "10")
    terminal.until(lambda text: text.startswith("the screen is too small"))
    terminal.tmux("resize-window", "-x", "80", "-y", "24")
    terminal.until(lambda text: "q quit" in text)
    terminal.keys("q")
    terminal.until(lambda text: "status 0" in text)
    assert terminal.state() == before


def test_a_line_that_does_not_know_its_size_has_a_screen(terminal: Screen, recording: Path) -> None:
    """As a serial console, whose size nobody has told."""
    terminal.start("--replay", recording, before="stty rows 0 cols 0;")
    terminal.until(lambda text: "many_000" in text)
    terminal.keys("q")
    terminal.until(lambda text: "status 0" in text)


@pytest.mark.parametrize(
    ("ended", "status"),
    [
        (lambda screen: screen.keys("C-c"), 130),
        (lambda screen: os.kill(screen.process(), signal.SIGTERM), 143),
        (lambda screen: os.kill(screen.process(), signal.SIGHUP), 129),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGHUP"],
)
def test_the_terminal_is_given_back_however_it_ends(
    terminal: Screen, recording: Path, ended: Callable[[Screen], None], status: int
) -> None:
    before = terminal.state()
    terminal.start("--replay", recording)
    terminal.until(lambda text: "recording" in text and "of 600" in text)
    ended(terminal)
    terminal.until(lambda text: f"status {status}" in text)
    assert terminal.state() == before


def test_it_ends_with_its_terminal(terminal: Screen, recording: Path) -> None:
    terminal.start("--replay", recording)
    terminal.until(lambda text: "of 600" in text)
    process = os.pidfd_open(terminal.process())
    terminal.close()
    ended, _, _ = select.select([process], [], [], SECONDS)
    os.close(process)
    assert ended


def test_it_can_be_suspended_and_goes_on(terminal: Screen, recording: Path) -> None:
    before = terminal.state()
    terminal.start("--replay", recording)
    terminal.until(lambda text: "of 600" in text)
    terminal.keys("C-z")
    terminal.until(lambda text: "Stopped" in text and text.rstrip().endswith("ready>"))
    assert terminal.state() == before
    terminal.keys("fg", "Enter")
    terminal.until(lambda text: text.startswith("dynamos top"))
    terminal.keys("q")
    terminal.until(lambda text: text.rstrip().endswith("ready>"))
    assert terminal.state() == before


def test_an_error_gives_the_terminal_back_and_is_no_traceback(terminal: Screen, tmp_path: Path) -> None:
    before = terminal.state()
    terminal.start("--replay", tmp_path / "none")
    text = terminal.until(lambda text: "status 2" in text)
    assert "none:Nosuchfile" in "".join(text.split())
    assert terminal.state() == before


def test_a_torn_recording_says_so_and_shows_the_rest(terminal: Screen, tmp_path: Path) -> None:
    whole = [json.dumps(plain(snapshot(second))) for second in (1, 2, 3)]
    whole[1] = '{"updates": 7}'
    (tmp_path / "file").write_text("\n".join([*whole, whole[0][:99]]))
    terminal.start("--replay", tmp_path / "file")
    terminal.until(lambda text: "recording 3 of 3 (end)" in text and "! 1 torn snapshots are passed over" in text)
    terminal.keys("Left")
    terminal.until(lambda text: "recording 2 of 3" in text and "snapshot 2: this is no Snapshot" in text)
    terminal.keys("q")
    terminal.until(lambda text: "status 0" in text)


def test_a_daemon_that_is_not_there_is_told_on_the_screen(terminal: Screen, tmp_path: Path) -> None:
    terminal.start("--interval", "0.2", before=f"DYNAMOS_SOCKET={tmp_path}/none")
    terminal.until(lambda text: f"! no daemon answers on {tmp_path}"[:60] in text)
    terminal.keys("h")
    terminal.until(lambda text: "ctrl-c" in text)
    terminal.keys("q")
    terminal.until(lambda text: "status 0" in text)


def test_without_colour_nothing_is_coloured(terminal: Screen, recording: Path) -> None:
    terminal.start("--replay", recording, before="NO_COLOR=1")
    terminal.until(lambda text: "[enabled]" in text)
    assert not re.search(r"\x1b\[[0-9;]*3[0-8]", terminal.tmux("capture-pane", "-p", "-e"))
    terminal.keys("q")
    terminal.until(lambda text: "status 0" in text)


def test_redirected_it_prints_once_and_ends(recording: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dynamos_ng", "top", "--replay", str(recording)]
    environment = {**os.environ, "COLUMNS": "80", "PYTHONPATH": str(ROOT)}
    with (tmp_path / "out").open("w") as out:
        subprocess.run(command, stdout=out, check=True, timeout=SECONDS, env=environment)
    found = (tmp_path / "out").read_text().splitlines()
    assert found[1] == "3 updates, 5 functions, 1048 calls/s, 4 in flight, probes by bcc"
    assert max(map(len, found)) <= 80
    assert "\x1b" not in "".join(found)
    done = subprocess.run([*command, "--once", "--json"], capture_output=True, check=True, env=environment)
    assert json.loads(done.stdout)["taken"] == BEGIN + 599
