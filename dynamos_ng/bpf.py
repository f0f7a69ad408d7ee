"""bpf(2) and perf_event_open(2) by ctypes: what the pinned maps and the probes need of them, and no more.

No library and no compiler is needed. Layouts: union bpf_attr of
include/uapi/linux/bpf.h and struct perf_event_attr of include/uapi/linux/perf_event.h. Every function raises
OSError with the kernel's errno; whoever knows what was wanted turns it into words.
"""

from __future__ import annotations

import ctypes as c
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path

# Numbers of the two system calls on x86: 64-bit, and 32-bit (also of a 32-bit program on a 64-bit kernel).
_SYS_BPF, _SYS_PERF_EVENT_OPEN = (321, 298) if c.sizeof(c.c_void_p) == 8 else (357, 336)

_MAP_CREATE, _LOOKUP, _UPDATE, _DELETE, _NEXT_KEY = 0, 1, 2, 3, 4
_PROG_LOAD, _OBJ_PIN, _OBJ_GET = 5, 6, 7
_PROG_FD_BY_ID, _MAP_FD_BY_ID, _OBJ_INFO = 13, 14, 15
_RAW_TRACEPOINT_OPEN, _LINK_CREATE = 17, 28

MAP_HASH, MAP_ARRAY, MAP_PERCPU_ARRAY, MAP_LRU_HASH, MAP_RINGBUF = 1, 2, 6, 9, 27
PROGRAM_KPROBE, PROGRAM_PERF_EVENT, PROGRAM_RAW_TRACEPOINT = 2, 7, 17
F_NO_PREALLOC, F_MMAPABLE = 1, 1 << 10
_LINK_RAW_TRACEPOINT = 1
_ATTACH_PERF_EVENT = 41

_PERF_TYPE_SOFTWARE, _PERF_CPU_CLOCK = 1, 0
_PERF_TYPE_TRACEPOINT = 2
#: Disabled: nothing is armed before the program is there.
_PERF_DISABLED, _PERF_FREQUENCY = 1, 1 << 10
_PERF_FLAG_FD_CLOEXEC = 8
_PERF_EVENT_IOC_ENABLE = 0x2400

_libc = c.CDLL(None, use_errno=True)
_libc.syscall.restype = c.c_long


class _MapCreate(c.Structure):
    _fields_ = [
        ("map_type", c.c_uint32),
        ("key_size", c.c_uint32),
        ("value_size", c.c_uint32),
        ("max_entries", c.c_uint32),
        ("map_flags", c.c_uint32),
        ("inner_map_fd", c.c_uint32),
        ("numa_node", c.c_uint32),
        ("map_name", c.c_char * 16),
    ]


class _Element(c.Structure):
    _fields_ = [
        ("map_fd", c.c_uint32),
        ("pad", c.c_uint32),
        ("key", c.c_uint64),
        ("value", c.c_uint64),
        ("flags", c.c_uint64),
    ]


class _Object(c.Structure):
    _fields_ = [("pathname", c.c_uint64), ("fd", c.c_uint32), ("file_flags", c.c_uint32)]


class _Id(c.Structure):
    _fields_ = [("id", c.c_uint32), ("next_id", c.c_uint32), ("open_flags", c.c_uint32)]


class _InfoCall(c.Structure):
    _fields_ = [("fd", c.c_uint32), ("info_len", c.c_uint32), ("info", c.c_uint64)]


class _RawTracepoint(c.Structure):
    _fields_ = [("name", c.c_uint64), ("prog_fd", c.c_uint32), ("pad", c.c_uint32)]


class _LinkCreate(c.Structure):
    _fields_ = [
        ("prog_fd", c.c_uint32),
        ("target_fd", c.c_uint32),
        ("attach_type", c.c_uint32),
        ("flags", c.c_uint32),
        ("cookie", c.c_uint64),
    ]


class _MapInfo(c.Structure):
    _fields_ = [
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("key_size", c.c_uint32),
        ("value_size", c.c_uint32),
        ("max_entries", c.c_uint32),
        ("map_flags", c.c_uint32),
        ("name", c.c_char * 16),
    ]


class _LinkInfo(c.Structure):
    _fields_ = [
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("prog_id", c.c_uint32),
        ("pad", c.c_uint32),
        ("tp_name", c.c_uint64),
        ("tp_name_len", c.c_uint32),
        ("pad2", c.c_uint32),
    ]


class _ProgInfo(c.Structure):
    _fields_ = [
        ("type", c.c_uint32),
        ("id", c.c_uint32),
        ("tag", c.c_uint8 * 8),
        ("jited_prog_len", c.c_uint32),
        ("xlated_prog_len", c.c_uint32),
        ("jited_prog_insns", c.c_uint64),
        ("xlated_prog_insns", c.c_uint64),
        ("load_time", c.c_uint64),
        ("created_by_uid", c.c_uint32),
        ("nr_map_ids", c.c_uint32),
        ("map_ids", c.c_uint64),
        ("name", c.c_char * 16),
        ("between", c.c_uint8 * 128),
        ("recursion_misses", c.c_uint64),
    ]


class _ProgLoad(c.Structure):
    _fields_ = [
        ("type", c.c_uint32),
        ("count", c.c_uint32),
        ("code", c.c_uint64),
        ("licence", c.c_uint64),
        ("log_level", c.c_uint32),
        ("log_size", c.c_uint32),
        ("log", c.c_uint64),
        ("kernel_version", c.c_uint32),
        ("flags", c.c_uint32),
    ]


class _PerfAttr(c.Structure):
    """PERF_ATTR_SIZE_VER0: 64 bytes."""

    _fields_ = [
        ("type", c.c_uint32),
        ("size", c.c_uint32),
        ("config", c.c_uint64),
        ("sample_period", c.c_uint64),
        ("sample_type", c.c_uint64),
        ("read_format", c.c_uint64),
        ("flags", c.c_uint64),
        ("wakeup_events", c.c_uint32),
        ("bp_type", c.c_uint32),
        ("config1", c.c_uint64),
    ]


@dataclass(frozen=True)
class MapShape:
    """What a map must be: type, sizes in bytes, number of entries, flags."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int = 0


@dataclass(frozen=True)
class MapInfo:
    """What the kernel says a map is."""

    id: int
    name: str
    shape: MapShape


@dataclass(frozen=True)
class LinkInfo:
    """A raw tracepoint link: where it is attached and the id of the program that it runs."""

    id: int
    program: int
    tracepoint: str


def _bpf(command: int, attr: c.Structure) -> int:
    result = int(_libc.syscall(c.c_long(_SYS_BPF), c.c_long(command), c.byref(attr), c.c_ulong(c.sizeof(attr))))
    if result < 0:
        number = c.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _text(value: os.PathLike[str] | str) -> c.Array[c.c_char]:
    return c.create_string_buffer(os.fsencode(value))


def map_create(name: str, shape: MapShape) -> int:
    """Create a map and return its descriptor."""
    return _bpf(
        _MAP_CREATE,
        _MapCreate(
            map_type=shape.type,
            key_size=shape.key_size,
            value_size=shape.value_size,
            max_entries=shape.max_entries,
            map_flags=shape.flags,
            map_name=name.encode(),
        ),
    )


def _element(command: int, fd: int, key: bytes | None, value: c.Array[c.c_char] | None, flags: int = 0) -> None:
    raw_key = c.create_string_buffer(key, len(key)) if key is not None else None
    attr = _Element(
        map_fd=fd,
        key=c.addressof(raw_key) if raw_key is not None else 0,
        value=c.addressof(value) if value is not None else 0,
        flags=flags,
    )
    _bpf(command, attr)


def lookup(fd: int, key: bytes, size: int) -> bytes:
    """Return `size` bytes of value: of a per-CPU map, all possible CPUs' values, each padded to 8 bytes."""
    value = c.create_string_buffer(size)
    _element(_LOOKUP, fd, key, value)
    return value.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    """Write an element, new or not."""
    _element(_UPDATE, fd, key, c.create_string_buffer(value, len(value)))


def delete(fd: int, key: bytes) -> None:
    """Delete an element of a hash map."""
    _element(_DELETE, fd, key, None)


def next_key(fd: int, key: bytes | None, size: int) -> bytes | None:
    """Return the key after `key` (the first one for None), or None at the end."""
    following = c.create_string_buffer(size)
    try:
        _element(_NEXT_KEY, fd, key, following)
    except FileNotFoundError:
        return None
    return following.raw


def pin(fd: int, path: Path) -> None:
    """Pin a map, program or link at a path inside bpffs."""
    name = _text(path)
    _bpf(_OBJ_PIN, _Object(pathname=c.addressof(name), fd=fd))


def open_pin(path: Path) -> int:
    """Return a descriptor of what is pinned at a path."""
    name = _text(path)
    return _bpf(_OBJ_GET, _Object(pathname=c.addressof(name)))


def map_by_id(number: int) -> int:
    """Return a descriptor of the map with this id."""
    return _bpf(_MAP_FD_BY_ID, _Id(id=number))


def program_by_id(number: int) -> int:
    """Return a descriptor of the program with this id."""
    return _bpf(_PROG_FD_BY_ID, _Id(id=number))


def _info(fd: int, info: c.Structure) -> None:
    _bpf(_OBJ_INFO, _InfoCall(fd=fd, info_len=c.sizeof(info), info=c.addressof(info)))


def is_map(fd: int) -> bool:
    """Return whether a descriptor is a BPF map's: asked of something else, the kernel fills another struct."""
    return os.readlink(f"/proc/self/fd/{fd}").endswith("bpf-map")


def is_link(fd: int) -> bool:
    """Return whether a descriptor is a BPF link's."""
    return os.readlink(f"/proc/self/fd/{fd}").endswith(("bpf-link", "bpf_link"))


def map_info(fd: int) -> MapInfo:
    """Return what the kernel says a map is."""
    raw = _MapInfo()
    _info(fd, raw)
    shape = MapShape(raw.type, raw.key_size, raw.value_size, raw.max_entries, raw.map_flags)
    return MapInfo(raw.id, raw.name.decode(), shape)


def link_info(fd: int) -> LinkInfo | None:
    """Return where a raw tracepoint link is attached; None for a link of another kind."""
    name = c.create_string_buffer(128)
    raw = _LinkInfo(tp_name=c.addressof(name), tp_name_len=len(name))
    _info(fd, raw)
    if raw.type != _LINK_RAW_TRACEPOINT:
        return None
    return LinkInfo(raw.id, raw.prog_id, name.value.decode())


def program_maps(fd: int) -> frozenset[int]:
    """Return the ids of the maps that a program uses."""
    ids = (c.c_uint32 * 64)()
    raw = _ProgInfo(nr_map_ids=len(ids), map_ids=c.addressof(ids))
    _info(fd, raw)
    return frozenset(ids[: raw.nr_map_ids])


def program_name(fd: int) -> str:
    """Return a program's name, of which the kernel keeps the first 15 bytes."""
    raw = _ProgInfo()
    _info(fd, raw)
    return str(raw.name.decode())


def program_misses(fd: int) -> int:
    """Return how often a program was to run and did not, for it was running on that CPU already."""
    raw = _ProgInfo()
    _info(fd, raw)
    return int(raw.recursion_misses)


def verifier_words(kind: int, code: bytes, licence: bytes) -> str:
    """Return what the verifier says of a program that it refuses, "" if it accepts it."""
    log = c.create_string_buffer(1 << 20)
    words, text = c.create_string_buffer(code, len(code)), c.create_string_buffer(licence)
    attr = _ProgLoad(
        type=kind, count=len(code) // 8, code=c.addressof(words), licence=c.addressof(text),
        log_level=1, log_size=len(log), log=c.addressof(log),
    )  # fmt: skip
    try:
        os.close(_bpf(_PROG_LOAD, attr))
    except OSError:
        return log.value.decode(errors="replace")
    return ""


def raw_tracepoint_open(name: str, program: int) -> int:
    """Attach a program to a raw tracepoint and return the link's descriptor: closed and not pinned, it detaches."""
    text = _text(name)
    return _bpf(_RAW_TRACEPOINT_OPEN, _RawTracepoint(name=c.addressof(text), prog_fd=program))


def attach_to_trace_event(event_id: int, program: int, cookie: int) -> tuple[int, int]:
    """Run a program at a trace event, on all CPUs, and return (perf event, link) descriptors: close the link first.

    The program reads `cookie` with bpf_get_attach_cookie().
    """
    attr = _PerfAttr(
        type=_PERF_TYPE_TRACEPOINT, config=event_id, sample_period=1, flags=_PERF_DISABLED, wakeup_events=1
    )
    # The CPU only says where perf would keep samples; programs run wherever the event is hit.
    return _attach_to_perf_event(attr, 0, program, cookie)


def attach_to_clock(cpu: int, hertz: int, program: int) -> tuple[int, int]:
    """Run a program so many times a second on one CPU, and return (perf event, link) as `attach_to_trace_event`."""
    attr = _PerfAttr(
        type=_PERF_TYPE_SOFTWARE, config=_PERF_CPU_CLOCK, sample_period=hertz, flags=_PERF_DISABLED | _PERF_FREQUENCY
    )
    return _attach_to_perf_event(attr, cpu, program, 0)


def _attach_to_perf_event(attr: _PerfAttr, cpu: int, program: int, cookie: int) -> tuple[int, int]:
    attr.size = c.sizeof(attr)
    arguments = (c.byref(attr), c.c_long(-1), c.c_long(cpu), c.c_long(-1), c.c_ulong(_PERF_FLAG_FD_CLOEXEC))
    perf = int(_libc.syscall(c.c_long(_SYS_PERF_EVENT_OPEN), *arguments))
    if perf < 0:
        number = c.get_errno()
        raise OSError(number, os.strerror(number))
    link = -1
    try:
        link = _bpf(
            _LINK_CREATE,
            _LinkCreate(prog_fd=program, target_fd=perf, attach_type=_ATTACH_PERF_EVENT, cookie=cookie),
        )
        fcntl.ioctl(perf, _PERF_EVENT_IOC_ENABLE, 0)
    except OSError:
        if link >= 0:
            os.close(link)
        os.close(perf)
        raise
    return perf, link
