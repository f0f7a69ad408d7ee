"""Where the variables of an update lie, and the bytes that go there."""

from __future__ import annotations

from dynamos_ng.build import kbuild
from dynamos_ng.build.description import FILE, TYPES, Description, VariableChange
from dynamos_ng.errors import Refusal, UsageError
from dynamos_ng.image import Kernel
from dynamos_ng.kallsyms import Named
from dynamos_ng.rewrite.update import Variable

#: Data that is freed after boot, or only the mould of what each CPU has.
_AREAS = (
    ("__init_begin", "__init_end", "it is freed when the kernel has booted"),
    ("__per_cpu_start", "__per_cpu_end", "each CPU has its own: change it in a hook"),
)


def place(kernel: Kernel, wanted: Description, change: VariableChange) -> Variable:
    """Return a variable as the update's table has it; Refusal for one that cannot be written, UsageError for a value
    that does not fit."""
    size, signed = TYPES[change.type]
    size = size or kernel.arch.word
    value, expected = (
        None if number is None else _bytes(wanted, change, number, size, signed)
        for number in (change.value, change.expected)
    )
    assert value is not None
    symbol = _symbol(kernel, change)
    if symbol is None:
        return Variable(change.name, change.name, value, expected)
    room = kernel.symbols.after(symbol.address) - symbol.address
    if room < size:
        raise Refusal(change.name, f"the next symbol is {room} bytes further, and a {change.type} has {size}")
    return Variable(change.name, f"{symbol.address:#x}", value, expected)


def _bytes(wanted: Description, change: VariableChange, number: int, size: int, signed: bool) -> bytes:
    try:
        return number.to_bytes(size, "little", signed=signed)
    except OverflowError:
        raise UsageError(f"{wanted.folder / FILE}: {change.name}: {number} is no {change.type}") from None


def _symbol(kernel: Kernel, change: VariableChange) -> Named | None:
    """Return the variable's symbol; None for one that is exported, and that the module loader alone knows."""
    name, position = change.name, change.position
    found = kernel.symbols.find(name)
    if not found:
        if name in kbuild.exported():
            return None
        if kernel.symbols.in_modules(name):
            raise Refusal(name, "it belongs to a loadable module", remedy="change it in a hook")
        listed = kernel.symbols.address("init_task") is not None
        raise Refusal(
            name,
            "the kernel has no variable of this name" if listed
            else "this kernel lists no data (KALLSYMS_ALL is off), and exports no variable of this name",
        )  # fmt: skip
    if not position and len(found) > 1:
        where = ", ".join(f"{i} = {symbol.address:#x}" for i, symbol in enumerate(found, 1))
        raise Refusal(name, f"{len(found)} variables have this name", remedy=f"give a position: {where}")
    if position > len(found):
        raise Refusal(name, f"there is no position {position}", remedy=f"positions go from 1 to {len(found)}")
    symbol = found[max(position, 1) - 1]
    if kernel.in_text(symbol.address):
        raise Refusal(name, "it is code, not a variable", address=symbol.address)
    start, end = kernel.symbols.address("_stext"), kernel.symbols.address("_end")
    for first, last, reason in _AREAS:
        low, high = kernel.symbols.address(first), kernel.symbols.address(last)
        if low is not None and high is not None and low <= symbol.address < high:
            raise Refusal(name, reason, address=symbol.address)
    if start is None or not start <= symbol.address < (end or 1 << 64):
        raise Refusal(name, "it does not lie in the kernel's image", address=symbol.address)
    return symbol
