"""Boots a throw-away guest with QEMU, runs one command in it as root, and tells how it ended."""

from __future__ import annotations

import codecs
import os
import re
import secrets
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dynamos_ng.errors import GuestDied, GuestTimeout, LabError, UsageError
from dynamos_ng.lab import emulator, initramfs, root
from dynamos_ng.lab.kbuild import Service

CHECKOUT = Path(__file__).parents[2]
#: Emulation, always: a device node for virtualisation does not mean that a stock kernel boots with it.
ACCELERATOR = ("-accel", "tcg,thread=multi,tb-size=512")
#: Time in the guest is instructions, one a nanosecond, except where it idles. With two CPUs it hangs.
COUNTING = ("-accel", "tcg,thread=single,tb-size=512", "-icount", "shift=0")
#: no_timer_check: without it a boot on a busy host can panic. tsc=reliable: all CPUs' counters are one clock of the
#: host's, but a busy host makes kernels doubt it, and then they read a slower one. panic=-1 with -no-reboot ends QEMU
#: at a panic.
ARGUMENTS = (
    "console=ttyS0", "quiet", "panic=-1", "no_timer_check", "cryptomgr.notests=1", "noisapnp", "oops=panic",
    "panic_on_warn=1", "tsc=reliable",
)  # fmt: skip


@dataclass(frozen=True)
class Processor:
    """A model of QEMU's, and what the kernel is told at boot to patch itself as it would for another."""

    model: str
    cmdline: str = ""


#: What a kernel makes of its returns and indirect branches depends on the processor: retpolines and plain returns,
#: its_return_thunk (and split page tables), srso_return_thunk, and the thunk that tracks the depth of calls.
PROCESSORS = {
    # QEMU's own "max" has the family of an old Athlon, which 32-bit kernels warn of when there are two.
    "max": Processor("max,family=15,model=107,stepping=1"),
    "its": Processor("Skylake-Server-v4"),
    "srso": Processor("EPYC-Milan"),
    "stuff": Processor("Skylake-Server-v4", "retbleed=stuff"),
}
#: How often a guest may try to boot: while devices were still being mapped, a QEMU was seen to end in an assertion of
#: its own (iotlb_to_section), and on a busy host kernels fail now and then. Once the command runs, nothing is
#: forgiven.
BOOTS = 3
BOOT_SECONDS = 300.0
OFF_SECONDS = 60.0
CONSOLE_LINES = 60
#: Messages of the kernel that fail a run whatever the command's status was. The mitigations' boot-time advice is none.
TROUBLE = re.compile(
    r"^(?!.*(?:Spectre|RETBleed|MDS |TAA ).*WARNING:).*"
    r"(?:\bOops\b|\bBUG: |\bWARNING: |Kernel panic|general protection fault).*",
    re.MULTILINE,
)


@dataclass(frozen=True)
class Result:
    """How a command ended: its exit status, all it printed (stdout and stderr as they came), the kernel's console."""

    status: int
    output: str
    console: str


def trouble(console: str, expected: Sequence[str] = ()) -> str:
    """Return the console's first line that reports an oops, BUG or WARN, or an empty text.

    For each regular expression of `expected`, one such line in which it is found is none; if it is missing, that is.
    """
    found = [match.group().strip() for match in TROUBLE.finditer(console)]
    for pattern in expected:
        awaited = next((line for line in found if re.search(pattern, line)), None)
        if awaited is None:
            return found[0] if found else f"it did not say what was expected: {pattern}"
        found.remove(awaited)
    return found[0] if found else ""


@contextmanager
def out_folder() -> Iterator[Path]:
    """Give a temporary folder to share as /out."""
    with tempfile.TemporaryDirectory(prefix="dynamos-out-") as name:
        yield Path(name)


def check_file(path: Path) -> None:
    """Refuse a file that could not be written after a guest's work; UsageError."""
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"{path}: no file can be written there")


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    out_dir: Path | None = None,
    cpus: int = 2,
    memory: str = "2G",
    on_output: Callable[[str], None] | None = None,
    env: Mapping[str, str] | None = None,
    cmdline: str = "nokaslr",
    checkout: Path = CHECKOUT,
    stop: Callable[[], str] | None = None,
    expected: Sequence[str] = (),
    kernel: str = root.DEFAULT,
    cpu: str = "max",
    counted: bool = False,
) -> Result:
    """Run a command in a new guest as root and return how it ended.

    `timeout`: seconds for the command itself; the boot has its own limit. `out_dir` is /out in the guest, CHECKOUT is
    /dynamos (what is written there stays in the guest). `on_output` gets the output as it comes. `cmdline`: kernel
    arguments besides the usual.
    `stop` is asked twice a second; a reason that it gives ends the guest with GuestTimeout.
    `expected`: regular expressions, each for one line of kernel trouble that must come up, and is none then.
    `kernel`: one of root.KERNELS. `cpu`: one of PROCESSORS, or a model that QEMU knows. `counted`: the guest's clocks
    count its instructions, as nanoseconds; it must have one CPU.
    Raises GuestTimeout, GuestDied (also when the kernel reported a BUG, WARN or oops), LabError.
    """
    if out_dir is None:
        with out_folder() as folder:
            return run(argv, timeout=timeout, out_dir=folder, cpus=cpus, memory=memory, on_output=on_output,
                       env=env, cmdline=cmdline, checkout=checkout, stop=stop, expected=expected,
                       kernel=kernel, cpu=cpu, counted=counted)  # fmt: skip
    with _Guest(out_dir, checkout, env or {}, kernel, cpu, counted) as guest:
        (guest.hidden / "command").write_text(f"exec {shlex.join(argv)}\n")
        result = None
        for left in reversed(range(BOOTS)):
            process, port = guest.boot(cpus, memory, cmdline, on_output, stop or (lambda: ""))
            if result := guest.follow(process, port, timeout, expected, again=left > 0):
                break
        assert result is not None
        return result


def shell(
    *,
    cpus: int = 2,
    memory: str = "2G",
    cmdline: str = "nokaslr",
    out_dir: Path | None = None,
    kernel: str = root.DEFAULT,
    cpu: str = "max",
) -> None:
    """Boot a guest with a shell on this terminal; returns when it is left (or by Ctrl-A X)."""
    if out_dir is None:
        with out_folder() as folder:
            shell(cpus=cpus, memory=memory, cmdline=cmdline, out_dir=folder, kernel=kernel, cpu=cpu)
        return
    with _Guest(out_dir, CHECKOUT, {"TERM": os.environ.get("TERM", "linux")}, kernel, cpu) as guest:
        (guest.hidden / "shell").touch()
        subprocess.run([*guest.qemu(cpus, memory, cmdline), "-serial", "mon:stdio"], check=False)


class _Guest:
    """One guest's folders and services, from before its boot until after its end."""

    def __init__(
        self, out: Path, checkout: Path, environment: Mapping[str, str], kernel: str, cpu: str, counted: bool = False
    ) -> None:
        self.out = out.resolve()
        self.checkout = checkout
        self.accelerator = COUNTING if counted else ACCELERATOR
        self.hidden = self.out / ".lab"
        self.console = self.hidden / "console"
        self.messages = self.hidden / "qemu"
        self.root = root.ensure(kernel)
        self.processor = PROCESSORS.get(cpu) or Processor(cpu)
        self.initramfs = initramfs.ensure(self.root)
        self.mark = "dynamos-lab-" + secrets.token_hex(8)
        self.environment = {
            "LAB_MARK": self.mark,
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LANG": "C.UTF-8",
            "PYTHONPATH": "/dynamos",
            "PYTHONUNBUFFERED": "1",
            "DYNAMOS_KBUILD": "/run/lab/kbuild",
            "DYNAMOS_LAB": "1",
            **environment,
        }

    def __enter__(self) -> _Guest:
        try:
            self.hidden.mkdir(parents=True)
        except FileExistsError:
            raise LabError(f"{self.out}: another guest uses this output folder") from None
        (self.hidden / "kbuild").mkdir()
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in self.environment.items()]
        (self.hidden / "environment").write_text("".join(lines))
        self.kbuild = Service(self.root, self.hidden / "kbuild")
        self.kbuild.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kbuild.stop()
        shutil.rmtree(self.hidden, ignore_errors=True)

    def qemu(self, cpus: int, memory: str, cmdline: str) -> list[str]:
        """Return QEMU's call, all but the serial console and the output port."""
        def share(tag: str, path: Path, extra: str = "") -> list[str]:
            name = str(path).replace(",", ",,")
            return ["-virtfs", f"local,path={name},mount_tag={tag},security_model=none,multidevs=remap{extra}"]

        return [
            # Nothing must go on running when this process is killed.
            "setpriv", "--pdeathsig", "KILL", "--", *emulator.command(),
            "-nodefaults", "-no-user-config", "-machine", "q35", *self.accelerator, "-cpu", self.processor.model,
            "-smp", str(cpus), "-m", memory, "-display", "none", "-no-reboot", "-nic", "none",
            "-device", "virtio-rng-pci",
            "-kernel", str(self.root.kernel), "-initrd", str(self.initramfs),
            "-append", " ".join((*ARGUMENTS, self.processor.cmdline, cmdline)),
            "-drive", f"file={self.root.image},format=raw,if=virtio,readonly=on",
            *share("dynamos", self.checkout, ",readonly=on"), *share("out", self.out),
        ]  # fmt: skip

    def boot(
        self,
        cpus: int,
        memory: str,
        cmdline: str,
        on_output: Callable[[str], None] | None,
        stop: Callable[[], str],
    ) -> tuple[subprocess.Popen[bytes], _Port]:
        """Start QEMU; the caller owns the process."""
        here, there = socket.socketpair()
        argv = [
            *self.qemu(cpus, memory, cmdline), "-serial", f"file:{self.console}",
            "-device", "virtio-serial-pci", "-chardev", f"socket,id=output,fd={there.fileno()}",
            "-device", "virtserialport,chardev=output,name=output",
        ]  # fmt: skip
        with there, self.messages.open("wb") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(there.fileno(),)
            )
        return process, _Port(here, self.mark, on_output, stop)

    def follow(
        self, process: subprocess.Popen[bytes], port: _Port, timeout: float, expected: Sequence[str], *, again: bool
    ) -> Result | None:
        """Follow the output port up to the guest's end, whichever it is, and tell it.

        None if the kernel, or QEMU, did not survive the boot and it may be tried AGAIN.
        """
        try:
            self._wait(port, "started", BOOT_SECONDS, "the guest did not boot")
            if port.closed and again and (bad := trouble(self._console()) or self._aborted(process)):
                print(f"lab: the kernel did not survive its boot, so again: {bad}", file=sys.stderr, flush=True)
                return None
            if not port.closed:
                port.restart()
                self._wait(port, "ended", timeout, "the command did not end")
            if not port.closed:
                self._off(process)
        finally:
            process.kill()
            process.wait()
            port.end.close()
        if port.status is None:
            said = self.messages.read_text(errors="replace").strip()
            raise GuestDied(f"the guest died{f' ({said})' if said else ''}.{self._end()}{_printed(port.text)}")
        console = self._console()
        if bad := trouble(console, expected):
            raise GuestDied(f"the guest's kernel reported trouble: {bad}.{self._end()}{_printed(port.text)}")
        return Result(port.status, port.text, console)

    def _aborted(self, process: subprocess.Popen[bytes]) -> str:
        """Return QEMU's last words if it has met a fault of its own, or an empty text."""
        own = process.wait(OFF_SECONDS) == -signal.SIGABRT
        return self.messages.read_text(errors="replace").strip() if own else ""

    def _wait(self, port: _Port, word: str, seconds: float, late: str) -> None:
        """Read until the guest says WORD or is gone; GuestTimeout after SECONDS."""
        if port.until(word, time.monotonic() + seconds) or port.closed:
            return
        reason = port.stopped or f"{late} within {seconds:g} s"
        raise GuestTimeout(f"{reason}.{self._end()}{_printed(port.text)}")

    def _off(self, process: subprocess.Popen[bytes]) -> None:
        """Let the guest power itself off, so that a panic on the way is not lost."""
        try:
            process.wait(OFF_SECONDS)
        except subprocess.TimeoutExpired:
            raise GuestTimeout(f"the guest did not power off within {OFF_SECONDS:g} s.{self._end()}") from None

    def _console(self) -> str:
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def _end(self) -> str:
        """Return the console's last lines, to be put under a message."""
        lines = [line.rstrip() for line in self._console().splitlines()][-CONSOLE_LINES:]
        return " Its console ends:\n" + "\n".join(lines) if lines else " It wrote nothing to its console."


def _printed(text: str) -> str:
    lines = text.splitlines()[-15:]
    return "\nThe command's last lines:\n" + "\n".join(lines) if lines else ""


class _Port:
    """The guest's output: text, and between NULs the marks that tell where the command starts and ends."""

    def __init__(
        self,
        end: socket.socket,
        mark: str,
        on_output: Callable[[str], None] | None,
        stop: Callable[[], str],
    ) -> None:
        self.end = end
        self.stop = stop
        self.stopped = ""
        self.mark = f"\0{mark} ".encode()
        self.on_output = on_output
        self.status: int | None = None
        self.closed = False
        self._chunks: list[str] = []
        self._pending = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def text(self) -> str:
        return "".join(self._chunks)

    def restart(self) -> None:
        """Forget what came before the command."""
        self._chunks.clear()

    def until(self, word: str, deadline: float) -> bool:
        """Read up to a mark with WORD and return True.

        False: at the deadline, when it was told to stop (`stopped` is set) or the guest is gone (`closed` is set).
        """
        while True:
            if (found := self._take()) is not None:
                name, _, rest = found.partition(" ")
                if name == word:
                    self.status = int(rest) if rest else self.status
                    return True
                continue
            left = deadline - time.monotonic()
            self.stopped = self.stop()
            if left <= 0 or self.stopped:
                return False
            if select.select([self.end], [], [], min(left, 0.5))[0]:
                try:
                    data = self.end.recv(65536)
                except ConnectionError:
                    data = b""
                if not data:
                    self._emit(self._pending)
                    self.closed = True
                    return False
                self._pending += data

    def _take(self) -> str | None:
        """Pass on what is surely output; return a complete mark's words, if one stands next."""
        start = self._pending.find(self.mark)
        if start < 0:
            # The last bytes may be the first ones of a mark.
            keep = next((n for n in range(len(self.mark), 0, -1) if self._pending.endswith(self.mark[:n])), 0)
            self._emit(self._pending[: len(self._pending) - keep])
            self._pending = self._pending[len(self._pending) - keep :]
            return None
        self._emit(self._pending[:start])
        self._pending = self._pending[start:]
        stop = self._pending.find(b"\0", len(self.mark))
        if stop < 0:
            return None
        words = self._pending[len(self.mark) : stop].decode()
        self._pending = self._pending[stop + 1 :]
        return words

    def _emit(self, data: bytes) -> None:
        text = self._decoder.decode(data)
        if text:
            self._chunks.append(text)
            if self.on_output:
                self.on_output(text)
