"""The pinned BPF maps: policy, editions, use counters, conditions and exec rules; those of a policy are in policymaps.

Generated code and dynamos.ko read and count in the value areas of the first four (kmod/maps.c checks the same shapes):

    policy    one byte per process, indexed by tgid: its policy class. Seen as a map: value of key P // 8, byte P % 8
    editions  one row of 256 bytes per function id: the edition of each policy class; 0 counts as 1
    use       per CPU, at function id * 16 + edition: {u64 entered, u64 exited}
    must_update   by the id of a synchronised update's first function: u64, not 0 once phase 3 is wanted
    rules     program name, NUL padded to 16 bytes -> policy class in a u64; read at exec by bpf/classify.c

`bpftool map dump pinned /sys/fs/bpf/dynamos/NAME` shows any of them.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

from dynamos_ng import bpf, uapi
from dynamos_ng.closing import Closing
from dynamos_ng.errors import DynamosError, KernelRefused, MissingTool, UsageError
from dynamos_ng.policy.classes import RULE_BYTES, SLOTS

BPFFS = Path("/sys/fs/bpf")
PIN_DIR = BPFFS / "dynamos"

#: No tgid reaches this (PID_MAX_LIMIT of include/linux/threads.h).
PID_LIMIT = 4 << 20 if os.uname().machine == "x86_64" else 32768
RULES_MAX = 4096
#: Of so many processes it is known what was decided on them.
DECISIONS_MAX = min(PID_LIMIT, 1 << 17)
#: Cgroups times rules that name cgroups; those that were not asked for longest make room, and are learnt again.
CGROUP_RULES_MAX = 1 << 15

SHAPES = {
    "policy": bpf.MapShape(bpf.MAP_ARRAY, 4, 8, PID_LIMIT // 8, bpf.F_MMAPABLE),
    "editions": bpf.MapShape(bpf.MAP_ARRAY, 4, uapi.CLASSES, uapi.FUNCTIONS_MAX, bpf.F_MMAPABLE),
    "use": bpf.MapShape(bpf.MAP_PERCPU_ARRAY, 4, 16, uapi.FUNCTIONS_MAX * uapi.EDITIONS_MAX),
    "must_update": bpf.MapShape(bpf.MAP_ARRAY, 4, 8, uapi.FUNCTIONS_MAX, bpf.F_MMAPABLE),
    "rules": bpf.MapShape(bpf.MAP_HASH, uapi.COMM_MAX, 8, RULES_MAX),
    "policy_state": bpf.MapShape(bpf.MAP_ARRAY, 4, 8, 2, bpf.F_MMAPABLE),
    "policy_rules": bpf.MapShape(bpf.MAP_ARRAY, 4, RULE_BYTES, 2 * SLOTS),
    "decisions": bpf.MapShape(bpf.MAP_HASH, 4, 32, DECISIONS_MAX, bpf.F_NO_PREALLOC),
    "judgements": bpf.MapShape(bpf.MAP_HASH, 4, 24, DECISIONS_MAX, bpf.F_NO_PREALLOC),
    "cgroup_rules": bpf.MapShape(bpf.MAP_LRU_HASH, 16, 4, CGROUP_RULES_MAX),
    "undecided": bpf.MapShape(bpf.MAP_HASH, 4, 4, DECISIONS_MAX, bpf.F_NO_PREALLOC),
}

#: Those that dynamos.ko holds, in the order of struct dynamos_maps.
_HELD = ("policy", "editions", "use", "must_update")
#: Inode of the first PID namespace (PROC_PID_INIT_INO of include/linux/proc_ns.h).
_FIRST_PID_NAMESPACE = 0xEFFFFFFC
_PAGE = 4096
#: Whether the kernel reads and writes 64 bits at once.
_WHOLE_WORDS = struct.calcsize("P") == 8


def cpus(which: str) -> list[int]:
    """Return the numbers of the "possible" or "online" CPUs."""
    found: list[int] = []
    for part in Path("/sys/devices/system/cpu", which).read_text().strip().split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def possible_cpus() -> int:
    """Return how many values an element of a per-CPU map has."""
    return len(cpus("possible"))


def pair_sums(fd: int, index: int, cpus: int) -> tuple[int, int]:
    """Sum a {u64 began, u64 ended} element of a per-CPU array over all CPUs.

    Ends are read before beginnings: a call that runs in between is seen too often rather than never, on whatever
    CPUs it begins and ends.
    """
    key = struct.pack("=I", index)
    ended = sum(_whole(fd, key, cpus)[1::2])
    began = sum(_whole(fd, key, cpus)[0::2])
    if not _WHOLE_WORDS:
        # A carry may still be on its way, but the low words are right (kmod/maps.c), and so is their difference.
        began = ended + (began - ended) % (1 << 32)
    return began, ended


def _whole(fd: int, key: bytes, cpus: int) -> tuple[int, ...]:
    """Return the numbers of an element of pairs on all CPUs, none of them read half before and half after a carry."""
    form = f"={2 * cpus}Q"
    values: tuple[int, ...] = struct.unpack(form, bpf.lookup(fd, key, 16 * cpus))
    while not _WHOLE_WORDS:
        again = struct.unpack(form, bpf.lookup(fd, key, 16 * cpus))
        if all(old >> 32 == new >> 32 for old, new in zip(values, again, strict=True)):
            break
        values = again
    return values


class Maps(Closing):
    """The open maps. Writing takes effect at the very next call of a redirected function."""

    def __init__(self, fds: dict[str, int]) -> None:
        """Take over the descriptors of all maps, by name."""
        self._cpus = possible_cpus()
        self._fd = fds
        with ExitStack() as undo:
            for fd in fds.values():
                undo.callback(os.close, fd)
            self._policy = undo.enter_context(mmap.mmap(fds["policy"], PID_LIMIT))
            self._editions = undo.enter_context(mmap.mmap(fds["editions"], uapi.FUNCTIONS_MAX * uapi.CLASSES))
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Close the maps; they live on, pinned."""
        self._undo.close()

    @property
    def fds(self) -> tuple[int, int, int, int]:
        """Return the descriptors of policy, editions, use and must_update, for the module."""
        policy, editions, use, wanted = (self._fd[name] for name in _HELD)
        return policy, editions, use, wanted

    def fd(self, name: str) -> int:
        """Return the descriptor of a map; it stays ours."""
        return self._fd[name]

    # Policy classes

    def class_of(self, pid: int) -> int:
        """Return the policy class of a process; `pid` is that of its leader, in the first PID namespace."""
        self._check_pid(pid)
        return self._policy[pid]

    def set_class(self, pid: int, policy_class: int) -> None:
        """Give a process a class: it keeps it until it execs or exits.

        Nothing is said about whether there is such a process. A class written to a PID that is not in use cannot
        reach the PID's next owner: fork writes the parent's class there before the child runs.
        """
        self._check_pid(pid)
        if os.stat("/proc/self/ns/pid").st_ino != _FIRST_PID_NAMESPACE:
            raise DynamosError(
                f"PID {pid}: this program runs in a PID namespace of its own, where the number means another "
                "process: run it outside the container"
            )
        self._policy[pid] = policy_class

    def classified(self) -> Iterator[tuple[int, int]]:
        """Yield (PID, class) of each process whose class is not 0."""
        nothing = bytes(_PAGE)
        for start in range(0, PID_LIMIT, _PAGE):
            page = self._policy[start : start + _PAGE]
            if page != nothing:
                for match in re.finditer(rb"[^\0]", page):
                    yield start + match.start(), page[match.start()]

    def _check_pid(self, pid: int) -> None:
        if not 0 < pid < PID_LIMIT:
            raise UsageError(f"PID {pid}: give a number from 1 to {PID_LIMIT - 1}")

    # Exec rules

    def set_rule(self, comm: str, policy_class: int) -> None:
        """Give what execs a program of this name a class from now on; 0 takes the rule away."""
        key = os.fsencode(comm).ljust(uapi.COMM_MAX, b"\0")
        if policy_class == 0:
            with suppress(FileNotFoundError):
                bpf.delete(self._fd["rules"], key)
            return
        try:
            bpf.update(self._fd["rules"], key, struct.pack("=Q", policy_class))
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            raise UsageError(f"rule {comm}: all {RULES_MAX} rules are taken; take one away first") from None

    def rules(self) -> Iterator[tuple[str, int]]:
        """Yield (program name, class) of each rule, by name."""
        fd = self._fd["rules"]
        found: list[tuple[str, int]] = []
        key = bpf.next_key(fd, None, uapi.COMM_MAX)
        while key is not None:
            with suppress(FileNotFoundError):  # taken away since
                value = struct.unpack("=Q", bpf.lookup(fd, key, 8))[0]
                found.append((os.fsdecode(key.rstrip(b"\0")), value))
            key = bpf.next_key(fd, key, uapi.COMM_MAX)
        yield from sorted(found)

    # Editions and use counters

    def row(self, function: int) -> bytes:
        """Return a function's row: the edition of each of the 256 policy classes."""
        start = self._check_function(function) * uapi.CLASSES
        return self._editions[start : start + uapi.CLASSES]

    def set_row(self, function: int, row: bytes) -> None:
        """Write a function's row; each byte is written whole, the row is not."""
        if len(row) != uapi.CLASSES:
            raise ValueError(f"a row has {uapi.CLASSES} bytes, not {len(row)}")
        start = self._check_function(function) * uapi.CLASSES
        self._editions[start : start + uapi.CLASSES] = row

    def use(self, function: int, edition: int) -> tuple[int, int]:
        """Return (entered, exited) of one edition, summed over all CPUs, exits first."""
        self._check_function(function)
        if not 0 <= edition < uapi.EDITIONS_MAX:
            raise ValueError(f"edition {edition}: from 0 to {uapi.EDITIONS_MAX - 1}")
        return pair_sums(self._fd["use"], function * uapi.EDITIONS_MAX + edition, self._cpus)

    def _check_function(self, function: int) -> int:
        if not 0 <= function < uapi.FUNCTIONS_MAX:
            raise ValueError(f"function id {function}: from 0 to {uapi.FUNCTIONS_MAX - 1}")
        return function


def open_maps(held: tuple[int, int, int, int] = (0, 0, 0, 0), directory: Path = PIN_DIR) -> Maps:
    """Open the pinned maps, and make and pin what is not there.

    `held` names the ids of the maps that dynamos.ko holds, in the order of `Maps.fds` (0: none yet). Those are what
    running code reads, so a lost pin is restored from them, and a pin of another map is refused.
    """
    ids = dict(zip(_HELD, held, strict=True))
    with ExitStack() as undo:
        fds = {}
        try:
            _make_directory(directory)
            for name, shape in SHAPES.items():
                fds[name] = _open_one(directory / name, shape, ids.get(name, 0))
                undo.callback(os.close, fds[name])
        except PermissionError as error:
            raise KernelRefused(
                f"{directory}: the kernel lets only root with CAP_BPF or CAP_SYS_ADMIN have BPF maps: run as root",
                error.errno or 0,
            ) from None
        except OSError as error:
            raise KernelRefused(f"{directory}: {error.strerror}", error.errno or 0) from None
        undo.pop_all()
        return Maps(fds)


def _make_directory(directory: Path) -> None:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    if not any(fields[1] == str(BPFFS) and fields[2] == "bpf" for fields in mounts):
        raise MissingTool(f"no BPF file system at {BPFFS}: mount -t bpf bpf {BPFFS}")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def _open_one(path: Path, shape: bpf.MapShape, held: int) -> int:
    """Return a checked descriptor of the map pinned at `path`, after pinning the held or a new one if there is none."""
    try:
        fd = bpf.open_pin(path)
    except FileNotFoundError:
        fd = bpf.map_by_id(held) if held else bpf.map_create(path.name, shape)
        try:
            bpf.pin(fd, path)
        except FileExistsError:  # somebody was quicker
            os.close(fd)
            fd = bpf.open_pin(path)
        except OSError:
            os.close(fd)
            raise
    try:
        _check(path, fd, shape, held)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check(path: Path, fd: int, shape: bpf.MapShape, held: int) -> None:
    if not bpf.is_map(fd):
        raise DynamosError(f"{path}: this pin is not a BPF map; take it away: rm {path}")
    info = bpf.map_info(fd)
    if info.shape != shape:
        raise DynamosError(
            f"{path}: another map than this version of dynamos makes: it is {_words(info.shape)}, "
            f"needed is {_words(shape)}; unload all updates, rmmod dynamos, then rm -r {path.parent}"
        )
    if held and info.id != held:
        raise DynamosError(
            f"{path}: this pin is map {info.id}, but dynamos.ko uses map {held}; "
            f"take the pin away (rm {path}): it is then restored"
        )


def _words(shape: bpf.MapShape) -> str:
    return (
        f"type {shape.type}, key {shape.key_size} and value {shape.value_size} bytes, "
        f"{shape.max_entries} entries, flags {shape.flags:#x}"
    )


def remove_pins(directory: Path = PIN_DIR) -> None:
    """Take away all pins, those of the classification too: what nobody else holds is gone with them."""
    for path in sorted(directory.rglob("*"), reverse=True):
        if path.is_dir():
            path.rmdir()
        else:
            path.unlink()
    with suppress(FileNotFoundError):
        directory.rmdir()
