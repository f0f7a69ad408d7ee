"""From a kernel function and compiled editions to the assembler text of an update.

::

    kernel = image.Kernel.live()                       # or Kernel.saved(kallsyms, source, blacklist)
    original = examine(kernel, kernel.function("pipe_read"))    # every check; Refusal says why not
    text = generate(
        [Redirect(original, {2: "pipe_read_v2"})],     # edition number -> function in the objects
        [Object(path.read_bytes(), path.name)],        # compiled by kbuild from the author's C
        Constants(current=…, tgid=…),                  # offset of current in per-CPU memory, of tgid in a task
        resolve,                                       # name -> address, or None: the loader's affair
    )

The text is a kbuild ``.S`` file, not for objtool (``OBJECT_FILES_NON_STANDARD_update.o := y``). It defines
``dynamos_functions`` and per function F ``F_handler``, ``F_v1``, ``F_v2``… and the slots ``F_row``, ``F_vN_use``;
it wants ``dynamos_policy``, ``__fentry__`` and ``__x86_return_thunk`` from the kernel.

Modules: `kernel` (what is asked of a kernel), `reader` (bytes to instructions), `safety` (what is refused), `clone`
(the original moved), `elf`, `objects`, `compiled` (C editions moved), `handler` and `writer` (text), `update` (all of
it together). Nothing here reads or changes anything: the kernel is asked through the `Kernel` protocol.
"""

from dynamos_ng.rewrite.clone import Original, check, examine
from dynamos_ng.rewrite.handler import Constants
from dynamos_ng.rewrite.kernel import Kernel, Symbol
from dynamos_ng.rewrite.objects import Object
from dynamos_ng.rewrite.update import Redirect, generate

__all__ = ["Constants", "Kernel", "Object", "Original", "Redirect", "Symbol", "check", "examine", "generate"]
