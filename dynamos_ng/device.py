"""/dev/dynamos: one method per ioctl, values in and out, every errno told in words."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass

from dynamos_ng import uapi
from dynamos_ng.closing import Closing
from dynamos_ng.errors import Busy, DynamosError, KernelRefused, MissingTool, UsageError
from dynamos_ng.model import (
    Adaptation,
    Area,
    Confirmation,
    Edition,
    Function,
    FunctionState,
    Holder,
    Module,
    Phase,
    StackWalk,
    Switch,
    Update,
    Variable,
)

PATH = "/dev/dynamos"
_libc = ctypes.CDLL(None, use_errno=True)
_libc.ioctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_void_p)

#: What the module means by an errno, where one call gives it one meaning (kmod/uapi/dynamos.h).
MEANINGS = {
    errno.EPERM: "CAP_SYS_ADMIN is needed: run as root",
    errno.EINVAL: "malformed request",
    errno.E2BIG: "a list is longer than the module takes",
    errno.ENOTTY: "the loaded dynamos.ko does not know this request: reload the module of this version",
    errno.ENOMEM: "the kernel has no memory for it",
    errno.EBADF: "not the descriptor of a BPF map",
    errno.EPROTOTYPE: "a map of the wrong type",
    errno.EKEYREJECTED: "a map with the wrong key size",
    errno.EMSGSIZE: "a map with the wrong value size",
    errno.EDOM: "a map with the wrong number of entries",
    errno.EPROTO: "a map that is not mmapable (BPF_F_MMAPABLE)",
    errno.ENODATA: "the policy maps have not been handed to dynamos.ko: start dynamosd first",
    errno.ESTALE: "built for another boot or another kernel, or for an earlier load of a module that has gone since: "
    "run 'dynamos build' again",
    errno.ENOEXEC: "the update's table is malformed, or it was built for another kernel version",
    errno.ERANGE: "the update lies out of reach of a 5-byte jump",
    errno.EXDEV: "a function does not lie where its module's code is: run 'dynamos build' again",
    errno.ENOSPC: f"all {uapi.FUNCTIONS_MAX} function ids are taken: unload an update first",
    errno.ENOENT: "no such update or function",
    errno.ENOLINK: "the function was built without an adaptation handler: name one with adapt = in update.toml",
    errno.EBADFD: "not the descriptor of a BPF program of type RAW_TRACEPOINT that does not sleep",
    errno.EALREADY: "already in the state that was asked for",
    errno.EEXIST: "another update redirects this function, and one of both switches only as a whole; or it writes this "
    "variable: deactivate that one first",
    errno.ENODEV: "the update is being unloaded",
    errno.EILSEQ: "the bytes at the trampoline's place are not the expected ones: "
    "a kprobe or another patch is there; remove it, then try again",
    errno.EAGAIN: "a task is inside what is to be switched: try again",
    errno.EUNATCH: "its update has hooks, variables or functions that only switch all together: activate the update",
    errno.ECANCELED: "a hook of the update refused",
    errno.EBUSY: "it is still redirected: deactivate it first",
    errno.EINPROGRESS: "calls are still in progress inside it",
    errno.ETXTBSY: "a task's stack still points into it",
    errno.EISCONN: "the update is in phase 3: go back to phase 2 first",
    errno.EUSERS: "other editions than the first are in use",
    errno.ENOTCONN: "no such move from where the update stands",
    errno.ENOMSG: "it waits for no confirmation",
    errno.ETIME: "too late: it was not confirmed in time, and is taken back",
    errno.ESRCH: "no such thread",
    errno.EOPNOTSUPP: "a kernel thread",
}
_CONFIRMATIONS = {uapi.WAITING: "waiting", uapi.REVERTING: "reverting", uapi.REVERTED: "reverted"}
#: Why a sleeper cannot be nudged.
_UNMOVED = {
    errno.EOPNOTSUPP: "not nudged: a kernel thread",
    errno.EBUSY: "not nudged: its sleep must not be interrupted",
}


@dataclass(frozen=True)
class Info:
    """What the module is, and the constants that generated code and BPF programs need; offsets in bytes.

    `pid_offset`, `tgid_offset`, `signal_offset` and `cpu_offset` are of members of struct task_struct, `live_offset` is
    one of struct signal_struct; `current_offset` and `preempt_offset` are in each CPU's own memory. In an interrupt the
    preemption count has some of the bits of `interrupt_mask`.
    """

    abi: int
    current_offset: int
    tgid_offset: int
    pid_limit: int
    anchor: int
    functions: int
    redirected: int
    map_ids: tuple[int, int, int, int]
    pid_offset: int
    signal_offset: int
    live_offset: int
    cpu_offset: int
    preempt_offset: int
    interrupt_mask: int


def meaning(number: int) -> str:
    """Return what an errno of the module means, and what to do."""
    return MEANINGS.get(number, os.strerror(number))


class Device(Closing):
    """An open /dev/dynamos. Every method raises KernelRefused (or Busy) and then has changed nothing."""

    def __init__(self, path: str = PATH) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            raise MissingTool(
                f"{path} is not there: dynamos.ko is not loaded; start dynamosd, which loads it"
            ) from None
        except PermissionError:
            raise KernelRefused(f"{path}: {MEANINGS[errno.EPERM]}", errno.EPERM) from None
        except OSError as error:
            raise KernelRefused(f"{path}: {error.strerror}", error.errno or 0) from None

    def close(self) -> None:
        """Close the device; whatever is redirected stays so."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _ioctl(self, number: int, struct: ctypes.Structure) -> int:
        """Make the call and return 0 or its errno; the module fills the structure in either way.

        Python's own ioctl() does not pass on what a failed one has written, from Python 3.14 on.
        """
        struct.size = ctypes.sizeof(struct)
        return ctypes.get_errno() if _libc.ioctl(self._fd, number, ctypes.addressof(struct)) else 0

    def info(self) -> Info:
        """Return what the module is; refuse one of another protocol."""
        raw = uapi.Info()
        if code := self._ioctl(uapi.IOC_INFO, raw):
            raise KernelRefused(f"info: {meaning(code)}", code)
        if raw.abi != uapi.ABI:
            raise KernelRefused(
                f"the loaded dynamos.ko speaks protocol {raw.abi}, this program {uapi.ABI}: "
                "unload all updates, rmmod dynamos, and start dynamosd again"
            )
        return Info(
            raw.abi,
            raw.current_offset,
            raw.tgid_offset,
            raw.pid_limit,
            raw.anchor,
            raw.functions,
            raw.redirected,
            (raw.map_id[0], raw.map_id[1], raw.map_id[2], raw.map_id[3]),
            raw.pid_offset,
            raw.signal_offset,
            raw.live_offset,
            raw.cpu_offset,
            raw.preempt_offset,
            raw.interrupt_mask,
        )

    def set_maps(self, policy_fd: int, editions_fd: int, use_fd: int, must_update_fd: int) -> None:
        """Hand over the four maps by descriptor; the module keeps its own references."""
        raw = uapi.Maps(
            policy_fd=policy_fd, editions_fd=editions_fd, use_fd=use_fd, must_update_fd=must_update_fd
        )
        if code := self._ioctl(uapi.IOC_MAPS, raw):
            what = (
                "dynamos.ko holds other maps already: restore their pins, or unload all updates and rmmod dynamos"
                if code == errno.EBUSY
                else meaning(code)
            )
            raise KernelRefused(f"maps: {what}", code)

    def functions(self) -> tuple[Function, ...]:
        """Return every registered function, by id."""
        found: list[Function] = []
        raw = uapi.FunctionInfo()
        while True:
            code = self._ioctl(uapi.IOC_FUNCTION, raw)
            if code == errno.ENOENT:
                return tuple(found)
            if code:
                raise KernelRefused(f"functions: {meaning(code)}", code)
            found.append(_function(raw))
            raw = uapi.FunctionInfo(id=raw.id + 1)

    def updates(self) -> tuple[Update, ...]:
        """Return every loaded update, without its functions."""
        found: list[Update] = []
        raw = uapi.UpdateInfo()
        while True:
            code = self._ioctl(uapi.IOC_UPDATE, raw)
            if code == errno.ENOENT:
                return tuple(found)
            if code:
                raise KernelRefused(f"updates: {meaning(code)}", code)
            module = raw.name.decode()
            variables = tuple(self._variable(raw.id, index) for index in range(raw.variables))
            found.append(
                Update(
                    module, module, (), (), raw.id, FunctionState(raw.state), variables, raw.shadows, _confirmation(raw)
                )
            )
            raw = uapi.UpdateInfo(id=raw.id + 1)

    def _variable(self, update: int, index: int) -> Variable:
        raw = uapi.VariableInfo(update=update, index=index)
        if code := self._ioctl(uapi.IOC_VARIABLE, raw):
            raise KernelRefused(f"variables: {meaning(code)}", code)
        value, old, now = (bytes(data[: raw.bytes]) for data in (raw.value, raw.old, raw.now))
        return Variable(raw.name.decode(), raw.address, value, old, now)

    def activate(self, functions: Sequence[Function], update: int = 0, confirm: int = 0) -> Switch:
        """Write the trampolines of a group in one stop, all or none; with an UPDATE's id, its hooks run and its
        variables are written too, and dynamos.ko takes all back after CONFIRM seconds unless `confirm` is called."""
        return self._switch(uapi.IOC_ACTIVATE, "activate", functions, update, confirm)

    def deactivate(self, functions: Sequence[Function], update: int = 0) -> Switch:
        """Take the trampolines of a group back in one stop, all or none, and what else the UPDATE brought."""
        return self._switch(uapi.IOC_DEACTIVATE, "deactivate", functions, update)

    def _switch(
        self, number: int, verb: str, functions: Sequence[Function], update: int, confirm: int = 0
    ) -> Switch:
        ids = (ctypes.c_uint32 * len(functions))(*(function.id for function in functions))
        raw = uapi.Switch(count=len(functions), ids=ctypes.addressof(ids), update=update, confirm=confirm)
        if code := self._ioctl(number, raw):
            names = {function.id: function.name for function in functions}
            raise _switch_error(verb, names, raw, code)
        return Switch(raw.stop_ns, raw.tasks, raw.left)

    def confirm(self, update: str) -> None:
        """Let the activation of the module `update` stay."""
        if code := self._ioctl(uapi.IOC_CONFIRM, uapi.Confirm(update=update.encode())):
            raise KernelRefused(f"confirm {update}: {meaning(code)}", code)

    def adapt(self, function: Function, program: int | None) -> None:
        """Let a BPF program, by its descriptor, choose the function's editions; None: no program does any more."""
        raw = uapi.Adapt(function=function.id, program_fd=-1 if program is None else program)
        if code := self._ioctl(uapi.IOC_ADAPT, raw):
            raise KernelRefused(f"adapt {function.name}: {meaning(code)}", code)

    def stacks(self, ranges: Sequence[tuple[int, int]], max_holders: int = 4096) -> StackWalk:
        """Return the tasks whose stacks hold an address inside one of the ranges [start, end).

        `Holder.address` is the innermost one; names are left to the caller.
        """
        ordered = sorted(ranges)
        packed = (uapi.Range * len(ordered))(*(uapi.Range(*ends) for ends in ordered))
        room = (uapi.Holder * max_holders)()
        raw = uapi.Stacks(
            nr_ranges=len(ordered),
            ranges=ctypes.addressof(packed),
            holders=ctypes.addressof(room),
            max_holders=max_holders,
        )
        if code := self._ioctl(uapi.IOC_STACKS, raw):
            raise KernelRefused(f"stacks: {meaning(code)}", code)
        holders = tuple(
            Holder(
                h.pid,
                h.tgid,
                h.comm.decode(errors="replace"),
                h.address,
                h.words,
                frames=tuple(itertools.takewhile(bool, h.frames)),
            )
            for h in room[: min(raw.nr_holders, max_holders)]
        )
        return StackWalk(holders, raw.nr_holders, raw.tasks, raw.words, raw.stop_ns)

    def nudge(self, pid: int) -> str:
        """Have a thread leave the system call in which it sleeps; return why that must not be, or ""."""
        code = self._ioctl(uapi.IOC_NUDGE, uapi.Nudge(pid=pid))
        if code in _UNMOVED:
            return _UNMOVED[code]
        if code and code != errno.ESRCH:  # gone is moved
            raise KernelRefused(f"nudge {pid}: {meaning(code)}", code)
        return ""

    def phase(self, update: str, move: int = uapi.PHASE_ASK) -> Phase:
        """Make a move of the module `update`, and return where it stands then."""
        raw = uapi.Phase(update=update.encode(), move=move)
        if code := self._ioctl(uapi.IOC_PHASE, raw):
            raise KernelRefused(f"phase {update}: {meaning(code)}", code)
        delayed = None
        if raw.phase == 1 and raw.culprit.pid:
            comm = raw.culprit.comm.decode(errors="replace")
            delayed = Holder(raw.culprit.pid, 0, comm, raw.culprit.address, 1)
        return Phase(
            raw.phase, bool(raw.flags & uapi.CONSISTENT), bool(raw.flags & uapi.PHASED),
            bool(raw.must_update), raw.pinned, raw.stop_ns, delayed,
        )  # fmt: skip

    def module(self, name: str) -> Module:
        """Return where a loaded module's code and tables lie; UsageError if it is not loaded."""
        raw = uapi.ModuleInfo(name=name.encode())
        if code := self._ioctl(uapi.IOC_MODULE, raw):
            if code == errno.ENOENT:
                raise UsageError(f"{name}: no such module is loaded (what is built in has its functions in the kernel)")
            raise KernelRefused(f"module {name}: {meaning(code)}", code)
        areas = (raw.text, raw.ro_after_init, raw.fixups, raw.keys, raw.bugs, raw.static_calls, raw.orc_ips, raw.orc)
        return Module(name, raw.load, raw.bug_size, *(Area(area.start, area.size) for area in areas))

    def retire(self, update: str) -> None:
        """Prove that nothing runs an update's code, and let the module `update` be unloaded."""
        raw = uapi.Retire(update=update.encode())
        if code := self._ioctl(uapi.IOC_RETIRE, raw):
            message = f"{update}: {meaning(code)}"
            if raw.culprit.pid or code == errno.ETXTBSY:
                comm = raw.culprit.comm.decode(errors="replace")
                message += f": thread {raw.culprit.pid} ({comm}) at {raw.culprit.address:#x}"
            elif code == errno.EINPROGRESS:
                names = {function.id: function.name for function in self.functions()}
                message += f": {names.get(raw.culprit.function, '?')}"
            if code in (errno.EINPROGRESS, errno.ETXTBSY, errno.EBUSY):
                raise Busy(message)
            raise KernelRefused(message, code)


def _confirmation(raw: uapi.UpdateInfo) -> Confirmation | None:
    if raw.confirm == uapi.SETTLED:
        return None
    return Confirmation(
        _CONFIRMATIONS[raw.confirm], raw.confirm_left, meaning(raw.confirm_error) if raw.confirm_error else ""
    )


def _function(raw: uapi.FunctionInfo) -> Function:
    return Function(
        id=raw.id,
        name=raw.name.decode(),
        update=raw.update.decode(),
        state=FunctionState(raw.state),
        address=raw.address,
        size=raw.image_size,
        site=raw.site,
        handler=raw.handler,
        end=raw.end,
        original_bytes=bytes(raw.original_bytes[:5]),
        trampoline=bytes(raw.trampoline[:5]),
        editions=tuple(
            Edition(e.number, e.start, e.end, bool(e.flags & uapi.NEVER_RETURNS))
            for e in raw.editions[: raw.nr_editions]
        ),
        adaptation=Adaptation(raw.program, raw.unknown, raw.avoided) if raw.flags & uapi.ADAPTS else None,
        module=raw.module.decode(),
        order=raw.order,
        interrupts=bool(raw.flags & uapi.TELLS),
    )


def _switch_error(verb: str, names: dict[int, str], raw: uapi.Switch, number: int) -> DynamosError:
    culprit = raw.culprit
    name = names.get(culprit.function, "")
    message = f"{verb}{' ' + name if name else ''}: {meaning(number)}"
    address = 0 if name else culprit.address
    if number == errno.EALREADY:
        what = "redirected" if name else "active"
        message = f"{verb}{' ' + name if name else ''}: it is {'already' if verb == 'activate' else 'not'} {what}"
    if number == errno.EILSEQ:
        message += f" (found {bytes(culprit.found[: 5 if name else 8]).hex(' ')} at {culprit.address:#x})"
    if number == errno.EAGAIN and culprit.pid:
        comm = culprit.comm.decode(errors="replace")
        message += f" (thread {culprit.pid} ({comm}) at {culprit.address:#x})"
    elif raw.hook_error:
        message = f"{verb}: {MEANINGS[errno.ECANCELED]}: {os.strerror(-raw.hook_error)}"
    return KernelRefused(message, number, address)
