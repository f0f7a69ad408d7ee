"""What the kernel's list of probes says of its code."""

from __future__ import annotations

from dynamos_ng.kprobes import written_over

LISTING = """\
ffffffff814105a6  k  cmdline_proc_show+0x6    [OPTIMIZED]
ffffffff81366a10  k  vfs_read+0x30
ffffffff8140f0c0  r  stat_open+0x0    [FTRACE]
ffffffff8140f100  k  stat_open+0x40    [DISABLED]
ffffffffc0266000  k  gone+0x10 module [GONE]
"""


def test_code_is_changed_where_a_probe_is_armed_and_is_none_of_ftraces() -> None:
    assert written_over(LISTING) == [0xFFFFFFFF81366A10, 0xFFFFFFFF814105A6]
    assert written_over("") == []
