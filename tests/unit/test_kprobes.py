"""What the kernel's list of probes says of its code."""

from __future__ import annotations

import errno

from dynamos_ng.kprobes import complaint, written_over

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


COMPLAINTS = """\
[   60.1] trace_kprobe: error: The symbol is not unique
  Command: p:dynamos/entry_calls_7_1_0 s_show
                                       ^
[   61.5] trace_kprobe: error: Invalid probed address or symbol
  Command: p:dynamos/entry_calls_7_1_1 nothing
                                       ^
[   62.0] trace_kprobe: error: Failed to register probe event
  Command: p:dynamos/entry_calls_7_1_2 kstrtoll
           ^
"""


def test_what_the_kernel_did_not_like_is_found_in_its_log() -> None:
    assert complaint(COMPLAINTS, "p:dynamos/entry_calls_7_1_0 s_show") == errno.EADDRNOTAVAIL
    assert complaint(COMPLAINTS, "p:dynamos/entry_calls_7_1_1 nothing") == errno.ENOENT
    assert complaint(COMPLAINTS, "p:dynamos/entry_calls_7_1_2 kstrtoll") == errno.EINVAL
    assert complaint(COMPLAINTS, "p:dynamos/entry_calls_7_1_3 other") == errno.EINVAL
    assert complaint("", "p:a b") == errno.EINVAL
