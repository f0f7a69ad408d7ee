"""Adaptation handlers: an author's BPF programs, from a module file into the kernel.

dynamos.ko holds an attached program, and the program its maps: both outlive this process. The maps are pinned beside
the policy maps, under adapt/MODULE/FILE/MAP, for whoever wants to read them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from dynamos_ng import bpf, bpfmaps, engine
from dynamos_ng.build import adaptation as carried
from dynamos_ng.closing import Closing
from dynamos_ng.device import Device
from dynamos_ng.engine import Source
from dynamos_ng.errors import KernelRefused
from dynamos_ng.model import Function

PINS = bpfmaps.PIN_DIR / "adapt"


class Programs(Closing):
    """The programs that a module file carries, compiled and accepted by the kernel's verifier; not attached yet.

    BuildError has the compiler's words for what is wrong in a source, KernelRefused the verifier's.
    """

    def __init__(self, module: Path) -> None:
        found = carried.read(module)
        self._programs: dict[int, int] = {}
        self._files: dict[str, list[int]] = {}
        with ExitStack() as undo:
            files: dict[str, engine.Programs] = {}
            for address, handler in found.handlers.items():
                if handler.file not in files:
                    source = Source(
                        handler.file, bpf.PROGRAM_RAW_TRACEPOINT,
                        text=found.sources[handler.file], constants=found.constants,
                    )  # fmt: skip
                    files[handler.file] = undo.enter_context(engine.load(source))
                program = files[handler.file].program(handler.program)
                self._programs[address] = program
                self._files.setdefault(handler.file, []).append(program)
            self._undo = undo.pop_all()

    def close(self) -> None:
        """Let go of the programs; attached ones live on."""
        self._undo.close()

    def attach(self, device: Device, module: str, functions: Iterable[Function]) -> None:
        """Attach each program to its function, and pin the maps; all or none."""
        with ExitStack() as undo:
            for function in functions:
                program = self._programs.get(function.address)
                if function.adaptation is None or program is None:
                    continue
                device.adapt(function, program)
                undo.callback(device.adapt, function, None)
            undo.callback(unpin, module)
            _pin(module, self._files)
            undo.pop_all()


def missing(functions: Iterable[Function]) -> bool:
    """Return whether a function that is to have a program has none."""
    return any(function.adaptation is not None and not function.adaptation.program for function in functions)


def notes(function: Function) -> Iterator[str]:
    """Say what a function's adaptation handler is, and what was counted."""
    if (one := function.adaptation) is None:
        return
    if one.program:
        yield (
            f"BPF program {one.program} ({_name(one.program)}) chooses its editions: {one.unknown} calls got v1, for "
            f"it named no edition there is; on {one.avoided} it was not run, inside another program or in an NMI"
        )
    else:
        yield "its adaptation handler is not attached, and the policy map decides: load the update again"


def _pin(module: str, files: Mapping[str, Sequence[int]]) -> None:
    unpin(module)
    try:
        for file, programs in files.items():
            folder = PINS / module / file.partition(".")[0]
            folder.mkdir(mode=0o700, parents=True)
            for number in sorted(set().union(*map(bpf.program_maps, programs))):
                fd = bpf.map_by_id(number)
                try:
                    name = bpf.map_info(fd).name
                    if "." not in name:  # else the compiler's own, which the file system does not take
                        bpf.pin(fd, folder / name)
                finally:
                    os.close(fd)
    except OSError as error:
        raise KernelRefused(f"{PINS / module}: maps cannot be pinned: {error.strerror}", error.errno or 0) from None


def unpin(module: str) -> None:
    """Take the pins of an update's maps away; without them the maps end with its programs."""
    bpfmaps.remove_pins(PINS / module)


def sweep(loaded: Iterable[str]) -> None:
    """Take away the pins of updates that went while no daemon saw it."""
    left = set(loaded)
    with suppress(FileNotFoundError):
        for folder in PINS.iterdir():
            if folder.name not in left:
                unpin(folder.name)


def _name(program: int) -> str:
    try:
        fd = bpf.program_by_id(program)
    except OSError:  # it has just been replaced
        return "gone"
    try:
        return bpf.program_name(fd)
    finally:
        os.close(fd)
