"""Who may do what on the control socket, by what the kernel says of the process that connected.

Viewers look, admins change. Root is an admin; members of a group are what the group was given to. An admin can have any
code loaded into the kernel, and so is root in all but name.
"""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

from dynamos_ng.errors import NotAllowed, UsageError

#: struct ucred of the kernel's include/linux/socket.h, and a number that Python does not name.
_UCRED = struct.Struct("=iII")
_SO_PEERGROUPS = 59
#: Python reads no longer options: who has more than 256 groups beside his own counts as having none of them.
_OPTION_MAX = 1024
#: Verbs that only look.
LOOKS = frozenset(
    ("ping", "status", "history", "quiescence", "latency", "policy_show", "policy_explain", "policy_diff")
)


class Role(IntEnum):
    """What somebody may do; each may do what those before it may."""

    STRANGER = 0
    VIEWER = 1
    ADMIN = 2


@dataclass(frozen=True)
class Caller:
    """Who is at the other end: the groups are all that the process has; `pid` is 0 where it is not known."""

    uid: int
    groups: frozenset[int]
    pid: int = 0

    @property
    def name(self) -> str:
        """Return the user's name and number."""
        try:
            return f"{pwd.getpwuid(self.uid).pw_name} (UID {self.uid})"
        except KeyError:
            return f"UID {self.uid}"


def caller(connection: socket.socket) -> Caller:
    """Return who connected a Unix socket, as the kernel noted it then."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _OPTION_MAX)
    except OSError:
        raw = b""
    return Caller(uid, frozenset((gid, *(group for (group,) in struct.iter_unpack("=I", raw)))), pid)


def looks(verb: str, arguments: Mapping[str, Any]) -> bool:
    """Return whether a request changes nothing."""
    return verb in LOOKS or (verb == "phase" and not arguments.get("move"))


class Roles:
    """The two groups; without a group a role is root's alone."""

    def __init__(self, admin_group: str = "", view_group: str = "") -> None:
        """Look the groups up; UsageError if there is none of a name."""
        self._names = admin_group, view_group
        self._gids: tuple[int | None, int | None] = (None, None)
        self.reload()

    def reload(self) -> None:
        """Look the groups up again, for a name may have got another number; UsageError leaves all as it was."""
        admin, view = (_gid(name) for name in self._names)
        self._gids = admin, view

    def role(self, who: Caller) -> Role:
        """Return what somebody may do."""
        admin, view = self._gids
        if who.uid == 0 or admin in who.groups:
            return Role.ADMIN
        return Role.VIEWER if view in who.groups else Role.STRANGER

    def check(self, who: Caller, verb: str, arguments: Mapping[str, Any]) -> None:
        """Raise NotAllowed, which says who may, unless somebody may have a verb carried out."""
        self.need(Role.VIEWER if looks(verb, arguments) else Role.ADMIN, who, verb)

    def need(self, role: Role, who: Caller, what: str) -> None:
        """Raise NotAllowed, which says who may do WHAT, unless somebody has a role."""
        if self.role(who) < role:
            groups = [name for name in self._names[: 2 if role is Role.VIEWER else 1] if name]
            raise NotAllowed(f"{what}: only {_who(groups)} may do this; you are {who.name}")

    def give(self, path: Path) -> None:
        """Let those connect who have a role. A file has one group: with two, all may, and strangers are sent away."""
        gids = sorted({gid for gid in self._gids if gid is not None})
        mode = (0o600, 0o660, 0o666)[len(gids)]
        os.chmod(path, 0o600)
        os.chown(path, 0, gids[0] if len(gids) == 1 else 0)
        os.chmod(path, mode)


def _who(groups: list[str]) -> str:
    groups = list(dict.fromkeys(groups))
    if not groups:
        return "root"
    return f"root and members of the group{'s' if groups[1:] else ''} {' and '.join(groups)}"


def _gid(name: str) -> int | None:
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise UsageError(f"{name}: there is no such group: make it with 'groupadd --system {name}'") from None
