"""Commit-confirm: who activates and is not heard of again has his update taken back, whatever became of the daemon."""

from __future__ import annotations

import errno
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import STACKED, Daemon, parameter, pipe, write_update

from dynamos_ng import control
from dynamos_ng.demo import load as work
from dynamos_ng.device import Device
from dynamos_ng.errors import KernelRefused

FUNCTION = "version_proc_show"
VERSION = Path("/proc/version")
EDITION = """
#include <linux/delay.h>
#include <linux/moduleparam.h>
#include <linux/seq_file.h>
int version_proc_show_v{number}(struct seq_file *m, void *v);
int version_proc_show_v{number}(struct seq_file *m, void *v)
{{
	seq_puts(m, "{number}");
	{then}
	return 0;
}}
"""
HOLD = "static bool hold;\nmodule_param(hold, bool, 0644);\n"
SLEEP = "while (READ_ONCE(hold))\n\t\tmsleep(20);"
HOOK = """
static void run(void)
{
}
static int undo(void)
{
	return READ_ONCE(hold) ? -EBUSY : 0;
}
DYNAMOS_AFTER(run, undo);
"""


def until(wanted: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 120
    while not wanted():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def waiting_for(name: str) -> Any:
    """Return what is told of an update's confirmation."""
    return next(update["confirmation"] for update in control.call("status")["updates"] if update["name"] == name)


def became(name: str, state: str) -> Callable[[], bool]:
    return lambda: bool((found := waiting_for(name)) and found["state"] == state)


def kernel_log() -> str:
    return subprocess.run(["dmesg"], capture_output=True, text=True, check=True).stdout


def test_it_is_taken_back_though_the_daemon_was_killed(
    daemon: Daemon, loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    untouched = VERSION.read_text()
    loaded(write_update(tmp_path / "lost", {FUNCTION: [2]}, EDITION.format(number=2, then="")))
    assert control.call("activate", name="lost", confirm_within=5)["state"] == "redirected"
    daemon.kill()
    until(lambda: VERSION.read_text() == untouched, "it is still active")
    daemon.start()
    assert waiting_for("lost") == {"state": "reverted", "left": 0, "reason": ""}
    assert "was not confirmed in time: it was taken back by itself" in " ".join(cli("status").stdout.split())
    assert "dynamos: dynamos_lost was not confirmed in time: reverted" in kernel_log()
    late = cli("confirm", "lost")
    assert late.returncode == 1
    assert late.stderr.startswith("dynamos: confirm dynamos_lost: too late")
    assert VERSION.read_text() == untouched
    # The next activation starts clean.
    control.call("activate", name="lost")
    assert waiting_for("lost") is None
    assert VERSION.read_text() == "2"


def test_it_stays_when_confirmed_and_nothing_waits_when_it_was_taken_back_by_hand(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Three that are stacked: only the last is neither confirmed nor taken back."""
    untouched = VERSION.read_text()
    for name in ("stays", "again", "goes"):
        loaded(write_update(tmp_path / name, {FUNCTION: [2]}, STACKED.format(name=name)))
    assert cli("activate", "stays", "--confirm-within", "20m").returncode == 0
    confirmed = cli("confirm", "stays")
    assert (confirmed.returncode, confirmed.stdout) == (0, "confirmed stays: it stays\n")
    control.call("activate", name="again", confirm_within=1200)
    control.call("deactivate", name="again")
    assert waiting_for("again") is None
    control.call("activate", name="again")
    control.call("activate", name="goes", confirm_within=2)
    until(became("goes", "reverted"), "it was not taken back")
    assert VERSION.read_text() == untouched + "stays again "
    assert waiting_for("stays") is None
    assert waiting_for("again") is None
    refused = cli("confirm", "stays")
    assert refused.returncode == 1
    assert refused.stderr == "dynamos: confirm dynamos_stays: it waits for no confirmation\n"


def test_a_removal_that_fails_leaves_it_to_be_confirmed(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    loaded(write_update(tmp_path / "slept", {f"{pipe()}_read": []}))
    control.call("activate", name="slept", confirm_within=3600)
    with work.sleeping_reader() as sleeper:
        with pytest.raises(control.Remote, match="still in use"):
            control.call("unload", name="slept", wait=0.1)
        found = waiting_for("slept")
        assert found["state"] == "waiting"
        assert 0 < found["left"] <= 3600
        shown = " ".join(cli("status").stdout.split())
        assert "unless it is confirmed: dynamos confirm slept" in shown
        with Device() as device:
            functions = [function for function in device.functions() if function.update == "dynamos_slept"]
            for call, number in (
                (lambda: device.activate(functions, 0, 5), errno.EINVAL),
                (lambda: device.confirm("dynamos_nobody"), errno.ENOENT),
            ):
                with pytest.raises(KernelRefused) as refused:
                    call()
                assert refused.value.errno == number
        control.call("confirm", name="slept")
        assert waiting_for("slept") is None
        assert control.call("status")["updates"][0]["state"] == "redirected"
        sleeper.wake_after(0)


class Inside:
    """A thread that reads until it has been in an edition, which keeps it."""

    def __init__(self, edition: int) -> None:
        self.edition = edition
        self.text = ""
        self._stop = False
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while not self._stop and self.text != str(self.edition):
            self.text = VERSION.read_text()

    def there(self) -> bool:
        (update,) = control.call("status")["updates"]
        return any(use["number"] == self.edition and use["entered"] > use["exited"]
                   for status in update["functions"] for use in status["uses"])  # fmt: skip

    def end(self) -> str:
        self._stop = True
        self._thread.join(60)
        assert not self._thread.is_alive()
        return self.text


@pytest.mark.everywhere
@pytest.mark.parametrize(("kind", "edition"), [("consistent", 2), ("phased", 3)])
def test_it_waits_for_who_is_inside(
    loaded: Callable[[Path], Any], tmp_path: Path, kind: str, edition: int
) -> None:
    untouched = VERSION.read_text()
    last = EDITION.format(number=edition, then=SLEEP)
    source = last.replace("int version", HOLD + "int version", 1)
    if edition == 3:
        source += EDITION.format(number=2, then="")
    folder = write_update(tmp_path / "held", {FUNCTION: list(range(2, edition + 1))}, source)
    text = (folder / "update.toml").read_text()
    (folder / "update.toml").write_text(f"{kind} = true\n{text}")
    loaded(folder)
    hold = parameter("held", "hold")
    for seconds in (3, 6, 12, 24, 48):  # a slow machine may need long to get there
        hold.write_text("1")
        control.call("activate", name="held", confirm_within=seconds)
        if edition == 3:
            control.call("phase", name="held", move="raise")
        reader = Inside(edition)
        try:
            until(lambda: reader.there() or became("held", "reverted")(), "nothing happens")  # noqa: B023
            if not reader.there():
                continue
            until(lambda: bool((waiting_for("held") or {}).get("reason")), "it does not try")
            assert "other editions than the first are in use" in waiting_for("held")["reason"]
            assert waiting_for("held")["state"] == "reverting"
            assert control.call("status")["updates"][0]["state"] == "redirected"
            # Who comes now has what can be left at any time.
            assert VERSION.read_text() == ("2" if edition == 3 else untouched)
            with pytest.raises(control.Remote, match="too late"):
                control.call("confirm", name="held")
            hold.write_text("0")
            until(became("held", "reverted"), "it is still active")
            assert reader.end() == str(edition)
            break
        finally:
            hold.write_text("0")
            reader.end()
    else:
        raise AssertionError("nobody got inside")
    assert VERSION.read_text() == untouched
    assert control.call("phase", name="held")["must_update"] is False


def test_it_tries_until_a_hook_agrees(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    untouched = VERSION.read_text()
    source = '#include "dynamos_update.h"\n' + EDITION.format(number=2, then="") + HOLD + HOOK
    loaded(write_update(tmp_path / "hooked", {FUNCTION: [2]}, source))
    hold = parameter("hooked", "hold")
    hold.write_text("1")
    control.call("activate", name="hooked", confirm_within=1)
    until(lambda: bool((waiting_for("hooked") or {}).get("reason")), "it does not try")
    assert waiting_for("hooked") == {"state": "reverting", "left": 0, "reason": "a hook of the update refused"}
    assert VERSION.read_text() == "2"
    hold.write_text("0")
    until(became("hooked", "reverted"), "it is still active")
    assert VERSION.read_text() == untouched
