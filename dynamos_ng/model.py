"""The values that pass between the parts: frozen, typed, and free of any source."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from dynamos_ng.errors import Refusal
from dynamos_ng.latency import Latency
from dynamos_ng.policy_values import Policy

__all__ = [
    "Adaptation",
    "Area",
    "CallCounts",
    "Change",
    "Confirmation",
    "Cost",
    "Edition",
    "EditionUse",
    "EnabledUpdate",
    "Event",
    "Function",
    "FunctionState",
    "FunctionStatus",
    "Holder",
    "Latency",
    "Module",
    "Peer",
    "PendingUpdate",
    "Phase",
    "Policy",
    "Quiescence",
    "Refusal",
    "SampledStack",
    "Snapshot",
    "StackWalk",
    "Switch",
    "Update",
    "UpdateStatus",
    "Variable",
]


class FunctionState(IntEnum):
    """Where a registered function stands; the numbers are the uapi's."""

    LOADED = 0
    REDIRECTED = 1
    DRAINING = 2

    @property
    def word(self) -> str:
        """Return the word for lists, as kpatch and livepatch users know it."""
        return {
            FunctionState.LOADED: "[disabled]",
            FunctionState.REDIRECTED: "[enabled]",
            FunctionState.DRAINING: "[disabling...]",
        }[self]


@dataclass(frozen=True)
class Area:
    """Bytes in the kernel; none where there is no such thing."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """Return the address past the last byte."""
        return self.start + self.size

    def __contains__(self, address: object) -> bool:
        return isinstance(address, int) and self.start <= address < self.end


@dataclass(frozen=True)
class Module:
    """A loaded module: where its code and tables lie, in this load of it; `bug_size` is of an entry of `bugs`.

    `load` tells it from every other load of a module.
    """

    name: str
    load: int
    bug_size: int
    text: Area
    ro_after_init: Area
    fixups: Area
    keys: Area
    bugs: Area
    static_calls: Area
    orc_ips: Area
    orc: Area


@dataclass(frozen=True)
class Edition:
    """One edition's code in the kernel: addresses of its first byte and past its last one."""

    number: int
    start: int
    end: int
    never_returns: bool = False


@dataclass(frozen=True)
class Adaptation:
    """A function's adaptation handler: the id of the BPF program that is attached (0: none), and what was counted.

    `unknown` are calls for which the program named an edition that there is not, `avoided` those on which it must not
    run: made by a program, or in an NMI.
    """

    program: int
    unknown: int
    avoided: int


@dataclass(frozen=True)
class Function:
    """A function that an update has registered with dynamos.ko; addresses are the running kernel's.

    `module` is the loadable module that it belongs to, "" for the kernel's own.
    `order` grows with each activation: of several updates that redirect one function, the last is on top.
    If it tells `interrupts` from other calls, these have a policy class of their own.
    """

    id: int
    name: str
    update: str
    state: FunctionState
    address: int
    size: int
    site: int
    handler: int
    end: int
    original_bytes: bytes
    trampoline: bytes
    editions: tuple[Edition, ...]
    adaptation: Adaptation | None = None
    module: str = ""
    order: int = 0
    interrupts: bool = False

    @property
    def label(self) -> str:
        """Return its name as tables show it and verbs take it: MODULE:NAME for a module's function."""
        return f"{self.module}:{self.name}" if self.module else self.name

    @property
    def newest(self) -> int:
        """Return the highest edition number."""
        return max(edition.number for edition in self.editions)

    def has(self, address: int) -> bool:
        """Return whether a call can return to ADDRESS in the original, or it is in what the update has for it."""
        return self.address < address < self.address + self.size or self.handler <= address < self.end


@dataclass(frozen=True)
class EditionUse:
    """Use counters of one edition, summed over CPUs, exits before entries."""

    number: int
    entered: int
    exited: int

    @property
    def in_flight(self) -> int:
        """Return the calls that have entered and not yet left."""
        return self.entered - self.exited


@dataclass(frozen=True)
class CallCounts:
    """Entries and returns of an original as probes saw them since they were attached.

    A call that was under way at that moment is not seen to enter; `missed` counts what was not seen since.
    """

    entries: int
    exits: int
    missed: int


@dataclass(frozen=True)
class Holder:
    """A task whose stack holds an address inside given code; `words` says how many such addresses.

    `frames` are the return addresses of its kernel stack, innermost first, empty for a task that can run; `stack`
    has their names.
    """

    pid: int
    tgid: int
    comm: str
    address: int
    words: int
    function: str = ""
    edition: int = 0
    frames: tuple[int, ...] = ()
    stack: tuple[str, ...] = ()


@dataclass(frozen=True)
class StackWalk:
    """One conservative walk over every task's stack; `stop_ns` is the time all CPUs stood still."""

    holders: tuple[Holder, ...]
    found: int
    tasks: int
    words: int
    stop_ns: int


@dataclass(frozen=True)
class Switch:
    """What a group's change cost: the work in the stop in nanoseconds, and the stacks it read.

    `left` variables were not put back, for somebody else had written them.
    """

    stop_ns: int
    tasks: int
    left: int = 0


@dataclass(frozen=True)
class Variable:
    """A variable that an update writes: its bytes as the update has them, as it found them, and as they are now."""

    name: str
    address: int
    value: bytes
    old: bytes
    now: bytes


@dataclass(frozen=True)
class Confirmation:
    """What an activation that must be confirmed waits for, or what became of it.

    `state` is "waiting" (`left` seconds, then it is taken back), "reverting" or "reverted"; `reason` says why it could
    not be taken back yet.
    """

    state: str
    left: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Update:
    """A loaded update and its functions; `unwatched` pairs those that probes cannot count with the reason.

    `own` is the state of what is the update's and no function's: hooks, variables, shadow data.
    """

    name: str
    module: str
    functions: tuple[Function, ...]
    unwatched: tuple[tuple[str, str], ...] = ()
    id: int = 0
    own: FunctionState = FunctionState.LOADED
    variables: tuple[Variable, ...] = ()
    shadows: int = 0
    confirmation: Confirmation | None = None

    @property
    def state(self) -> FunctionState:
        """Return the state of the update's part that is furthest from idle."""
        states = {self.own, *(function.state for function in self.functions)}
        for state in (FunctionState.REDIRECTED, FunctionState.DRAINING):
            if state in states:
                return state
        return FunctionState.LOADED


@dataclass(frozen=True)
class Phase:
    """Where an update that gets on by itself stands.

    `phase` is 0 while it is not active, and else the phase of a synchronised update; `must_update` says whether phase 3
    is wanted. `pinned` counts the tasks that a consistent group keeps to edition 1. `delayed` is a task that keeps a
    synchronised update in phase 1. `stop_ns` is the time that a move took in its stop.
    """

    phase: int
    consistent: bool
    phased: bool
    must_update: bool
    pinned: int
    stop_ns: int = 0
    delayed: Holder | None = None


@dataclass(frozen=True)
class SampledStack:
    """A sampled kernel stack, its frames innermost first, and how often it was seen."""

    samples: int
    stack: tuple[str, ...]


@dataclass(frozen=True)
class Quiescence:
    """What three sources say of one function: use counters, probes, stacks.

    `probes` is None where no probes are attached; `samples` counts sampled kernel stacks that had a frame in
    the function's code, `sampled` are those seen most often.
    """

    function: str
    state: FunctionState
    uses: tuple[EditionUse, ...]
    walk: StackWalk
    probes: CallCounts | None = None
    samples: int | None = None
    sampled: tuple[SampledStack, ...] = ()

    @property
    def quiescent(self) -> bool:
        """Return whether neither counters nor stacks show anybody inside."""
        return not self.walk.found and all(use.in_flight == 0 for use in self.uses)


@dataclass(frozen=True)
class Change:
    """What a change did: measured before and after it; the time in its stop is in nanoseconds.

    `notes` say what did not go as the user may have thought.
    """

    verb: str
    update: str
    state: FunctionState
    before: tuple[Quiescence, ...]
    after: tuple[Quiescence, ...]
    stop_ns: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class FunctionStatus:
    """A function, its use counters, its row of the editions map, and what the probes counted, if any watch it.

    `notes` say what else is to be known: other users of the function, and why no probes watch it.
    """

    function: Function
    uses: tuple[EditionUse, ...]
    row: bytes
    probes: CallCounts | None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class UpdateStatus:
    """An update, its functions and variables, and how many objects have a shadow, as a table shows them."""

    name: str
    state: FunctionState
    phase: Phase
    functions: tuple[FunctionStatus, ...]
    variables: tuple[Variable, ...] = ()
    shadows: int = 0
    confirmation: Confirmation | None = None

    @property
    def word(self) -> str:
        """Return the word for lists; tasks may still have to leave what was before an activation."""
        return "[enabling...]" if self.phase.phase == 1 or self.phase.pinned else self.state.word


@dataclass(frozen=True)
class PendingUpdate:
    """An update that takes effect when modules are loaded; `failure` says why it could not the last time they were."""

    name: str
    folder: str
    modules: tuple[str, ...]
    edition: int | None = None
    classes: tuple[int, ...] | None = None
    failure: str = ""


@dataclass(frozen=True)
class EnabledUpdate:
    """An update that takes effect whenever the daemon starts; `trouble` says why it did not this time."""

    name: str
    folder: str
    edition: int | None = None
    classes: tuple[int, ...] | None = None
    trouble: str = ""


@dataclass(frozen=True)
class Peer:
    """Who asks the daemon for something: a process as it was then; `comm` is empty if it had gone."""

    uid: int
    pid: int
    comm: str


@dataclass(frozen=True)
class Event:
    """One entry of the journal in words: when (seconds since 1970), who, what, and how it ended."""

    time: float
    who: str
    what: str
    outcome: str
    refused: bool = False


@dataclass(frozen=True)
class Cost:
    """What a process has used: CPU seconds since it began, and the bytes of memory that it occupies."""

    pid: int
    cpu_seconds: float
    memory: int


@dataclass(frozen=True)
class Snapshot:
    """Everything that is to be seen at one moment; `engine` is what runs the probes, "bcc" or "libbpf".

    `taken` is the moment in seconds since 1970, `uptime` the same since the boot: that clock is never set. `daemon` is
    what the daemon itself has cost, `watcher` what the one who looks has. What must be asked for is empty otherwise:
    `events`, `policy`, and `quiescence` and `latency` of single functions.
    """

    updates: tuple[UpdateStatus, ...]
    engine: str
    pending: tuple[PendingUpdate, ...] = ()
    enabled: tuple[EnabledUpdate, ...] = ()
    taken: float = 0.0
    uptime: float = 0.0
    daemon: Cost | None = None
    watcher: Cost | None = None
    events: tuple[Event, ...] = ()
    policy: Policy | None = None
    quiescence: tuple[Quiescence, ...] = ()
    latency: tuple[Latency, ...] = ()
