"""Other users of a function, read from what the kernel lists."""

from __future__ import annotations

from pathlib import Path

from dynamos_ng.neighbours import livepatches, parse_kprobes, within

#: As a 6.1 kernel writes them.
LISTED = """\
ffffffff814105a0  k  cmdline_proc_show+0x0    [FTRACE]
ffffffff814105a6  k  cmdline_proc_show+0x6    [OPTIMIZED]
ffffffff81411e30  r  version_proc_show+0x0    [DISABLED][FTRACE]
ffffffffc0218005  k  pipe_read_v1+0x5  dynamos_pipe [DISABLED]
"""
EVENTS = """\
p:dyn/entry cmdline_proc_show
p:dyn/inside cmdline_proc_show+6
r16:dyn/back version_proc_show
p:dyn/hashed 0x00000000bf1f64b2
p:dyn/more dynamos_pipe:pipe_read_v1+5 value=$arg1
"""


def test_kprobes_have_places_and_names() -> None:
    found = parse_kprobes(LISTED, EVENTS)
    assert [str(probe) for probe in found] == [
        "kprobe at cmdline_proc_show+0x0 (dyn/entry)",
        "kprobe at cmdline_proc_show+0x6 (dyn/inside)",
        "kprobe at version_proc_show+0x0 (dyn/back)",
        "kprobe at pipe_read_v1+0x5 (dyn/more)",
    ]
    assert [probe.address for probe in within(found, 0xFFFFFFFF814105A1, 0xFFFFFFFF814105A7)] == [0xFFFFFFFF814105A6]
    assert str(parse_kprobes(LISTED, "")[1]) == "kprobe at cmdline_proc_show+0x6"


def test_livepatches_are_found_by_function_and_position(tmp_path: Path) -> None:
    for name in ("one/vmlinux/pipe_read,1", "two/vmlinux/pipe_read,2", "two/vmlinux/pipe_read_more,1",
                 "two/ext4/pipe_read,1"):  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
    assert livepatches("pipe_read", tmp_path) == (("one", 1), ("two", 2))
    assert livepatches("pipe", tmp_path) == ()
