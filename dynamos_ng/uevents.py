"""The kernel's own events: what comes under /sys, and what goes, told by netlink to whoever listens."""

from __future__ import annotations

import errno
import os
import select
import socket

from dynamos_ng.closing import Closing
from dynamos_ng.errors import KernelRefused

_KOBJECT_UEVENT = 15  # NETLINK_KOBJECT_UEVENT
_FROM_KERNEL = 1  # the group in which the kernel speaks; udev has another
_ROOM = 1 << 20
_MESSAGE = 1 << 14


class Uevents(Closing):
    """Listens from the moment it is made."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, _KOBJECT_UEVENT)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
            self._socket.bind((0, _FROM_KERNEL))
        except OSError as error:
            self._socket.close()
            raise KernelRefused(f"the kernel's events: {error.strerror}", error.errno or 0) from None
        self._stopped, self._stop = os.pipe2(os.O_CLOEXEC)

    def stop(self) -> None:
        """Make `wait` return None, now and ever after."""
        if self._stop >= 0:
            os.write(self._stop, b".")

    def close(self) -> None:
        """Stop listening; nobody may be in `wait` any more."""
        if self._stop >= 0:
            self._socket.close()
            os.close(self._stopped)
            os.close(self._stop)
            self._stop = -1

    def wait(self) -> tuple[str, str] | None:
        """Return the next event, action and path under /sys; ("lost", "") where some found no room; None at the
        end."""
        while True:
            ready, _, _ = select.select([self._socket.fileno(), self._stopped], [], [])
            if self._stopped in ready:
                return None
            try:
                message, (sender, _groups) = self._socket.recvfrom(_MESSAGE)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                return "lost", ""
            action, separator, path = message.partition(b"\0")[0].decode(errors="replace").partition("@")
            if sender == 0 and separator:
                return action, path
