"""Hooks of an update: their order, and that a fault in any of them leaves everything as it was."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from conftest import parameter, write_update

from dynamos_ng import control
from dynamos_ng.demo import load as work
from dynamos_ng.device import Device
from dynamos_ng.errors import KernelRefused

#: Each hook notes its letter, and fails if the parameter `fault` is just that letter.
HOOKS = """
#include <linux/errno.h>
#include <linux/irqflags.h>
#include <linux/module.h>
#include <linux/seq_file.h>
#include <linux/string.h>

#include "dynamos_update.h"

static char steps[200];
module_param_string(steps, steps, sizeof(steps), 0644);
static char fault[2];
module_param_string(fault, fault, sizeof(fault), 0644);
static int number = EXDEV;
module_param(number, int, 0644);
static bool context_wrong;
module_param(context_wrong, bool, 0444);

static int step(char letter, bool in_stop)
{
	char text[2] = { letter };

	if (irqs_disabled() != in_stop)
		context_wrong = true;
	strlcat(steps, text, sizeof(steps));
	return *fault == letter ? -number : 0;
}

static int before(void) { return step('b', false); }
static void undo_before(void) { step('B', false); }
static int in_stop(void) { return step('i', true); }
static int undo_in_stop(void) { return step('I', true); }
static void after(void) { step('a', false); }
static int undo_after(void) { return step('A', false); }

DYNAMOS_BEFORE(before, undo_before);
DYNAMOS_IN_STOP(in_stop, undo_in_stop);
DYNAMOS_AFTER(after, undo_after);
"""
EDITION = """
int cmdline_proc_show_v2(struct seq_file *m, void *v);

int cmdline_proc_show_v2(struct seq_file *m, void *v)
{
	seq_puts(m, "edition 2\\n");
	return 0;
}
"""


def steps() -> str:
    """Return the hooks that ran since the last time."""
    file = parameter("hooked", "steps")
    seen = file.read_text().strip()
    file.write_text("\n")
    return seen


def changed() -> bool:
    """Return whether the update is seen to be in force."""
    return Path("/proc/cmdline").read_text() == "edition 2\n"


def test_hooks_run_in_order_and_each_may_refuse(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    loaded(write_update(tmp_path / "hooked", {"cmdline_proc_show": [2]}, HOOKS + EDITION))
    fault, number = parameter("hooked", "fault"), parameter("hooked", "number")

    def refused(verb: str, letter: str, ran: str, why: str = "Invalid cross-device link") -> None:
        fault.write_text(letter)
        was = changed()
        done = cli(verb, "hooked")
        assert done.returncode == 1
        assert f"a hook of the update refused: {why}: " in done.stderr, done.stderr
        assert changed() == was
        assert steps() == ran
        fault.write_text("\n")

    with work.repeated(Path("/proc/cmdline").read_bytes, Path("/proc/cmdline").read_bytes):
        refused("activate", "b", "b")
        refused("activate", "i", "biB")
        number.write_text("11")  # EAGAIN: another try may do
        fault.write_text("i")
        again = cli("activate", "hooked")
        assert again.returncode == 1
        assert re.fullmatch("(biB){10,}", steps()), "a step that wants another try gets some"
        number.write_text("-7")
        refused("activate", "b", "b", "Invalid argument")
        number.write_text("18")
        assert not changed()

        with Device() as device:
            functions = [f for f in device.functions() if f.update == "dynamos_hooked"]
            with pytest.raises(KernelRefused, match="activate the update"):
                device.activate(functions)
        assert steps() == ""

        control.call("activate", name="hooked")
        assert changed()
        assert steps() == "bia"
        refused("deactivate", "A", "A")
        refused("deactivate", "I", "AIa")
        control.call("deactivate", name="hooked")
        assert not changed()
        assert steps() == "AI", "what came before the stop stays until the update is retired"
        refused("activate", "i", "i")
        control.call("activate", name="hooked")
        assert steps() == "ia", "it was not retired"
        control.call("deactivate", name="hooked")
        assert steps() == "AI"
        with Device() as device:
            device.retire("dynamos_hooked")
            assert steps() == "B"
            device.retire("dynamos_hooked")
            assert steps() == ""
        control.call("activate", name="hooked")
        assert steps() == "bia"
    assert parameter("hooked", "context_wrong").read_text() == "N\n"
    control.call("unload", name="hooked", wait=60.0)


def test_an_update_of_hooks_alone_needs_no_function(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    loaded(write_update(tmp_path / "alone", {}, HOOKS))
    control.call("activate", name="alone")
    assert "[enabled]" in cli("status").stdout
    assert parameter("alone", "steps").read_text() == "bia\n"
    control.call("deactivate", name="alone")
    control.call("unload", name="alone", wait=60.0)


@contextmanager
def asleep() -> Iterator[tuple[int, Callable[[], None]]]:
    """Start a process that sleeps in a read of an eventfd; give its PID, and what wakes it and sees it leave."""
    event = os.eventfd(0)
    with work.forked(lambda: os.eventfd_read(event)) as (pid,):
        while "wait" not in (where := Path(f"/proc/{pid}/wchan").read_text()) and "eventfd" not in where:
            time.sleep(0.02)

        def wake() -> None:
            os.eventfd_write(event, 1)
            os.waitpid(pid, 0)

        yield pid, wake
    os.close(event)


def test_a_quiescent_update_is_switched_while_nobody_is_inside(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    folder = write_update(tmp_path / "quiet", {"eventfd_read": []})
    description = folder / "update.toml"
    description.write_text("quiescent = true\n" + description.read_text())
    loaded(folder)
    for verb in ("activate", "deactivate"):
        function = "eventfd_read" if verb == "activate" else "eventfd_read_v1"
        with asleep() as (pid, wake):
            refused = cli(verb, "quiet")
            assert refused.returncode == 1
            # Where no unwinder can be relied on, what a finished call left behind may be named before the sleeper is.
            who = pid if os.uname().machine == "x86_64" else r"\d+"
            assert re.search(rf"thread {who} \(.*\) at 0x[0-9a-f]+\): {function}\+0x", refused.stderr), refused.stderr
            wake()
            control.call(verb, name="quiet")


EVENT = """
#include <linux/fs.h>
ssize_t eventfd_read_v1(struct kiocb *iocb, struct iov_iter *to);
ssize_t eventfd_read_v2(struct kiocb *iocb, struct iov_iter *to);
ssize_t eventfd_read_v2(struct kiocb *iocb, struct iov_iter *to) { return eventfd_read_v1(iocb, to); }
"""


def test_a_group_that_cannot_be_unloaded_keeps_its_classes(loaded: Callable[[Path], Any], tmp_path: Path) -> None:
    folder = write_update(tmp_path / "group", {"eventfd_read": [2]}, EVENT)
    description = folder / "update.toml"
    description.write_text("consistent = true\n" + description.read_text())
    loaded(folder)

    def row() -> str:
        return str(control.call("status")["updates"][0]["functions"][0]["row"])

    control.call("activate", name="group", classes=[1])
    chosen = row()
    assert bytes.fromhex(chosen)[:3] == bytes([1, 2, 1])
    with asleep() as (pid, wake):
        with pytest.raises(control.Remote, match=f"(?s)still in use.*TID {pid} "):
            control.call("unload", name="group", wait=0.5)
        assert row() == chosen
        wake()
    control.call("unload", name="group", wait=60.0)
