"""The protocol of /dev/dynamos, mirrored from kmod/uapi/dynamos.h.

tests/abi compiles the header and compares every size, offset and number with what stands here.
"""

from __future__ import annotations

import ctypes as c

ABI = 14
FUNCTIONS_MAX = 1024
EDITIONS_MAX = 16
CLASSES = 256
INTERRUPTS = 255
RANGES_MAX = 4096
HOLDERS_MAX = 65536
NAME_MAX = 128
UPDATE_MAX = 64
COMM_MAX = 16
FRAMES_MAX = 12
CONFIRM_MAX = 86400

LOADED = 0
REDIRECTED = 1
DRAINING = 2

SETTLED = 0
WAITING = 1
REVERTING = 2
REVERTED = 3

NEVER_RETURNS = 1
QUIESCENT = 1
CONSISTENT = 2
PHASED = 4
EXPECTS = 1

ADAPTS = 1
TELLS = 2

PHASE_ASK = 0
PHASE_RAISE = 1
PHASE_BACK = 2


class Info(c.Structure):
    """struct dynamos_info"""

    _fields_ = [
        ("size", c.c_uint32),
        ("abi", c.c_uint32),
        ("current_offset", c.c_uint64),
        ("tgid_offset", c.c_uint32),
        ("pid_limit", c.c_uint32),
        ("anchor", c.c_uint64),
        ("functions", c.c_uint32),
        ("redirected", c.c_uint32),
        ("map_id", c.c_uint32 * 4),
        ("pid_offset", c.c_uint32),
        ("signal_offset", c.c_uint32),
        ("live_offset", c.c_uint32),
        ("cpu_offset", c.c_uint32),
        ("preempt_offset", c.c_uint64),
        ("interrupt_mask", c.c_uint32),
        ("reserved", c.c_uint32),
    ]


class Maps(c.Structure):
    """struct dynamos_maps"""

    _fields_ = [
        ("size", c.c_uint32),
        ("policy_fd", c.c_int32),
        ("editions_fd", c.c_int32),
        ("use_fd", c.c_int32),
        ("must_update_fd", c.c_int32),
    ]


class EditionInfo(c.Structure):
    """struct dynamos_edition_info"""

    _fields_ = [
        ("number", c.c_uint32),
        ("flags", c.c_uint32),
        ("start", c.c_uint64),
        ("end", c.c_uint64),
    ]


class FunctionInfo(c.Structure):
    """struct dynamos_function_info"""

    _fields_ = [
        ("size", c.c_uint32),
        ("id", c.c_uint32),
        ("state", c.c_uint32),
        ("nr_editions", c.c_uint32),
        ("flags", c.c_uint32),
        ("program", c.c_uint32),
        ("unknown", c.c_uint64),
        ("avoided", c.c_uint64),
        ("order", c.c_uint32),
        ("reserved", c.c_uint32),
        ("address", c.c_uint64),
        ("image_size", c.c_uint64),
        ("site", c.c_uint64),
        ("handler", c.c_uint64),
        ("end", c.c_uint64),
        ("original_bytes", c.c_uint8 * 8),
        ("trampoline", c.c_uint8 * 8),
        ("name", c.c_char * NAME_MAX),
        ("update", c.c_char * UPDATE_MAX),
        ("module", c.c_char * UPDATE_MAX),
        ("editions", EditionInfo * EDITIONS_MAX),
    ]


class UpdateInfo(c.Structure):
    """struct dynamos_update_info"""

    _fields_ = [
        ("size", c.c_uint32),
        ("id", c.c_uint32),
        ("state", c.c_uint32),
        ("functions", c.c_uint32),
        ("variables", c.c_uint32),
        ("confirm", c.c_uint32),
        ("confirm_left", c.c_uint32),
        ("confirm_error", c.c_uint32),
        ("shadows", c.c_uint64),
        ("name", c.c_char * UPDATE_MAX),
    ]


class VariableInfo(c.Structure):
    """struct dynamos_variable_info"""

    _fields_ = [
        ("size", c.c_uint32),
        ("update", c.c_uint32),
        ("index", c.c_uint32),
        ("bytes", c.c_uint32),
        ("address", c.c_uint64),
        ("value", c.c_uint8 * 8),
        ("old", c.c_uint8 * 8),
        ("now", c.c_uint8 * 8),
        ("name", c.c_char * NAME_MAX),
    ]


class Culprit(c.Structure):
    """struct dynamos_culprit"""

    _fields_ = [
        ("function", c.c_uint32),
        ("pid", c.c_int32),
        ("address", c.c_uint64),
        ("found", c.c_uint8 * 8),
        ("comm", c.c_char * COMM_MAX),
    ]


class Switch(c.Structure):
    """struct dynamos_switch"""

    _fields_ = [
        ("size", c.c_uint32),
        ("count", c.c_uint32),
        ("ids", c.c_uint64),
        ("stop_ns", c.c_uint64),
        ("tasks", c.c_uint32),
        ("update", c.c_uint32),
        ("hook_error", c.c_int32),
        ("left", c.c_uint32),
        ("confirm", c.c_uint32),
        ("reserved", c.c_uint32),
        ("culprit", Culprit),
    ]


class Range(c.Structure):
    """struct dynamos_range"""

    _fields_ = [("start", c.c_uint64), ("end", c.c_uint64)]


class Holder(c.Structure):
    """struct dynamos_holder"""

    _fields_ = [
        ("pid", c.c_int32),
        ("tgid", c.c_int32),
        ("address", c.c_uint64),
        ("range", c.c_uint32),
        ("words", c.c_uint32),
        ("comm", c.c_char * COMM_MAX),
        ("frames", c.c_uint64 * FRAMES_MAX),
    ]


class Stacks(c.Structure):
    """struct dynamos_stacks"""

    _fields_ = [
        ("size", c.c_uint32),
        ("nr_ranges", c.c_uint32),
        ("ranges", c.c_uint64),
        ("holders", c.c_uint64),
        ("max_holders", c.c_uint32),
        ("nr_holders", c.c_uint32),
        ("tasks", c.c_uint32),
        ("reserved", c.c_uint32),
        ("words", c.c_uint64),
        ("stop_ns", c.c_uint64),
    ]


class Adapt(c.Structure):
    """struct dynamos_adapt"""

    _fields_ = [
        ("size", c.c_uint32),
        ("function", c.c_uint32),
        ("program_fd", c.c_int32),
        ("reserved", c.c_uint32),
    ]


class Retire(c.Structure):
    """struct dynamos_retire"""

    _fields_ = [
        ("size", c.c_uint32),
        ("tasks", c.c_uint32),
        ("update", c.c_char * UPDATE_MAX),
        ("culprit", Culprit),
    ]


class Confirm(c.Structure):
    """struct dynamos_confirm"""

    _fields_ = [("size", c.c_uint32), ("reserved", c.c_uint32), ("update", c.c_char * UPDATE_MAX)]


class Nudge(c.Structure):
    """struct dynamos_nudge"""

    _fields_ = [("size", c.c_uint32), ("pid", c.c_int32)]


class Phase(c.Structure):
    """struct dynamos_phase"""

    _fields_ = [
        ("size", c.c_uint32),
        ("move", c.c_uint32),
        ("update", c.c_char * UPDATE_MAX),
        ("flags", c.c_uint32),
        ("phase", c.c_uint32),
        ("must_update", c.c_uint32),
        ("pinned", c.c_uint32),
        ("stop_ns", c.c_uint64),
        ("culprit", Culprit),
    ]


class Area(c.Structure):
    """struct dynamos_area"""

    _fields_ = [("start", c.c_uint64), ("size", c.c_uint64)]


class ModuleInfo(c.Structure):
    """struct dynamos_module_info"""

    _fields_ = [
        ("size", c.c_uint32),
        ("bug_size", c.c_uint32),
        ("name", c.c_char * UPDATE_MAX),
        ("load", c.c_uint64),
        ("text", Area),
        ("ro_after_init", Area),
        ("fixups", Area),
        ("keys", Area),
        ("bugs", Area),
        ("static_calls", Area),
        ("orc_ips", Area),
        ("orc", Area),
    ]


_IOC_TYPE = 0xD7
_WRITE, _READ = 1, 2


def _ioc(direction: int, number: int, struct: type[c.Structure]) -> int:
    """Return an ioctl number, as _IOC() of asm-generic/ioctl.h makes it."""
    return direction << 30 | c.sizeof(struct) << 16 | _IOC_TYPE << 8 | number


IOC_INFO = _ioc(_READ | _WRITE, 0, Info)
IOC_MAPS = _ioc(_WRITE, 1, Maps)
IOC_FUNCTION = _ioc(_READ | _WRITE, 2, FunctionInfo)
IOC_ACTIVATE = _ioc(_READ | _WRITE, 3, Switch)
IOC_DEACTIVATE = _ioc(_READ | _WRITE, 4, Switch)
IOC_STACKS = _ioc(_READ | _WRITE, 5, Stacks)
IOC_RETIRE = _ioc(_READ | _WRITE, 6, Retire)
IOC_ADAPT = _ioc(_WRITE, 7, Adapt)
IOC_PHASE = _ioc(_READ | _WRITE, 8, Phase)
IOC_UPDATE = _ioc(_READ | _WRITE, 9, UpdateInfo)
IOC_VARIABLE = _ioc(_READ | _WRITE, 10, VariableInfo)
IOC_NUDGE = _ioc(_WRITE, 11, Nudge)
IOC_CONFIRM = _ioc(_WRITE, 12, Confirm)
IOC_MODULE = _ioc(_READ | _WRITE, 16, ModuleInfo)
