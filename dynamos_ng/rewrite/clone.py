"""Clone: the original's image, moved: reader and safety decide, the writer writes.

`examine` gathers every fact and raises every `Refusal`; `write` only writes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from dynamos_ng.arch import DIRECT, Arch, Instruction, Kind
from dynamos_ng.arch.x86 import WARN5, XOR5
from dynamos_ng.errors import Refusal
from dynamos_ng.rewrite import depth, indirection, reader, safety, writer
from dynamos_ng.rewrite.indirection import Indirection
from dynamos_ng.rewrite.kernel import Bug, Fixup, Kernel, StaticCall, StaticKey, Symbol
from dynamos_ng.rewrite.reader import Body
from dynamos_ng.rewrite.safety import Entry
from dynamos_ng.rewrite.ways import Way, outbound
from dynamos_ng.rewrite.writer import Edition, Tables


@dataclass(frozen=True)
class Original:
    """A kernel function that can be redirected and cloned, with all that the kernel's tables say of it.

    `unwind` holds the unwind entry that comes into force at an instruction, or `depths` the stack's depth if the kernel
    has none; `ways` the outbound branches' targets; `numbers` the interior addresses that instructions hold as data.
    """

    symbol: Symbol
    arch: Arch
    body: Body
    entry: Entry
    return_thunks: frozenset[int]
    pads: Mapping[str, int]
    unwind: Mapping[int, bytes]
    depths: Mapping[int, int | None]
    ways: Mapping[int, Way]
    indirection: Indirection
    numbers: Mapping[int, int]
    fixups: tuple[Fixup, ...]
    keys: tuple[StaticKey, ...]
    bugs: tuple[Bug, ...]
    calls: tuple[StaticCall, ...]
    locks: frozenset[int]

    @property
    def name(self) -> str:
        """Return the function's name."""
        return self.symbol.name

    @property
    def state(self) -> bytes | None:
        """Return the unwind entry at the first instruction, None without ORC."""
        return self.unwind.get(self.body.address)

    def check_editions(self) -> None:
        """Refuse editions in C where callers may know which registers the original leaves alone.

        gcc tells them so of functions without ftrace site that call or end in no others.
        """
        indirect = any(i.kind in (Kind.CALL_INDIRECT, Kind.JUMP_INDIRECT) for i in self.body.instructions)
        if self.entry.ftrace is None and not (indirect or self.calls or self.ways.keys() - self.return_thunks):
            reason = "no edition in C: it has no ftrace site and calls nothing, so its callers may rely on registers"
            raise Refusal(self.name, reason, address=self.body.address, remedy="redirect its callers instead")


def examine(kernel: Kernel, symbol: Symbol) -> Original:
    """Read and check a function; Refusal for whatever cannot be moved with certainty."""
    safety.check_place(kernel, symbol)
    body = reader.read(kernel, symbol)
    place = safety.entry(kernel, symbol, body)
    keys = _each(body, kernel.static_keys)
    fixups = _each(body, kernel.fixups)
    entered = {key.target for key in keys} | {fixup.fixup for fixup in fixups}
    safety.check_instructions(body, entered, kernel.user)
    numbers = safety.addresses(body)
    for part in body.parts[1:]:
        safety.check_place(kernel, Symbol(part.name, part.address, part.size))
    calls = _each(body, kernel.static_calls)
    bugs = _each(body, kernel.bugs)
    ways = outbound(kernel, body, place, {key.address for key in keys} | {call.address for call in calls})
    thunks = {target: way.register for target, way in ways.items() if way.register}
    tables = indirection.find(kernel, body, thunks)
    safety.check_leads(kernel, body, place, tables)
    unwind = _unwind(kernel, body)
    if body.address in unwind and not unwind[body.address][4] & 15:
        raise Refusal(symbol.name, "it is no function: there is no stack at its entry", address=symbol.address)
    leads: dict[int, tuple[int, ...]] = {jump: tables.targets(jump) for jump in tables.jumps}
    leads.update((key.address, (key.target,)) for key in keys)
    leads.update((fixup.address, (fixup.fixup,)) for fixup in fixups)
    original = Original(
        symbol=symbol,
        arch=kernel.arch,
        body=body,
        entry=place,
        return_thunks=kernel.return_thunks(),
        pads=kernel.branch_pads(),
        unwind=unwind,
        depths={} if unwind else depth.depths(body, kernel.arch, leads, {bug.address for bug in bugs if bug.warns}),
        ways=ways,
        indirection=tables,
        numbers=numbers,
        fixups=fixups,
        keys=keys,
        bugs=bugs,
        calls=calls,
        locks=frozenset(_each(body, kernel.bare_locks)),
    )
    _check_tables(original)
    _Clone(original, Edition("rehearsal", 1, original.state, place.ftrace is None, Tables(kernel.arch))).rehearse()
    return original


def check(kernel: Kernel, name: str) -> Original:
    """Examine the function called NAME, which must be unique."""
    return examine(kernel, kernel.function(name))


_T = TypeVar("_T")


def _each(body: Body, table: Callable[[int, int], list[_T]]) -> tuple[_T, ...]:
    return tuple(entry for part in body.parts for entry in table(part.address, part.end))


def _unwind(kernel: Kernel, body: Body) -> dict[int, bytes]:
    """Return the unwind entries, one at each part's start and one wherever the state changes."""
    changes: dict[int, bytes] = {}
    for part in body.parts:
        entries = kernel.orc(part.address, part.end)
        if not entries:
            continue
        at = 0
        before = None
        for instruction in part.instructions:
            while at + 1 < len(entries) and entries[at + 1][0] <= instruction.address:
                at += 1
            if entries[at][1] != before:
                before = changes[instruction.address] = entries[at][1]
    return changes


def _check_tables(original: Original) -> None:
    """Refuse table entries that do not fit the code."""
    body = original.body
    starts = body.boundaries
    for what, places in (
        ("an exception table entry", [p for fixup in original.fixups for p in (fixup.address, fixup.fixup)]),
        ("a static key", [p for key in original.keys for p in (key.address, key.target)]),
        ("a bug table entry", [bug.address for bug in original.bugs]),
        ("a static call", [call.address for call in original.calls]),
    ):
        for place in places:
            if place not in starts:
                raise Refusal(original.name, f"{what} points outside its instructions", address=place)


#: Kinds whose bytes mean the same anywhere, unless a field or a table says otherwise.
_FIXED = frozenset((Kind.PLAIN, Kind.NOP, Kind.CALL_INDIRECT, Kind.UNDEFINED, Kind.BREAKPOINT, Kind.SYSTEM))


def write(original: Original, edition: Edition) -> list[str]:
    """Return the clone's code; its tables go to the edition's."""
    if all(call.tail for call in original.calls):  # a static call that is off may be switched on in the clone
        edition.takes([one for one in original.body.instructions if one.address != original.entry.ftrace])
    return _Clone(original, edition).lines()


def prologue(original: Original, edition: Edition) -> list[str]:
    """Return what stands before the counted entry: endbr and the ftrace site, as the module loader expects it."""
    lines = []
    arch = original.arch
    if original.body.instructions[0].code == arch.endbr[0]:
        lines.append(writer.data(arch.endbr[0]))
    if original.entry.ftrace is not None:
        edition.tables.ftrace.append(f"\t{arch.pointer} {edition.ftrace}")
        lines += [f"{edition.ftrace}:", "#ifdef CC_USING_NOP_MCOUNT", writer.data(arch.nop5)]
        lines += ["#else", "\tcall __fentry__", "#endif"]
    return lines


class _Clone:
    def __init__(self, original: Original, edition: Edition) -> None:
        self.original = original
        self.edition = edition
        self.uses = original.indirection.uses
        self.patched = {*self.uses, *original.numbers}
        self.patched.update([key.address for key in original.keys], [call.address for call in original.calls])
        self.tables = {table: f".L{edition.name}.table{n}" for n, table in enumerate(original.indirection.tables)}
        self.keys = {key.address: key for key in original.keys}
        self.calls = {call.address: call for call in original.calls}
        self.state = original.state

    @cached_property
    def labels(self) -> set[int]:
        """Return the addresses that something refers to."""
        original = self.original
        labels = set(original.unwind)
        labels.update(i.target for i in original.body.instructions if i.target in original.body.boundaries)
        for fixup in original.fixups:
            labels.update((fixup.address, fixup.fixup))
        for key in original.keys:
            labels.update((key.address, key.target))
        labels.update(bug.address for bug in original.bugs)
        labels.update(call.address for call in original.calls)
        labels.add(original.body.address)
        labels.update(target for table in original.indirection.tables for target in table.targets)
        labels.update(original.numbers.values())
        labels.update(part.limit for part in original.body.parts if part.runs_on)
        return labels

    def _stays(self, instruction: Instruction) -> bool:
        """Return whether an instruction's bytes are the clone's."""
        if instruction.kind is Kind.CALL_INDIRECT and instruction.detail in self.original.pads:
            return False
        return instruction.kind in _FIXED and not instruction.field and instruction.address not in self.patched

    def rehearse(self) -> None:
        """Meet every refusal that writing would meet, without the text that nobody reads."""
        state, unwind, patched = self.state, self.original.unwind, self.patched
        for instruction in self.original.body.instructions:
            address = instruction.address
            if address in unwind:
                state = unwind[address]
            if instruction.kind is Kind.PLAIN and address not in patched:
                continue  # no refusal comes of it
            if not self._stays(instruction) and address != self.original.entry.ftrace:
                self._placed(instruction, state)

    def lines(self) -> list[str]:
        lines: list[str] = []
        label = self.edition.label
        unwind = self.original.unwind
        state = self.state
        first = self.original.body.instructions[0]
        endbr = first.address if first.code in self.original.arch.endbr else None
        for part in self.original.body.parts:
            for instruction in part.instructions:
                address = instruction.address
                if address in self.labels:
                    lines.append(f"{label(address)}:")
                    if address in unwind:
                        state = unwind[address]
                        self.edition.tables.unwind(label(address), state)
                if address in (self.original.entry.ftrace, endbr):
                    continue
                if self._stays(instruction) and address not in self.original.locks:
                    lines.append(writer.plain(instruction))
                else:
                    lines += self._placed(instruction, state)
            if part.instructions[-1].kind is Kind.CALL:
                lines.append("\tud2")
            elif part.runs_on:
                lines.append(f"\tjmp {label(part.limit)}")
        self._tables()
        return lines

    def _placed(self, instruction: Instruction, state: bytes | None) -> list[str]:
        """Return an instruction whose meaning depends on its place."""
        original, edition = self.original, self.edition
        if instruction.address in original.locks:
            instruction = instruction._replace(code=b"\xf0" + instruction.code[1:])
        if key := self.keys.get(instruction.address):
            return self._static_key(instruction, key)
        if instruction.address in self.calls:
            return self._static_call(instruction, state)
        if use := self.uses.get(instruction.address):
            return writer.aimed(instruction, use.field, self.tables[use.table], use.table.base, original.arch)
        if instruction.address in original.numbers:
            to = edition.label(original.numbers[instruction.address])
            return writer.aimed(instruction, instruction.size - 4, to, 0, original.arch)
        kind = instruction.kind
        target = instruction.target
        if instruction.address in original.indirection.jumps:
            return [writer.plain(instruction) if target is None else f"\tjmp {original.ways[target].operand}"]
        if kind is Kind.RETURN or (kind is Kind.JUMP and target in original.return_thunks):
            self._check_exit(instruction, state)
            dropping = [f"\t{instruction.detail}"] if instruction.detail else []
            return [f"\tjmp {edition.tail(dropping)}"] if dropping else edition.leaving(state)
        if kind is Kind.JUMP_INDIRECT:
            return self._indirect_tail(instruction, state)
        if kind in DIRECT and target is not None:
            return self._direct(instruction, target, state)
        if kind is Kind.CALL_INDIRECT and instruction.detail:
            return [f"\tcall {original.pads[instruction.detail]:#x}\t# {instruction.text}"]
        if instruction.field and target is not None:
            own = target in original.body.boundaries and target != original.body.address
            return writer.relative(instruction, edition.label(target) if own else f"{target:#x}")
        return [writer.plain(instruction)]

    def _check_exit(self, instruction: Instruction, state: bytes | None) -> None:
        deep = self.original.depths.get(instruction.address, 0)  # 0: nothing leads there
        safety.check_exit(self.original.name, instruction, state, self.state, deep)

    def _direct(self, instruction: Instruction, target: int, state: bytes | None) -> list[str]:
        original, edition = self.original, self.edition
        kind = instruction.kind
        inner = target in original.body.boundaries and (kind is not Kind.CALL or target != original.body.address)
        if kind is Kind.CALL and target == instruction.end:
            return self._learn(instruction)
        if kind is Kind.CALL:
            if not inner and (register := original.ways[target].learns):
                return [f"\tmov ${instruction.end:#x}, %{register}\t# {instruction.text}"]
            # A subroutine inside runs in the original: its return is none of the clone's.
            call = f"\tcall {f'{target:#x}' if inner else original.ways[target].operand}"
            ends = not inner and original.ways[target].ends
            return [*(edition.ending() if ends else []), call]
        if inner:
            destination = edition.label(target)
        else:
            self._check_exit(instruction, state)
            if target in original.return_thunks:
                destination = edition.exit
            else:
                way = original.ways[target]
                destination = edition.tail([f"\tjmp {way.operand}"], way.register and f"%{way.register}")
        if kind is not Kind.LOOP:
            return [f"\t{instruction.detail or 'jmp'} {destination}"]
        here = f"{edition.label(instruction.address)}.short"
        return [
            f"\t{instruction.detail} {here}",
            f"\tjmp {here}.not",
            f"{here}:",
            f"\tjmp {destination}",
            f"{here}.not:",
        ]

    def _learn(self, instruction: Instruction) -> list[str]:
        """Return a call that only pushes its own place: what is computed from it is meant for the original's."""
        found = self.original.arch.push(instruction.end)
        if not found:
            reason = f"{instruction.text}: it learns its own address"
            raise Refusal(self.original.name, reason, address=instruction.address)
        return [f"{found[0]}\t# {instruction.text}", *found[1:]]

    def _indirect_tail(self, instruction: Instruction, state: bytes | None) -> list[str]:
        original = self.original
        self._check_exit(instruction, state)
        if instruction.detail in original.pads:
            jump = [f"\tjmp {original.pads[instruction.detail]:#x}"]
        elif instruction.field and instruction.target is not None:
            jump = writer.relative(instruction, f"{instruction.target:#x}")
        else:
            jump = [writer.plain(instruction)]
        body = original.body.part(instruction.address)
        assert body is not None
        at = body.instructions.index(instruction)
        if at and body.instructions[at - 1].text.startswith("lfence"):
            jump = ["\tlfence", *jump]
        return [f"\tjmp {self.edition.tail(jump, instruction.text)}"]

    def _static_key(self, instruction: Instruction, key: StaticKey) -> list[str]:
        """Return the site in its initial form, five bytes long; the loader brings it up to date."""
        right = instruction.kind is Kind.NOP or (instruction.kind is Kind.JUMP and instruction.target == key.target)
        if instruction.size not in (2, 5) or not right:
            raise Refusal(
                self.original.name, f"{instruction.text}: not what a static key's site holds",
                address=instruction.address, kind="not what a static key's site holds",
            )  # fmt: skip
        site, target = self.edition.label(key.address), self.edition.label(key.target)
        branch = " + 1" if key.branch else ""
        self.edition.tables.keys += [
            f"\t.long {site} - .", f"\t.long {target} - .", f"\t{self.original.arch.pointer} {key.key:#x}{branch} - .",
        ]  # fmt: skip
        if key.jumps:
            return ["\t.byte 0xe9\t# static key", f"\t.long {target} - . - 4"]
        return [f"{writer.data(self.original.arch.nop5)}\t# static key"]

    def _static_call(self, instruction: Instruction, state: bytes | None) -> list[str]:
        call = self.calls[instruction.address]
        original, edition = self.original, self.edition
        code, kind = instruction.code, instruction.kind
        if not call.tail:
            site = edition.label(call.address)
            edition.tables.calls += [f"\t.long {site} - .", f"\t.long {call.key:#x} - ."]
            if code in (original.arch.nop5, XOR5, WARN5):
                return [f"{writer.data(code)}\t# static call"]
            if kind is Kind.CALL and instruction.size == 5:
                return [f"\tcall {instruction.target:#x}\t# static call"]
        elif kind is Kind.RETURN or (kind in (Kind.JUMP, Kind.BRANCH) and instruction.size >= 5):
            self._check_exit(instruction, state)
            site = f".L{edition.name}.site.{call.address:x}"
            edition.tables.calls += [f"\t.long {site} - .", f"\t.long {call.key:#x} + 1 - ."]
            target = next(iter(original.return_thunks), 0) if instruction.target is None else instruction.target
            stub = edition.tail([f"{site}:", "\t.byte 0xe9\t# static call", f"\t.long {target:#x} - . - 4"])
            return [f"\t{instruction.detail or 'jmp'} {stub}"]
        raise Refusal(
            original.name,
            f"{instruction.text}: not what a static call's site holds",
            address=instruction.address,
            kind="not what a static call's site holds",
        )

    def _tables(self) -> None:
        label, tables = self.edition.label, self.edition.tables
        for table, name in self.tables.items():
            tables.indirection += indirection.lines(table, name, label, self.original.arch)
        for fixup in self.original.fixups:
            tables.fixups += [
                f"\t.long {label(fixup.address)} - .", f"\t.long {label(fixup.fixup)} - .",
                f"\t.long {fixup.data:#x}",
            ]  # fmt: skip
        here = " - ." if self.original.arch.bugs_relative else ""
        for bug in self.original.bugs:
            tables.bugs += [
                f"\t.long {label(bug.address)}{here}",
                *([f"\t.long {bug.format:#x}{here}"] if bug.format else []),
                f"\t.long {bug.file:#x}{here}",
                f"\t.short {bug.line}, {bug.flags:#x}",
            ]  # fmt: skip
