"""Files of JSON lines that are only ever appended to, bounded in size and number. What a crash tore is passed over."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dynamos_ng.closing import Closing
from dynamos_ng.errors import DynamosError

#: A file that has grown to this many bytes is followed by the next.
FILE_MAX = 4 << 20
PACKED = ".gz"


class Lines(Closing):
    """Files NAME-000001.jsonl and so on, in order; when there are more than `kept`, the oldest goes."""

    def __init__(self, folder: Path, name: str, *, kept: int, size: int = FILE_MAX, packs: bool = False) -> None:
        """Go on where the last file ends; with `packs`, full ones are packed."""
        self._folder, self._name, self._size = folder, name, size
        self._kept, self._packs = kept, packs
        self._lock = threading.Lock()
        self._fd = -1
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            files = numbered(folder, name)
            self._open(_number(files[-1]) + (files[-1].suffix == PACKED) if files else 1)
        except OSError as error:
            raise DynamosError(f"journal {folder}: {error.strerror}: choose another folder with --journal") from None

    def close(self) -> None:
        """Close the file; closing twice is no error."""
        with self._lock:
            if self._fd >= 0:
                os.close(self._fd)
            self._fd = -1

    def _open(self, number: int) -> None:
        path = self._folder / f"{self._name}-{number:06}.jsonl"
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        length = os.fstat(fd).st_size
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._at = fd, number
        self._whole = not length or os.pread(fd, 1, length - 1) == b"\n"
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def append(self, value: dict[str, Any], *, sync: bool) -> None:
        """Write one line, through to the disk if `sync`; OSError when that cannot be done."""
        line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            if os.fstat(self._fd).st_size and os.fstat(self._fd).st_size + len(line) > self._size:
                self._open(self._at + 1)
                for old in numbered(self._folder, self._name)[: -self._kept]:
                    old.unlink(missing_ok=True)
                if self._packs:
                    _pack(self._folder / f"{self._name}-{self._at - 1:06}.jsonl")
            data = memoryview(line if self._whole else b"\n" + line)
            self._whole = False
            while data:
                data = data[os.write(self._fd, data) :]
            self._whole = True
            if sync:
                os.fsync(self._fd)


def numbered(folder: Path, name: str) -> list[Path]:
    """Return the files of a name, oldest first, the packed one where there are both; OSError if they cannot be seen."""
    found: dict[int, Path] = {}
    for file in sorted(os.listdir(folder)):  # unpacked before packed
        if re.fullmatch(rf"{name}-\d+\.jsonl({re.escape(PACKED)})?", file):
            found[_number(folder / file)] = folder / file
    return [file for _, file in sorted(found.items())]


def _number(path: Path) -> int:
    return int(path.name.partition(".")[0].rpartition("-")[2])


def _pack(path: Path) -> None:
    """Put a packed file in the place of one that will not grow any more; there is a whole one at each moment."""
    new = path.with_name(path.name + ".new")
    with open(new, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as stream:
        stream.write(gzip.compress(path.read_bytes()))
    os.replace(new, path.with_name(path.name + PACKED))
    path.unlink()


def content(path: Path) -> bytes:
    """Return a file as it was before it was packed, whether it has been or not, even if that is done just now."""
    if path.suffix != PACKED:
        with contextlib.suppress(FileNotFoundError):
            return path.read_bytes()
        path = path.with_name(path.name + PACKED)
    try:
        with gzip.open(path) as stream:
            return stream.read()
    except (EOFError, zlib.error) as error:
        raise OSError(0, f"damaged: {error}") from None


def read(folder: Path, name: str) -> Iterator[dict[str, Any] | None]:
    """Yield each line of the unpacked files of a name, oldest first, None for one that is torn."""
    for path in numbered(folder, name):
        try:
            stream = path.open("rb")
        except FileNotFoundError:  # it was the oldest, and has just gone
            continue
        with stream:
            for line in filter(bytes.strip, stream):
                try:
                    value = json.loads(line)
                except ValueError:
                    value = None
                yield value if isinstance(value, dict) else None
