"""Type 2, variable with synchronised access: one inode's owner, under the inode's own lock."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import EXAMPLES, parameter

from dynamos_ng import control
from dynamos_ng.demo import load as work

OURS = 4321


def test_one_inode_has_another_owner_meanwhile(
    loaded: Callable[[Path], Any], cli: Callable[..., Any], tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_text("")
    other.write_text("")
    os.chown(one, 77, 88)
    loaded(EXAMPLES / "type02-owner")
    parameter("type02-owner", "owner").write_text(str(OURS))
    parameter("type02-owner", "path").write_text(f"{tmp_path}/nobody")
    refused = cli("activate", "type02-owner")
    assert refused.returncode == 1
    assert "a hook of the update refused: No such file or directory: find" in refused.stderr
    parameter("type02-owner", "path").write_text(str(one))
    with work.repeated(lambda: os.chmod(one, 0o640), lambda: os.chown(one, -1, 88), one.read_bytes):
        control.call("activate", name="type02-owner")
        assert (one.stat().st_uid, one.stat().st_gid) == (OURS, 88)
        assert other.stat().st_uid == 0
        control.call("deactivate", name="type02-owner")
        assert one.stat().st_uid == 77
        control.call("activate", name="type02-owner")
        os.chown(one, 99, -1)
        control.call("unload", name="type02-owner", wait=60.0)
    assert one.stat().st_uid == 99, "what somebody else wrote meanwhile is left"
