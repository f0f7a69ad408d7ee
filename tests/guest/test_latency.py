"""A/B latency: editions timed side by side under load, told apart only where they differ."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import of_class, write_update

from dynamos_ng import control, kprobes
from dynamos_ng.demo import load as work
from dynamos_ng.latency import ALIKE, MORE, SLOWER, UNKNOWN

pytestmark = pytest.mark.everywhere

#: Edition 2 takes longer, and each fourth of its calls fails; edition 3 is edition 1; nobody gets edition 4.
EDITIONS = """
#include <linux/delay.h>
#include <linux/errno.h>
#include <linux/seq_file.h>

int cmdline_proc_show_v1(struct seq_file *m, void *v);
int cmdline_proc_show_v2(struct seq_file *m, void *v);
int cmdline_proc_show_v3(struct seq_file *m, void *v);
int cmdline_proc_show_v4(struct seq_file *m, void *v);

static unsigned int calls;

int cmdline_proc_show_v2(struct seq_file *m, void *v)
{
	mdelay(5);
	return calls++ % 4 ? cmdline_proc_show_v1(m, v) : -EIO;
}

int cmdline_proc_show_v3(struct seq_file *m, void *v)
{
	return cmdline_proc_show_v1(m, v);
}

int cmdline_proc_show_v4(struct seq_file *m, void *v)
{
	return -EPERM;
}
"""
FILE = Path("/proc/cmdline")


def read_on() -> None:
    while True:
        try:
            FILE.read_bytes()
        except OSError as error:
            assert error.errno == errno.EIO


def test_editions_side_by_side(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    loaded(write_update(tmp_path / "slower", {"cmdline_proc_show": [2, 3, 4]}, EDITIONS))
    refused = cli("ab", "cmdline_proc_show")
    assert refused.returncode == 2
    assert refused.stderr == (
        "dynamos: cmdline_proc_show: its calls go to the original; first: dynamos activate slower\n"
    )
    control.call("activate", name="slower", edition=1)
    for number in (2, 3):
        control.call("policy_edition", function="cmdline_proc_show", policy_class=number, edition=number)
    with work.forked(read_on, read_on, read_on) as (_, second, third), of_class(second, 2), of_class(third, 3):
        before = kprobes.profile().keys()
        done = cli("ab", "cmdline_proc_show", "--seconds", 6, "--json")
        assert done.returncode == 0, done.stderr
        assert kprobes.profile().keys() == before, "no probe is left"
        shown = cli("ab", "cmdline_proc_show", "--editions", "v1,v2", "--seconds", 2)
        unknown = cli("ab", "cmdline_proc_show", "--editions", "v1,v7")
    report = json.loads(done.stdout)
    first, slow, same, none = report["editions"]
    assert [one["edition"] for one in report["editions"]] == [1, 2, 3, 4]
    assert none["calls"] == 0
    median = slow["quantiles"][0]
    assert median["time"] > 3 * first["quantiles"][0]["time"]
    assert median["low"] <= median["time"] <= median["high"]
    assert 0.2 < slow["errors"]["share"] < 0.3
    assert first["errors"]["share"] == same["errors"]["share"] == 0
    verdicts = {(one["edition"], one["share"]): one["verdict"] for one in report["comparisons"]}
    assert verdicts[2, 0.5] == SLOWER
    assert verdicts[4, 0.5] == UNKNOWN
    assert dict(report["errors"]) == {2: MORE, 3: ALIKE, 4: UNKNOWN}
    for one, told in zip(report["editions"], report["histograms"], strict=True):
        assert one["calls"] == sum(count for _, count in told["histogram"])
        assert one["calls"] <= entered_of(one["edition"])
        assert one["lost"] <= 3, "what was under way when the probes came"
    assert shown.returncode == 0, shown.stderr
    assert "v2 against v1, p50: slower: " in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert unknown.returncode == 2
    assert unknown.stderr == "dynamos: cmdline_proc_show has no edition 7; it has 1, 2, 3, 4\n"


def entered_of(edition: int) -> int:
    for update in control.call("status")["updates"]:
        for status in update["functions"]:
            for use in status["uses"]:
                if status["function"]["name"] == "cmdline_proc_show" and use["number"] == edition:
                    return int(use["entered"])
    raise AssertionError(edition)
