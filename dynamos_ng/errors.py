"""The one exception tree: what went wrong, the exit status it means, and the module's errno table.

Every error that a user can cause or meet is a `DynamosError`; its message names what, where and what to do.
The command line prints the message after ``dynamos: `` and exits with the class's `exit_code`.
"""

from __future__ import annotations

import re


class DynamosError(Exception):
    """Something that the user must be told. ``str(error)`` is the whole message, one line or more."""

    exit_code = 1


class UsageError(DynamosError):
    """The call itself is wrong: an unknown option, a bad value, a file that is not there."""

    exit_code = 2


class MissingTool(DynamosError):
    """A program, package or kernel feature that the task needs is not on this machine."""


class BuildError(DynamosError):
    """An update does not compile or link; the compiler's own words are in the message."""


class ImageError(DynamosError):
    """The kernel's image cannot be read; the message says what is in the way."""


class Refusal(DynamosError):
    """A function that cannot be changed with certainty, told before anything in the kernel has changed.

    `kind` groups refusals of one cause; it holds no address and no name. Without one it is REASON, its numbers masked.
    """

    def __init__(
        self, function: str, reason: str, *, address: int | None = None, remedy: str = "", kind: str = ""
    ) -> None:
        where = f" at {address:#x}" if address is not None else ""
        super().__init__(f"{function}: refused{where}: {reason}" + (f" ({remedy})" if remedy else ""))
        self.function = function
        self.reason = reason
        self.address = address
        self.remedy = remedy
        self.kind = kind or re.sub(r"-?\b(0x[0-9a-f]+|\d+)\b", "…", reason)


class KernelRefused(DynamosError):
    """dynamos.ko turned a request down; nothing was changed.

    ``errno`` is the number that the module gave (its meanings: kmod/uapi/dynamos.h), ``address`` is where a hook or a
    variable of the update stood in the way.
    """

    def __init__(self, message: str, errno: int = 0, address: int = 0) -> None:
        super().__init__(message)
        self.errno = errno
        self.address = address


class Busy(DynamosError):
    """Code is still in use: the message names the tasks that hold it."""


class DaemonUnreachable(DynamosError):
    """No daemon answers on the control socket."""

    exit_code = 3


class NotAllowed(DynamosError):
    """The caller has no role that may do this; the message says who may."""

    exit_code = 4


class LabError(DynamosError):
    """The lab could not be built or started."""


class GuestTimeout(LabError):
    """The guest command did not end in time; the message ends with the console's last lines."""

    exit_code = 124


class GuestDied(LabError):
    """The guest stopped without giving a status (oops, panic, QEMU gone); the console's end is in the message."""

    exit_code = 125
