"""Ways: where the branches out of a function go, and what is special there."""

from __future__ import annotations

from dataclasses import dataclass

from dynamos_ng.arch import DIRECT, Instruction, Kind
from dynamos_ng.errors import ImageError, Refusal
from dynamos_ng.rewrite import reader, writer
from dynamos_ng.rewrite.kernel import Kernel
from dynamos_ng.rewrite.reader import Body
from dynamos_ng.rewrite.safety import Entry


@dataclass(frozen=True)
class Way:
    """Where a branch out of the function goes: an operand, and the register of an indirect branch thunk or
    "".

    `learns` is the register in which a call finds its return address, "" for one that does something else; `ends`
    tells that a task which goes there ends.
    """

    operand: str
    register: str = ""
    learns: str = ""
    ends: bool = False


def outbound(kernel: Kernel, body: Body, place: Entry, sites: set[int]) -> dict[int, Way]:
    """Return where the branches out of a function go, by target; patched SITES are the tables' affair."""
    thunks = kernel.return_thunks()
    ways: dict[int, Way] = {}
    for instruction in body.special:
        target = instruction.target
        if instruction.kind not in DIRECT or target is None or instruction.address == place.ftrace:
            continue
        if target in ways or target in thunks or instruction.address in sites:
            continue
        if target == body.address:
            ways[target] = Way(f"{target:#x}")
            continue
        if target in body.boundaries:
            continue
        if any(part.address <= target < part.limit for part in body.parts):
            raise Refusal(
                body.name,
                f"branch to {target:#x}, where no instruction begins",
                address=instruction.address,
                kind="branch to where no instruction begins",
            )
        if instruction.kind is Kind.LOOP:
            raise Refusal(body.name, "a short branch out of the function", address=instruction.address)
        ways[target] = _way(kernel, body, instruction, target)
    return ways


def _way(kernel: Kernel, body: Body, instruction: Instruction, target: int) -> Way:
    names = kernel.names(target)
    registers = [register for register in map(writer.registers_of, names) if register]
    if registers:
        return Way(f"{target:#x}", registers[0])
    if reader.is_noted_call(kernel, instruction):
        padding = kernel.containing(target)
        return Way(f"{target:#x}", ends=padding is not None and _ends(kernel.names(padding.end)))
    if register := _pad(kernel, target):
        return Way(f"{target:#x}", register)
    symbol = kernel.containing(target)
    if symbol and symbol.module and not kernel.in_text(target):
        raise Refusal(
            body.name,
            f"branch out of the kernel, to {target:#x} ({symbol.name} of {symbol.module})",
            address=instruction.address,
            remedy="a kprobe or another patch is in the function: remove it first",
            kind="branch out of the kernel",
        )
    if symbol is None or symbol.address != target:
        where = f"{symbol.name}+{target - symbol.address:#x}" if symbol else "no symbol"
        reason = f"branch to {target:#x} ({where}), not the start of a function"
        raise Refusal(body.name, reason, address=instruction.address, kind="branch into another function")
    learns = kernel.arch.program_counter(kernel.read, target) if instruction.kind is Kind.CALL else ""
    return Way(f"{target:#x}", learns=learns, ends=_ends(names))


def _ends(names: tuple[str, ...]) -> bool:
    return not writer.ENDS_TASK.isdisjoint(names)


def _pad(kernel: Kernel, target: int) -> str:
    """Return the register that code outside the kernel's text jumps to, doing nothing else, or "".

    Kernels put indirect branches there whose own place would let the processor be misled (see `Kernel.branch_pads`).
    """
    if kernel.in_text(target):
        return ""
    try:
        decoded, _covered = kernel.arch.decode(kernel.read(target, 3), target)
    except ImageError:
        return ""
    return decoded[0].detail if decoded and decoded[0].kind is Kind.JUMP_INDIRECT else ""
