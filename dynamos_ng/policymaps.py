"""The maps of the policy in force: its generation, its rules as the kernel reads them, and what was decided on whom.

Pinned as all others (bpfmaps has their shapes). bpf/classify.c tells who writes what, and in which order:

    policy_state  [0] the generation of the policy in force, 0 without one; [1] the last one that was used
    policy_rules  two halves of SLOTS rules each: policy/classes.py has their form
    decisions     process -> struct decision: what the kernel decided at its exec or fork
    judgements    process -> struct judgement: what the daemon decided on it since; counts for the decision `of` alone
    undecided     processes for which a rule asks what only the daemon knows
    cgroup_rules  struct cgroup_rule -> whether the rule's glob matches the cgroup, as far as the daemon has told
"""

from __future__ import annotations

import ctypes as c
import errno
import mmap
import os
import struct
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum

from dynamos_ng import bpf
from dynamos_ng.bpfmaps import DECISIONS_MAX, Maps
from dynamos_ng.closing import Closing
from dynamos_ng.errors import KernelRefused
from dynamos_ng.policy.classes import slots

_DECISION = struct.Struct("=QQIIII")
_JUDGEMENT = struct.Struct("=QQII")
_PID = struct.Struct("=I")
_CGROUP_RULE = struct.Struct("=QII")
#: membarrier(2) of x86: 64-bit, and 32-bit.
_SYS_MEMBARRIER = 324 if c.sizeof(c.c_void_p) == 8 else 375
_MEMBARRIER_GLOBAL = 1


class How(IntEnum):
    """How a process came by its class; the first two are those of bpf/classify.c."""

    EXEC = 0
    FORK = 1
    DAEMON = 2


@dataclass(frozen=True)
class Decision:
    """What was decided on a process: `when` in nanoseconds since boot, and the number of the rule in a generation."""

    when: int
    generation: int
    number: int
    how: How


@dataclass(frozen=True)
class Record:
    """What the kernel decided on a process; 0 everywhere where it has decided nothing since it classifies.

    An undecided process that was forked by an undecided one has that one's decision as its origin.
    """

    when: int = 0
    origin_when: int = 0
    origin: int = 0
    generation: int = 0
    number: int = 0
    how: How = How.EXEC


NOTHING = Record()


def settle() -> None:
    """Wait until every program that was running when this was called has ended."""
    libc = c.CDLL(None, use_errno=True)
    if libc.syscall(c.c_long(_SYS_MEMBARRIER), c.c_long(_MEMBARRIER_GLOBAL), c.c_long(0)) < 0:
        number = c.get_errno()
        raise KernelRefused(
            f"membarrier: {os.strerror(number)}: without it a policy cannot be put into force as a whole (kernels "
            "booted with nohz_full have none)",
            number,
        )


class PolicyMaps(Closing):
    """Reads and writes what belongs to the policy in force."""

    def __init__(self, maps: Maps) -> None:
        """Use the open maps, which stay their owner's."""
        self._maps = maps
        self._mapping = mmap.mmap(maps.fd("policy_state"), mmap.PAGESIZE)
        self._state = memoryview(self._mapping).cast("I")

    def close(self) -> None:
        """Unmap the state."""
        self._state.release()
        self._mapping.close()

    # The policy in force

    @property
    def generation(self) -> int:
        """Return the generation of the policy in force, 0 without one."""
        return int(self._state[0])

    @property
    def last(self) -> int:
        """Return the last generation that was used."""
        return int(self._state[2])

    def put_into_force(self, generation: int) -> None:
        """Have every exec from now on decide by this generation's rules: one store of one word."""
        self._state[2] = max(self.last, generation)
        self._state[0] = generation

    def write_rules(self, generation: int, rules: Iterable[bytes]) -> None:
        """Write a generation's rules; it must not be in force."""
        for slot, rule in zip(slots(generation), rules, strict=True):
            bpf.update(self._maps.fd("policy_rules"), _PID.pack(slot), rule)

    def tell_cgroup(self, cgroup: int, generation: int, number: int, matches: bool) -> None:
        """Tell the kernel whether a rule's glob matches a cgroup."""
        key = _CGROUP_RULE.pack(cgroup, generation, number)
        bpf.update(self._maps.fd("cgroup_rules"), key, _PID.pack(matches))

    # Decisions

    def record(self, pid: int) -> Record:
        """Return what the kernel decided on a process last."""
        try:
            raw = bpf.lookup(self._maps.fd("decisions"), _PID.pack(pid), _DECISION.size)
        except FileNotFoundError:
            return NOTHING
        when, origin_when, origin, generation, number, how = _DECISION.unpack(raw)
        return Record(when, origin_when, origin, generation, number, How(how))

    def judge(self, pid: int, of: Record, when: int, generation: int, number: int) -> None:
        """Note the daemon's word on a process, as long as the kernel does not decide on it again."""
        try:
            bpf.update(self._maps.fd("judgements"), _PID.pack(pid), _JUDGEMENT.pack(of.when, when, generation, number))
        except OSError as error:
            if error.errno != errno.E2BIG:
                raise
            # The class is given all the same; `explain` says that it does not know.

    def judgement(self, pid: int, when: int) -> Decision | None:
        """Return the daemon's word on the decision that the kernel took on a process at WHEN."""
        try:
            raw = bpf.lookup(self._maps.fd("judgements"), _PID.pack(pid), _JUDGEMENT.size)
        except FileNotFoundError:
            return None
        of, since, generation, number = _JUDGEMENT.unpack(raw)
        return Decision(since, generation, number, How.DAEMON) if of == when else None

    def decision(self, pid: int) -> Decision | None:
        """Return what counts for a process: the daemon's word, or else the kernel's."""
        record = self.record(pid)
        judged = self.judgement(pid, record.when)
        if judged is not None or record == NOTHING:
            return judged
        return Decision(record.when, record.generation, record.number, record.how)

    def forget(self, pid: int) -> None:
        """Take away the daemon's word on a process that is gone."""
        with suppress(FileNotFoundError):
            bpf.delete(self._maps.fd("judgements"), _PID.pack(pid))

    # The undecided

    def undecided(self) -> Iterator[int]:
        """Yield the processes that wait for the daemon."""
        fd = self._maps.fd("undecided")
        key = bpf.next_key(fd, None, _PID.size)
        for _ in range(DECISIONS_MAX):  # a key that is taken away meanwhile makes it begin again
            if key is None:
                return
            following = bpf.next_key(fd, key, _PID.size)
            yield _PID.unpack(key)[0]
            key = following

    def is_undecided(self, pid: int) -> bool:
        """Tell whether a process waits for the daemon."""
        try:
            bpf.lookup(self._maps.fd("undecided"), _PID.pack(pid), 4)
        except FileNotFoundError:
            return False
        return True

    def decided(self, pid: int) -> bool:
        """Let a process wait no longer; return whether it did."""
        try:
            bpf.delete(self._maps.fd("undecided"), _PID.pack(pid))
        except FileNotFoundError:
            return False
        return True
