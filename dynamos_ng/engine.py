"""What makes the programs of bpf/ run: bcc, or where there is none libbpf with objects compiled ahead.

The only place that decides between the two, and the only importer of bcc. Both compile the same sources and give the
same thing: descriptors of programs and maps.
"""

from __future__ import annotations

import atexit
import ctypes as c
import errno
import importlib
import os
import struct
import sys
import tempfile
import threading
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from dynamos_ng import bpf
from dynamos_ng.build import bpf_objects
from dynamos_ng.closing import Closing
from dynamos_ng.errors import BuildError, KernelRefused, MissingTool

SOURCES = Path(__file__).resolve().parent.parent / "bpf"
BCC, LIBBPF = "bcc", "libbpf"
_LIBRARY = "libbpf.so.1"
#: Places that only the running kernel tells, in the order of bpf/libbpf.h.
OFFSETS = ("TASK_PID", "TASK_TGID", "TASK_SIGNAL", "SIGNAL_LIVE", "RETURN_VALUE")
LICENCE = b"GPL"
#: How much of the verifier's log an error shows: its end says what is wrong.
VERIFIER_LINES = 24
#: There is one stderr.
_STDERR = threading.Lock()
_PAGE = 4096
_LOG = 1 << 20


@dataclass(frozen=True)
class Source:
    """A file of bpf/, the type of its programs, and what is left open in it.

    `entries` gives the room in maps by name, of ring buffers in pages. `pins` are maps that are there already, by name.
    `offsets` are those of OFFSETS that it uses. `text` is that of a source that is not in bpf/ but an author's, who
    also says how much room there is; it may use `constants`.
    """

    file: str
    kind: int
    entries: Mapping[str, int] = field(default_factory=dict)
    pins: Mapping[str, Path] = field(default_factory=dict)
    offsets: Mapping[str, int] = field(default_factory=dict)
    text: str = ""
    constants: Mapping[str, int] = field(default_factory=dict)


class Programs(Closing):
    """A source's programs and maps in the kernel, until it is closed."""

    @abstractmethod
    def program(self, name: str, /) -> int:
        """Return the descriptor of a program; it stays ours."""

    @abstractmethod
    def table(self, name: str, /) -> int:
        """Return the descriptor of a map; it stays ours."""

    @abstractmethod
    def receive(self, ring: str, take: Callable[[bytes], None], /) -> Callable[[], object]:
        """Return what, each time it is called, hands all that a ring buffer holds to TAKE."""


def name() -> str:
    """Return which engine this machine has: "bcc" or "libbpf"."""
    found = find_spec(BCC)
    if found is not None and found.origin is not None:  # a mere folder of that name has none
        return BCC
    try:
        c.CDLL(_LIBRARY)
    except OSError:
        raise MissingTool(
            "neither bcc's Python module nor libbpf is there: apt-get install python3-bpfcc, or libbpf1 where that is "
            "not to be had"
        ) from None
    return LIBBPF


def load(source: Source) -> Programs:
    """Compile a source, or take what was compiled of it, and make its maps. MissingTool, KernelRefused."""
    return _Bcc(source) if name() == BCC else _Libbpf(source)


def authors_text(source: Source) -> str:
    """Return an author's text with what it may use in front; the compiler counts its lines alone."""
    return f'{(SOURCES / "adapt.h").read_text()}#line 1 "{source.file}"\n{source.text}'


def _constants(source: Source) -> dict[str, int]:
    return {**source.constants, "KERNEL_WORD": c.sizeof(c.c_void_p)}


def refused(file: str, program: str, words: str) -> KernelRefused:
    """Return the error for a program that does not load: the end of what was said is what says why."""
    end = "\n".join(f"  {line}" for line in words.strip().splitlines()[-VERIFIER_LINES:])
    return KernelRefused(f"BPF program {program} of {file}: the kernel refuses it:\n{end}", errno.EACCES)


@contextmanager
def _stderr() -> Iterator[Callable[[], str]]:
    """Keep what comes on stderr, which is where bcc's compiler writes; it is passed on afterwards."""
    with _STDERR, tempfile.TemporaryFile() as file:
        sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: os.pread(file.fileno(), 1 << 16, 0).decode(errors="replace").strip()
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            os.write(2, os.pread(file.fileno(), 1 << 16, 0))


class _Bcc(Programs):
    def __init__(self, source: Source) -> None:
        bcc = importlib.import_module("bcc")
        defines: dict[str, object] = {f"{name.upper()}_ENTRIES": room for name, room in source.entries.items()}
        defines |= {f"{name.upper()}_PIN": f'"{path}"' for name, path in source.pins.items()}
        defines |= source.offsets
        defines |= _constants(source)
        flags = [f"-D{name}={value}" for name, value in defines.items()]
        # Kernels from 6.12 on use anonymous members in headers that bcc 0.26 does not know.
        flags += ["-fms-extensions", "-w"]
        self._file, self._kind = source.file, source.kind
        path = SOURCES / source.file
        text = authors_text(source) if source.text else path.read_text()
        with _stderr() as words:
            try:
                self._module: Any = bcc.BPF(text=text.encode(), cflags=flags)
            except Exception as error:  # bcc raises nothing more precise
                if source.text and words():
                    raise BuildError(f"{source.file}: bcc cannot compile it:\n{words()}") from None
                raise MissingTool(
                    f"bcc cannot compile {path}: {error}; are the headers of the running kernel installed? "
                    f"apt-get install linux-headers-{os.uname().release}"
                ) from None

    def close(self) -> None:
        """Detach and close everything, which otherwise lives as long as the process."""
        if self._module is not None:
            atexit.unregister(self._module.cleanup)
            self._module.cleanup()
            self._module = None

    def program(self, name: str) -> int:
        code = b""
        try:
            code = self._module.dump_func(name.encode())
            return int(self._module.load_func(name.encode(), self._kind).fd)
        except Exception as error:  # bcc raises nothing more precise
            words = code and bpf.verifier_words(self._kind, code, LICENCE)
            raise refused(self._file, name, words or str(error)) from None

    def table(self, name: str) -> int:
        return int(self._module[name.encode()].map_fd)

    def receive(self, ring: str, take: Callable[[bytes], None]) -> Callable[[], object]:
        self._module[ring.encode()].open_ring_buffer(lambda _context, data, size: take(c.string_at(data, size)))
        consume: Callable[[], object] = self._module.ring_buffer_consume
        return consume


_Sample = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_void_p, c.c_size_t)
_POINTER, _FD = c.c_void_p, c.c_int
#: Results and arguments of libbpf's functions (bpf/libbpf.h of libbpf-dev).
_FUNCTIONS: Mapping[str, tuple[Any, ...]] = {
    "libbpf_set_print": (_POINTER, _POINTER),
    "bpf_object__open_file": (_POINTER, c.c_char_p, _POINTER),
    "bpf_object__load": (c.c_int, _POINTER),
    "bpf_object__close": (None, _POINTER),
    "bpf_object__next_program": (_POINTER, _POINTER, _POINTER),
    "bpf_object__find_program_by_name": (_POINTER, _POINTER, c.c_char_p),
    "bpf_object__find_map_by_name": (_POINTER, _POINTER, c.c_char_p),
    "bpf_program__set_type": (c.c_int, _POINTER, c.c_int),
    "bpf_program__fd": (_FD, _POINTER),
    "bpf_program__name": (c.c_char_p, _POINTER),
    "bpf_program__set_log_buf": (c.c_int, _POINTER, _POINTER, c.c_size_t),
    "bpf_map__type": (c.c_int, _POINTER),
    "bpf_map__fd": (_FD, _POINTER),
    "bpf_map__reuse_fd": (c.c_int, _POINTER, _FD),
    "bpf_map__set_max_entries": (c.c_int, _POINTER, c.c_uint32),
    "bpf_map__set_initial_value": (c.c_int, _POINTER, c.c_char_p, c.c_size_t),
    "ring_buffer__new": (_POINTER, _FD, _Sample, _POINTER, _POINTER),
    "ring_buffer__consume": (c.c_int, _POINTER),
    "ring_buffer__free": (None, _POINTER),
}


class _Libbpf(Programs):
    _logs: dict[str, c.Array[c.c_char]]

    def __init__(self, source: Source) -> None:
        self._file, self._logs = source.file, {}
        self._library = c.CDLL(_LIBRARY, use_errno=True)
        for function, (result, *arguments) in _FUNCTIONS.items():
            entry = getattr(self._library, function)
            entry.restype, entry.argtypes = result, arguments
        self._library.libbpf_set_print(None)
        with ExitStack() as undo:
            path = self._object_file(source, undo)
            self._object = self._made("open", self._library.bpf_object__open_file(bytes(path), None))
            undo.callback(self._library.bpf_object__close, self._object)
            self._prepare(source)
            if (code := self._library.bpf_object__load(self._object)) < 0:
                for name, log in self._logs.items():
                    if log.value:
                        raise refused(self._file, name, log.value.decode(errors="replace"))
            self._done("load", code)
            self._logs.clear()
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Close everything; what is attached or pinned stays so."""
        self._undo.close()

    def _object_file(self, source: Source, undo: ExitStack) -> Path:
        if not source.text:
            return bpf_objects.path(source.file)
        path = Path(undo.enter_context(tempfile.TemporaryDirectory(prefix="dynamos-bpf-"))) / "object"
        bpf_objects.compile_text(source.file, authors_text(source), _constants(source), path)
        return path

    def _prepare(self, source: Source) -> None:
        library = self._library
        program = None
        while program := library.bpf_object__next_program(self._object, program):
            self._done("type", library.bpf_program__set_type(program, source.kind))
            log = self._logs[library.bpf_program__name(program).decode()] = c.create_string_buffer(_LOG)
            self._done("log", library.bpf_program__set_log_buf(program, log, len(log)))
        for name, room in source.entries.items():
            found = self._map(name)
            unit = _PAGE if library.bpf_map__type(found) == bpf.MAP_RINGBUF else 1
            self._done(name, library.bpf_map__set_max_entries(found, room * unit))
        for name, pin in source.pins.items():
            fd = bpf.open_pin(pin)
            try:
                self._done(name, library.bpf_map__reuse_fd(self._map(name), fd))
            finally:
                os.close(fd)
        if source.offsets:
            raw = struct.pack(f"={len(OFFSETS)}I", *(source.offsets.get(name, 0) for name in OFFSETS))
            self._done("offsets", library.bpf_map__set_initial_value(self._map(".rodata"), raw, len(raw)))

    def _made(self, what: str, pointer: int | None) -> int:
        if not pointer:
            self._done(what, -(c.get_errno() or 1))
        return pointer or 0

    def _done(self, what: str, code: int) -> None:
        """Raise KernelRefused for a call that failed; it returns its errno, negative."""
        if code < 0:
            raise KernelRefused(f"BPF programs of {self._file}: {what}: {os.strerror(-code)}", -code)

    def _map(self, name: str) -> int:
        return self._made(name, self._library.bpf_object__find_map_by_name(self._object, name.encode()))

    def program(self, name: str) -> int:
        found = self._made(name, self._library.bpf_object__find_program_by_name(self._object, name.encode()))
        return int(self._library.bpf_program__fd(found))

    def table(self, name: str) -> int:
        return int(self._library.bpf_map__fd(self._map(name)))

    def receive(self, ring: str, take: Callable[[bytes], None]) -> Callable[[], object]:
        def sample(_context: int, data: int, size: int) -> int:
            take(c.string_at(data, size))
            return 0

        callback = _Sample(sample)
        made = self._made(ring, self._library.ring_buffer__new(self.table(ring), callback, None, None))
        self._undo.callback(self._library.ring_buffer__free, made)
        self._undo.callback(lambda: callback)  # it lives as long as the ring that calls it
        return lambda: self._library.ring_buffer__consume(made)
