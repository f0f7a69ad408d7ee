"""Writer: assembler text of moved instructions, exit stubs and tail stubs.

Bytes that do not depend on their place stay bytes, with the disassembly beside them; branches inside the
function become `jmp label` (the assembler picks the size); what leaves the function goes through a stub that
counts the exit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from dynamos_ng.arch import CALLING, Arch, Instruction
from dynamos_ng.rewrite import consistency

#: Kernel functions in which the task ends that calls them.
ENDS_TASK = frozenset((
    "do_exit", "do_group_exit", "make_task_dead", "kthread_exit", "kthread_complete_and_exit",
    "__module_put_and_kthread_exit",
    "__x64_sys_exit", "__x64_sys_exit_group", "__ia32_sys_exit", "__ia32_sys_exit_group",
))  # fmt: skip
_THUNK_REGISTER = re.compile(r"__x86_indirect\w*_thunk_([re]\w+)$")


def data(code: bytes) -> str:
    """Return a `.byte` directive for at least one byte."""
    return "\t.byte 0x" + code.hex(",").replace(",", ",0x")


def plain(instruction: Instruction) -> str:
    """Return an instruction that does not depend on its place."""
    return f"{data(instruction.code)}\t# {instruction.text}"


def relative(instruction: Instruction, target: str) -> list[str]:
    """Return an instruction with a RIP-relative operand that refers to TARGET."""
    field = instruction.field
    after = instruction.size - field
    lines = [
        f"{data(instruction.code[:field])}\t# {instruction.text}",
        f"\t.long {target} - . - {after}",
    ]
    if after > 4:
        lines.append(data(instruction.code[field + 4 :]))
    return lines


def aimed(instruction: Instruction, field: int, name: str, base: int, arch: Arch) -> list[str]:
    """Return an instruction whose 4-byte FIELD leads to NAME: from the instruction, or else from BASE."""
    if instruction.field:
        return relative(instruction, name)
    code = instruction.code
    lines = [f"{data(code[:field])}\t# {instruction.text}"]
    if arch.word == 8:
        lines += [f"\t.reloc ., R_X86_64_32S, {name}", data(bytes(4))]
    else:
        lines.append(f"\t.long {name} - {base:#x}" if base else f"\t.long {name}")
    return lines + ([data(code[field + 4 :])] if len(code) > field + 4 else [])


def registers_of(name: str) -> str:
    """Return the register that an indirect branch thunk of that name jumps to, or ""."""
    found = _THUNK_REGISTER.search(name)
    return found.group(1) if found else ""


def taken_by(name: str) -> str:
    """Return the register that a jump to NAME needs, as text, or ""."""
    register = registers_of(name)
    return register and f"%{register}"


@dataclass
class Tables:
    """Lines of the sections that point into the code; a module's loader reads them."""

    arch: Arch
    orc_ip: list[str] = field(default_factory=list)
    orc: list[str] = field(default_factory=list)
    fixups: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    bugs: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    returns: list[str] = field(default_factory=list)
    indirection: list[str] = field(default_factory=list)
    ftrace: list[str] = field(default_factory=list)

    def unwind(self, label: str, state: bytes | None) -> None:
        """Add an unwind entry in force from LABEL on; nothing for a kernel without ORC."""
        if state is not None:
            self.orc_ip.append(f"\t.long {label} - .")
            self.orc.append(data(state))

    def sections(self) -> list[str]:
        """Return the text of all sections that are not empty."""
        text: list[str] = []
        for name, flags, align, lines in (
            (".orc_unwind_ip", "a", 4, self.orc_ip),
            (".orc_unwind", "a", 1, self.orc),
            ("__ex_table", "a", 4, self.fixups),
            ("__jump_table", "aw", self.arch.word, self.keys),
            ("__bug_table", "aw", 1, self.bugs),
            (".static_call_sites", "aw", 4, self.calls),
            (".return_sites", "a", 1, self.returns),
            (".rodata", "a", self.arch.word, self.indirection),
            ("__mcount_loc", "a", self.arch.word, self.ftrace),
        ):
            if lines:
                text += [f'\t.section {name},"{flags}",@progbits', f"\t.balign {align}", *lines]
        return text


def deeper(state: bytes | None, words: int, arch: Arch) -> bytes | None:
    """Return the unwind entry after pushing WORDS words in STATE, whose stack pointer is the base."""
    if state is None:
        return None
    offset = int.from_bytes(state[:2], "little", signed=True) + arch.word * words
    return offset.to_bytes(2, "little", signed=True) + state[2:]


def pushing(mark: str, lines: Sequence[str], state: bytes | None, tables: Tables, depth: int = 0) -> list[str]:
    """Return LINES with an unwind entry behind each push and pop, at labels that begin with MARK.

    STATE is in force where nothing has been pushed; DEPTH words have been before.
    """
    found = []
    for number, line in enumerate(lines):
        found.append(line)
        if step := line.startswith("\tpush") - line.startswith("\tpop"):
            depth += step
            found.append(f"{mark}.{number}:")
            tables.unwind(f"{mark}.{number}", deeper(state, depth, tables.arch))
    return found


@dataclass
class Edition:
    """Text of one edition: counted entry, moved code with the exit stub at its first return, tail stubs.

    `name` is its global label. `state` is the unwind entry at a function's first instruction, None without
    ORC. With `preserve`, no register and no flag changes on the way in or out (the callers may not follow C's
    rules). `task` is text that finds the running task's state, for a function of a consistent group. `return_thunk` is
    the symbol that returns jump to, "" for plain ones; `counter` is the register that holds the counter's address from
    entry to exit, if one does; `rare` collects what is seldom run.
    """

    name: str
    number: int
    state: bytes | None
    preserve: bool
    tables: Tables
    lines: list[str] = field(default_factory=list)
    aliases: Sequence[str] = ()
    task: Sequence[str] = ()
    return_thunk: str = ""
    returns: bool = False
    left: bool = False
    counter: str = ""
    rare: list[str] = field(default_factory=list)
    tails: dict[tuple[str, ...], str] = field(default_factory=dict)

    @property
    def start(self) -> str:
        """Return the label of the first byte."""
        return self.name

    @property
    def end(self) -> str:
        """Return the label past the last byte."""
        return f".L{self.name}.end"

    @property
    def direct(self) -> str:
        """Return the label for direct jumps: past the endbr, which they do not need."""
        return f".L{self.name}.direct"

    @property
    def ftrace(self) -> str:
        """Return the label of the ftrace site."""
        return f".L{self.name}.ftrace"

    @property
    def below(self) -> str:
        """Return the label of the place from which edition 1 may be led on to what another update has below.

        One instruction stands there that is at least as long as a jump.
        """
        return f".L{self.name}.below"

    @property
    def exit(self) -> str:
        """Return the label of the exit stub."""
        self.returns = True
        return f".L{self.name}.exit"

    @property
    def use(self) -> str:
        """Return the slot that holds the per-CPU address of the use counter."""
        return f"{self.name}_use"

    @property
    def never_returns(self) -> bool:
        """Return whether nothing leaves the edition; valid once its code is written."""
        return not self.returns and not self.tails

    def tail(self, jump: Sequence[str], taken: str = "") -> str:
        """Return the label of a stub that counts the exit and then does JUMP; TAKEN names the registers it needs."""
        key = (taken, *jump)
        return self.tails.setdefault(key, f".L{self.name}.tail{len(self.tails)}")

    def label(self, address: int) -> str:
        """Return the label of the moved instruction that stood at ADDRESS."""
        return f".L{self.name}.{address:x}"

    def ending(self) -> list[str]:
        """Return what counts the exit in front of a call in which the task ends.

        As behind any count of an exit, a grace period of RCU-tasks covers the instructions that are left; and as long
        as the task is there, the stack walk finds the return address. Where there is ORC, nothing is pushed.
        """
        arch = self.tables.arch
        return arch.count(self.use, 8, next(iter(arch.free_at_tail), ""), False, self.rare)

    def _count(self, at: str, state: bytes | None, offset: int, free: Sequence[str], taken: str = "") -> list[str]:
        arch = self.tables.arch
        if offset and self.counter:
            return arch.increment(self.use, offset, self.counter, self.rare, loaded=True)
        scratch = next((register for register in free if f"%{register}" not in taken), "")
        return pushing(at, arch.count(self.use, offset, scratch, self.preserve, self.rare), state, self.tables)

    def _note(
        self, at: str, state: bytes | None, text: Callable[[Arch, Sequence[str]], list[str]]
    ) -> list[str]:
        """Return TEXT, which changes the running task's state; nothing outside of consistent groups."""
        if not self.task:
            return []
        arch = self.tables.arch
        return pushing(at, consistency.saving(arch, self.preserve, text(arch, self.task)), state, self.tables)

    def takes(self, code: Sequence[Instruction]) -> None:
        """Tell the code that is to be moved into the edition.

        If that calls nothing and does not name the register that the entry is counted with, the exit is counted with
        it as well: it is small functions that feel each load.
        """
        free = () if self.preserve else self.tables.arch.free_at_entry[:1]
        untouched = (r for r in free if not any(i.kind in CALLING or f"%{r}" in i.text for i in code))
        self.counter = next(untouched, "")

    def head(self, first: Sequence[str] = ()) -> list[str]:
        """Return the counted entry.

        FIRST is what must stand at the very beginning: endbr and the ftrace site, which ftrace accepts nowhere else.
        """
        self.tables.unwind(self.name, self.state)
        lines = []
        for name in (self.name, *self.aliases):
            lines += [f"\t.globl {name}", f"\t.type {name}, @function", f"{name}:"]
        arch = self.tables.arch
        # What begins with a push gets an instruction that does nothing.
        idle = [data(arch.nop5)] if self.preserve or not arch.free_at_entry else []
        below = [f"{self.below}:", *idle] if self.number == 1 else []
        count = self._count(f".L{self.name}.in", self.state, 0, arch.free_at_entry)
        enter = self._note(f".L{self.name}.enter", self.state, partial(consistency.enter, number=self.number))
        branch_pad = first[:1] == [data(arch.endbr[0])]
        return [*lines, *first[:branch_pad], f"{self.direct}:", *first[branch_pad:], *below, *count, *enter]

    def leaving(self, state: bytes | None) -> list[str]:
        """Return what stands for a return, where the unwind entry STATE is in force.

        The first one is the exit stub, as compilers put the way first that they think most likely; others jump to it.
        """
        exit_stub = self.exit
        if self.left:
            return [f"\tjmp {exit_stub}"]
        self.left = True
        lines = self._stub(exit_stub, state, self.tables.arch.free_at_return)
        if not self.return_thunk:
            return [*lines, "\tret", "\tint3"]
        self.tables.returns.append(f"\t.long .L{self.name}.return - .")
        return [*lines, f".L{self.name}.return:", f"\tjmp {self.return_thunk}", "\tint3"]

    def foot(self) -> list[str]:
        """Return the stubs and the end of the edition, once all code is written."""
        lines: list[str] = []
        if self.returns and not self.left:
            self.tables.unwind(self.exit, self.state)
            lines += self.leaving(self.state)
        for (taken, *jump), label in self.tails.items():
            self.tables.unwind(label, self.state)
            lines += self._stub(label, self.state, self.tables.arch.free_at_tail, taken)
            lines += [*jump, "\tint3"]
        lines += self.rare
        lines.append(f"{self.end}:")
        lines += [f"\t.size {name}, . - {name}" for name in (self.name, *self.aliases)]
        return lines

    def _stub(self, label: str, state: bytes | None, free: Sequence[str], taken: str = "") -> list[str]:
        # A task that is counted out is no longer inside.
        leave = self._note(f"{label}.leave", state, consistency.leave)
        return [f"{label}:", *leave, *self._count(label, state, 8, free, taken)]
