"""Writes cpio archives of the kernel's own format ("newc") without a cpio program."""

from __future__ import annotations

import stat
from dataclasses import dataclass, field

TRAILER = "TRAILER!!!"


def _pad(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


@dataclass
class Archive:
    """A growing archive; files belong to root and carry time 0, so equal content gives equal bytes."""

    _parts: list[bytes] = field(default_factory=list)
    _names: set[str] = field(default_factory=set)

    def _entry(self, name: str, mode: int, data: bytes, links: int) -> None:
        encoded = name.encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device major and minor, special major and minor, name, check
        words = (len(self._names) + 1, mode, 0, 0, links, 0, len(data), 0, 0, 0, 0, len(encoded), 0)
        header = b"070701" + b"".join(b"%08x" % word for word in words)
        self._parts.append(_pad(header + encoded) + _pad(data))
        self._names.add(name)

    def _parents(self, name: str) -> None:
        folder = name.rpartition("/")[0]
        if folder and folder not in self._names:
            self.folder(folder)

    def folder(self, name: str, permissions: int = 0o755) -> None:
        """Add a folder, and those above it that are not there yet."""
        self._parents(name)
        self._entry(name, stat.S_IFDIR | permissions, b"", 2)

    def file(self, name: str, data: bytes, permissions: int = 0o644) -> None:
        """Add a file, and the folders above it."""
        self._parents(name)
        self._entry(name, stat.S_IFREG | permissions, data, 1)

    def link(self, name: str, target: str) -> None:
        """Add a symbolic link, and the folders above it."""
        self._parents(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode(), 1)

    def finish(self) -> bytes:
        """Return the archive's bytes, padded as the kernel's own tool does it."""
        header = b"070701" + b"%08x" * 13 % (0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, len(TRAILER) + 1, 0)
        whole = b"".join(self._parts) + _pad(header + TRAILER.encode() + b"\0")
        return whole + b"\0" * (-len(whole) % 512)
