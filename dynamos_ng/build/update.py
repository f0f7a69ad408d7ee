"""From an update's folder to its kernel module, for the running kernel in this boot."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from dynamos_ng import modules, uapi
from dynamos_ng.build import adaptation, description, dynamos_ko, kbuild, variables
from dynamos_ng.build.description import Description, FunctionChange
from dynamos_ng.device import Device, Info
from dynamos_ng.errors import BuildError, DynamosError, UsageError
from dynamos_ng.image import Kernel
from dynamos_ng.model import FunctionState
from dynamos_ng.module_image import ModuleImage
from dynamos_ng.rewrite.clone import Original, examine
from dynamos_ng.rewrite.handler import Constants
from dynamos_ng.rewrite.kernel import Symbol
from dynamos_ng.rewrite.objects import Object
from dynamos_ng.rewrite.update import Redirect, generate

#: What the wrapper and the module loader define.
PROVIDED = frozenset(("__this_module", "dynamos_phase", "dynamos_shadows"))
#: The authors' C files, compiled and joined; the name cannot be that of one of them.
EDITIONS = "dynamos-editions.o"

EDITIONS_KBUILD = """\
obj-m := {object}
{stem}-y := {objects}
ccflags-y := -I$(src)
"""
MODULE_KBUILD = """\
obj-m := {module}.o
{module}-y := wrapper.o update.o
ccflags-y := -I$(src) -DDYNAMOS_ANCHOR={anchor:#x} -DDYNAMOS_FLAGS={flags}
# The assembler takes for zero what is not there.
AFLAGS_update.o := -Wa,--fatal-warnings
# Its unwind entries are the kernel's own and objtool's for the editions in C; objtool knows no absolute targets.
OBJECT_FILES_NON_STANDARD_update.o := y
# With indirect branch tracking, kbuild runs objtool on the whole module and not on its parts.
$(obj)/{module}.o: override objtool-enabled :=
$(obj)/wrapper.o: override objtool-enabled := y
KBUILD_EXTRA_SYMBOLS := $(src)/dynamos.symvers
"""


def build(folder: Path, output: Path) -> Path:
    """Build FOLDER's update into OUTPUT and return the module's path.

    The sources are compiled while the kernel is examined; what is refused there is told first: a Refusal names
    function, address and reason. An update fits this kernel in this boot alone, and the modules that it names in this
    load of them, for addresses are compiled into it.
    """
    wanted = description.read(folder)
    if not output.is_dir():
        raise UsageError(f"{output}: no such folder to put the module into")
    dynamos_ko.ensure_loaded()
    with Device() as device:
        info = device.info()
        # Before their symbols are read: of one that went and came in between, the kernel then refuses the update.
        loads = {name: device.module(name) for name in wanted.modules}
        were = {f.site: f.original_bytes for f in device.functions() if f.state is FunctionState.REDIRECTED}
    with tempfile.TemporaryDirectory(prefix="dynamos-build-") as name, ThreadPoolExecutor(1) as beside:
        work = Path(name)
        compiling = [beside.submit(_compile, wanted, work / "editions")] if wanted.sources else []
        kernel = Kernel.live(were)
        images = {name: ModuleImage(kernel, load, modules.used_by(name)) for name, load in loads.items()}
        originals = [
            examine(images.get(change.module, kernel), _function(kernel, change)) for change in wanted.functions
        ]
        for original, change in zip(originals, wanted.functions, strict=True):
            if change.editions:
                original.check_editions()
        written = [variables.place(kernel, wanted, change) for change in wanted.variables]
        objects = [compiled.result() for compiled in compiling]
        redirects = [
            Redirect(
                original,
                {n: change.symbol(n) for n in change.editions},
                change.name,
                change.adapt is not None,
                loads[change.module].load if change.module else 0,
                change.interrupts,
            )
            for original, change in zip(originals, wanted.functions, strict=True)
        ]
        constants = Constants(
            info.current_offset, info.tgid_offset, _return_thunk(originals), info.pid_offset, info.cpu_offset,
            info.preempt_offset, info.interrupt_mask,
        )  # fmt: skip
        resolve = _resolver(kernel, wanted)
        _check_keys([kernel, *images.values()], objects, resolve)
        text = generate(redirects, objects, constants, resolve, written, kernel.arch, wanted.consistent)
        text += "\n".join([*adaptation.text(_carried(wanted, originals, objects)), ""])
        module = _link(wanted, info, text, work / "module")
        try:
            return Path(shutil.copy(module, output))
        except OSError as error:
            raise UsageError(f"{output}: {error.strerror}: give another folder with --output") from None


def _function(kernel: Kernel, change: FunctionChange) -> Symbol:
    """Return the function of the first of its names that the kernel or its module has."""
    names = (change.name, *change.others)
    name = next((name for name in names if kernel.symbols.find(name, change.module)), change.name)
    return kernel.function(name, change.position or None, change.module)


def _compile(wanted: Description, work: Path) -> Object:
    """Compile the author's sources with the kernel's own flags and join them into one object."""
    work.mkdir()
    for path in wanted.folder.glob("*.[ch]"):
        shutil.copy(path, work)
    for path in (dynamos_ko.source() / "update").glob("*.h"):
        shutil.copy(path, work)
    names = " ".join(source.with_suffix(".o").name for source in wanted.sources)
    (work / "Kbuild").write_text(
        EDITIONS_KBUILD.format(object=EDITIONS, stem=EDITIONS.removesuffix(".o"), objects=names)
    )
    kbuild.make(work, EDITIONS)
    return Object((work / EDITIONS).read_bytes(), EDITIONS)


def _carried(wanted: Description, originals: Sequence[Original], objects: Iterable[Object]) -> adaptation.Carried:
    """Return what the module is to carry of its adaptation handlers."""
    handlers = {
        original.body.address: change.adapt
        for original, change in zip(originals, wanted.functions, strict=True)
        if change.adapt is not None
    }
    sources = {one.file: (wanted.folder / one.file).read_text() for one in handlers.values()}
    return adaptation.Carried(handlers, sources, adaptation.constants(objects))


def _check_keys(
    images: Sequence[Kernel | ModuleImage], objects: Iterable[Object], resolve: Callable[[str], int | None]
) -> None:
    """Refuse sources with a static branch on a key that is read-only since boot: loading them would be an oops."""
    for item in objects:
        for name in sorted(item.static_keys()):
            address = resolve(name)
            if address is not None and any(image.read_only(address) for image in images):
                raise BuildError(
                    f"{name}: the sources branch on this static key, which is read-only since boot, and the module "
                    "loader would write to it: use static_key_enabled(), or call the kernel's function that branches"
                )


def _return_thunk(originals: Iterable[Original]) -> str:
    """Return the symbol that the kernel's returns jump to, or "" where it returns plainly."""
    return "__x86_return_thunk" if any(original.return_thunks for original in originals) else ""


def _resolver(kernel: Kernel, wanted: Description) -> Callable[[str], int | None]:
    """Return what gives an address to each kernel symbol that the sources use, exported or not.

    A module whose functions the update changes comes before the kernel, as for its own code. None leaves a symbol to
    the module loader: those of other modules, and of dynamos.ko.
    """
    made_here = {f"{change.name}_v{number}" for change in wanted.functions for number in (1, *change.editions)}

    def within(address: int, start: str, end: str) -> bool:
        low, high = kernel.symbols.address(start), kernel.symbols.address(end)
        return low is not None and high is not None and low <= address < high

    def kept(name: str, address: int) -> int:
        # What addresses of a CPU's own variables count from may lie there too.
        if within(address, "__init_begin", "__init_end") and not within(address, "__per_cpu_start", "__per_cpu_end"):
            raise BuildError(f"{wanted.name}: the sources use {name}, which was freed when the kernel had booted")
        return address

    def resolve(name: str) -> int | None:
        places = [kernel.symbols.find(name, module) for module in (*wanted.modules, "")]
        found = next(filter(None, places), [])
        if name in made_here or name in PROVIDED:
            return None
        if position := wanted.symbols.get(name):
            if position > len(found):
                raise UsageError(
                    f"{wanted.folder / description.FILE}: symbols.{name}: the kernel has {len(found)} of this name"
                )
            return kept(name, found[position - 1].address)
        if not found:
            # A kernel may list its functions alone; what it exports is found by the module loader.
            if kernel.symbols.in_modules(name) or name in kbuild.exported():
                return None
            raise BuildError(
                f"{wanted.name}: the sources use {name}, which neither the kernel nor a module has, or which is data "
                "of a kernel that lists and exports no such (KALLSYMS_ALL is off)"
            )
        # A name that several files use has one global symbol at most, and C without a position means that one.
        public = [symbol for symbol in found if symbol.type.isupper()] if len(found) > 1 else found
        if len(public) != 1:
            where = ", ".join(f"{i} = {symbol.address:#x}" for i, symbol in enumerate(found, 1))
            raise DynamosError(
                f"{wanted.name}: the kernel has {len(found)} symbols {name}: say which one in "
                f"{description.FILE}, [symbols] {name} = POSITION: {where}"
            )
        return kept(name, public[0].address)

    return resolve


def _link(wanted: Description, info: Info, text: str, work: Path) -> Path:
    """Assemble and link the module, and return its path in WORK."""
    work.mkdir()
    source = dynamos_ko.source() / "update"
    for path in source.iterdir():
        shutil.copy(path, work)
    shutil.copy(dynamos_ko.folder() / "Module.symvers", work / "dynamos.symvers")
    (work / "update.S").write_text(text)
    flags = uapi.QUIESCENT * wanted.quiescent | uapi.CONSISTENT * wanted.consistent | uapi.PHASED * wanted.phased
    (work / "Kbuild").write_text(MODULE_KBUILD.format(module=wanted.module, anchor=info.anchor, flags=flags))
    kbuild.make(work, "modules")
    return work / f"{wanted.module}.ko"
