"""Roles: a stranger, a viewer and an admin each may what they may, and are told who may the rest."""

from __future__ import annotations

import grp
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import DEMO_UPDATES, Daemon

from dynamos_ng import control
from dynamos_ng.build.update import build
from dynamos_ng.daemon import CONNECTIONS

ADMINS, VIEWERS = "dynamos-admin", "dynamos-view"
STRANGER, VIEWER, ADMIN = "stranger", "viewer", "admin"


@pytest.fixture(scope="module", autouse=True)
def people() -> None:
    """Make three users; who is in a group by /etc/group is there with its number among other groups."""
    for group in (ADMINS, VIEWERS):
        subprocess.run(["groupadd", "--system", group], check=True)
    for user, group in ((STRANGER, ""), (VIEWER, VIEWERS), (ADMIN, ADMINS)):
        subprocess.run(["useradd", *(["--groups", group] if group else []), user], check=True)


def ask(user: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `dynamos` as somebody who has just logged in."""
    group = {VIEWER: [VIEWERS], ADMIN: [ADMINS]}.get(user, [])
    return subprocess.run(
        [sys.executable, "-m", "dynamos_ng", *map(str, arguments)],
        user=user, group=user, extra_groups=group, capture_output=True, text=True, check=False, timeout=200,
    )  # fmt: skip


@pytest.fixture(scope="module")
def with_groups(daemon: Daemon) -> Iterator[Callable[..., Daemon]]:
    """Start the daemon anew with options, and afterwards without."""

    def start(*options: str) -> Daemon:
        daemon.stop()
        daemon.start(*options)
        return daemon

    yield start
    daemon.stop()
    daemon.start()


def shape() -> tuple[int, int]:
    found = control.SOCKET.stat()
    return stat.S_IMODE(found.st_mode), found.st_gid


def gid(group: str) -> int:
    return grp.getgrnam(group).gr_gid


def test_by_default_there_is_only_root(daemon: Daemon) -> None:
    assert shape() == (0o600, 0)
    for user in (STRANGER, VIEWER, ADMIN):
        refused = ask(user, "status")
        assert (refused.returncode, refused.stdout) == (4, "")
        assert refused.stderr == f"dynamos: {control.SOCKET}: permission denied: only root may use it\n"


@pytest.fixture
def public() -> Iterator[Path]:
    """Give a folder that everybody can read; pytest's own are root's alone."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)


def test_each_may_what_is_his(with_groups: Callable[..., Daemon], public: Path, tmp_path: Path) -> None:
    module = build(DEMO_UPDATES / "cmdline", public)
    daemon = with_groups("--admin-group", ADMINS, "--view-group", VIEWERS)
    assert shape() == (0o666, 0), "two groups, and a file has one: all may connect, and strangers are sent away"

    refused = ask(STRANGER, "status")
    assert refused.returncode == 4
    who = f"only root and members of the groups {ADMINS} and {VIEWERS} may do this; you are {STRANGER} (UID"
    assert refused.stderr.startswith(f"dynamos: dynamosd: {who}")

    unseen = ask(VIEWER, "load", tmp_path / "dynamos_cmdline.ko")
    assert unseen.returncode in (1, 2)
    assert unseen.stderr.startswith(f"dynamos: {tmp_path}/dynamos_cmdline.ko: ")
    assert unseen.stderr.count("\n") == 1
    changes = (("load", module), ("activate", "cmdline"), ("policy", "set", "--comm", "x", "--class", 1),
               ("deactivate", "cmdline"), ("unload", "cmdline"))  # fmt: skip
    for change in changes:
        refused = ask(VIEWER, *change)
        assert refused.returncode == 4, change
        assert f"only root and members of the group {ADMINS} may do this; you are {VIEWER} (UID" in refused.stderr
        assert control.call("status")["updates"] == []
    for look in (("status",), ("policy", "show"), ("quiescence", "cmdline_proc_show", "--seconds", 0)):
        seen = ask(VIEWER, *look)
        assert (seen.returncode, seen.stderr) == (0, ""), look

    # A viewer who holds all connections that viewers may have keeps no admin out.
    pid, end = _all_of_a_viewers_connections()
    full = ask(VIEWER, "status")
    assert full.returncode == 1
    assert f"dynamosd has {CONNECTIONS} connections of your role already" in full.stderr
    for change in (*changes[:2], ("policy", "set", "--comm", "x", "--class", 0), *changes[3:]):
        done = ask(ADMIN, *change)
        assert (done.returncode, done.stderr) == (0, ""), change
    os.close(end)
    os.waitpid(pid, 0)
    assert daemon.process is not None
    assert daemon.process.poll() is None


def _connected() -> socket.socket:
    """Return a connection that the daemon has taken; what others have just closed may count for a moment yet."""
    while True:
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(control.SOCKET))
        with suppress(BrokenPipeError):
            one.sendall(b'{"verb": "ping"}\n')
        if b'"result"' in one.recv(1000):
            return one
        one.close()
        time.sleep(0.1)


def _all_of_a_viewers_connections() -> tuple[int, int]:
    """Let a viewer hold them until the end that is returned is closed; they are there when this returns."""
    there_read, there_write = os.pipe()
    end_read, end_write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(end_write)
            os.setgroups([gid(VIEWERS)])
            os.setuid(65534)
            held = [_connected() for _ in range(CONNECTIONS)]
            os.write(there_write, b".")
            os.read(end_read, 1)
            assert len(held) == CONNECTIONS
        finally:
            os._exit(0)
    os.close(there_write)
    os.close(end_read)
    assert os.read(there_read, 1) == b"."
    os.close(there_read)
    return pid, end_write


def test_one_group_owns_the_socket(with_groups: Callable[..., Daemon]) -> None:
    with_groups("--view-group", VIEWERS)
    assert shape() == (0o660, gid(VIEWERS))
    refused = ask(ADMIN, "status")
    assert refused.returncode == 4
    assert f"permission denied: only root and members of the group {VIEWERS} may use it" in refused.stderr
    assert ask(VIEWER, "status").returncode == 0
    refused = ask(VIEWER, "activate", "cmdline")
    assert refused.returncode == 4
    assert "activate: only root may do this" in refused.stderr


def test_a_group_that_is_not_there(daemon: Daemon) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "dynamos_ng.daemon", "--admin-group", "nobody-is-in-it"],
        capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert refused.returncode == 2
    assert refused.stderr.startswith("dynamosd: nobody-is-in-it: there is no such group: make it with")
