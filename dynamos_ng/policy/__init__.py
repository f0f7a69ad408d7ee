"""What an administrator asks for, checked: which policy class a process gets.

Pure values. A process has a class because it was given one by PID, because a rule named its program when it
last called exec, or because its parent had it when it forked. Class 0 is the default.
"""

from __future__ import annotations

from dataclasses import dataclass

from dynamos_ng import uapi
from dynamos_ng.errors import UsageError

__all__ = ["COMM_BYTES", "DEFAULT_CLASS", "Rule", "check_choice", "check_class"]

#: The class of a process that nothing was said about.
DEFAULT_CLASS = 0
#: What the kernel keeps of a program's name (task->comm, without its NUL).
COMM_BYTES = uapi.COMM_MAX - 1


def check_class(policy_class: int) -> None:
    """Raise UsageError unless this is a policy class that a process may have."""
    if policy_class == uapi.INTERRUPTS:
        raise UsageError(f"policy class {policy_class}: no process has it: it is that of calls made in interrupts")
    if not 0 <= policy_class < uapi.INTERRUPTS:
        raise UsageError(f"policy class {policy_class}: give a number from 0 to {uapi.INTERRUPTS - 1}")


def check_choice(function: str, interrupts: bool, policy_class: int) -> None:
    """Raise UsageError unless an edition of the function can be chosen for this class; perhaps it tells INTERRUPTS."""
    if policy_class != uapi.INTERRUPTS:
        check_class(policy_class)
    elif not interrupts:
        raise UsageError(
            f"{function} does not tell interrupts from other calls: that takes interrupts = true in its update.toml"
        )


@dataclass(frozen=True)
class Rule:
    """Processes that exec a program of this name get this class; class 0 takes the rule away.

    `comm` is the name as the kernel keeps it: the file's own name without its folders, of a script the script's.
    """

    comm: str
    policy_class: int

    def __post_init__(self) -> None:
        check_class(self.policy_class)
        if not self.comm:
            raise UsageError("program name: it is empty; give the name that /proc/PID/comm shows")
        if "/" in self.comm:
            name = self.comm.rsplit("/", 1)[-1]
            raise UsageError(f"program name {self.comm}: give the name alone, without folders: {name or 'NAME'}")
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in self.comm):
            raise UsageError(f"program name {self.comm!r}: it holds control characters")
        raw = self.comm.encode(errors="surrogateescape")
        if len(raw) > COMM_BYTES:
            kept = raw[:COMM_BYTES].decode(errors="ignore")
            raise UsageError(
                f"program name {self.comm}: the kernel keeps {COMM_BYTES} bytes of a name; "
                f"give what /proc/PID/comm shows: {kept}"
            )
