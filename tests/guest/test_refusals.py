"""Bad input: each has its own clear error, and nothing is changed."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from conftest import DEMO_UPDATES, Daemon, pipe, probed, write_update

from dynamos_ng import bpf, bpfmaps, control, uapi
from dynamos_ng.build.update import build
from dynamos_ng.demo import load as work
from dynamos_ng.device import Device
from dynamos_ng.errors import DynamosError, KernelRefused, Refusal, UsageError
from dynamos_ng.image import Kernel

pytestmark = pytest.mark.usefixtures("daemon")


def kernel_state() -> Any:
    """Return what a refusal must leave as it was."""
    with Device() as device:
        info = device.info()
        return info, device.functions(), Path("/proc/modules").read_text().split()[0::6]


@pytest.fixture(autouse=True)
def nothing_changed(daemon: Daemon) -> Iterator[None]:
    """After each test here the kernel holds just what it held before."""
    before = kernel_state()
    yield
    assert kernel_state() == before


def refused(folder: Path, tmp_path: Path) -> str:
    """Build an update that cannot be; return what is said."""
    with pytest.raises(DynamosError) as caught:
        build(folder, tmp_path)
    assert not list(tmp_path.glob("*.ko"))
    return str(caught.value)


def first_of(names: Sequence[str]) -> str:
    """Return the first of these functions that this kernel has."""
    known = Kernel.live().symbols
    return next(name for name in names if known.find(name))


def test_unknown_function(tmp_path: Path) -> None:
    message = refused(write_update(tmp_path / "u", {"no_such_function": []}), tmp_path)
    assert "no_such_function" in message
    assert "no such function" in message


def test_ambiguous_symbol_tells_the_positions(tmp_path: Path) -> None:
    seen: dict[str, int] = {}
    for line in Path("/proc/kallsyms").read_text().splitlines():
        fields = line.split()
        if len(fields) == 3 and fields[1] in "tT" and fields[2].isidentifier():
            seen[fields[2]] = seen.get(fields[2], 0) + 1
    name = next(name for name, count in seen.items() if count == 2)
    message = refused(write_update(tmp_path / "u", {name: []}), tmp_path)
    assert name in message
    assert "position" in message


@pytest.mark.parametrize(
    ("functions", "words"),
    [
        (("do_syscall_64", "do_int80_syscall_32"), "noinstr"),
        (("exc_page_fault",), "noinstr"),
        (("entry_SYSCALL_64", "entry_SYSENTER_32"), "entry"),
    ],
)
def test_code_that_must_not_be_instrumented(tmp_path: Path, functions: tuple[str, ...], words: str) -> None:
    function = first_of(functions)
    with pytest.raises(Refusal) as caught:
        build(write_update(tmp_path / "u", {function: []}), tmp_path)
    assert caught.value.function == function
    assert words in caught.value.reason
    assert caught.value.address is not None


#: Functions of stock kernels that spin, or write a control register, in their first instructions.
LOOPS_AT_ENTRY = {
    "x86_64": ("tasklet_unlock_spin_wait", "panic_smp_self_stop", "native_write_cr4", "ignore_signals"),
    "i686": ("native_write_cr0",),
}


def test_a_branch_into_the_trampolines_bytes(tmp_path: Path) -> None:
    name = first_of(LOOPS_AT_ENTRY[platform.machine()])
    message = refused(write_update(tmp_path / "u", {name: []}), tmp_path)
    assert name in message
    assert "branch into the trampoline's bytes" in message
    assert "refused at 0x" in message


def test_a_function_too_short_for_a_trampoline(tmp_path: Path) -> None:
    name = {"x86_64": "abort", "i686": "bogus_magic"}[platform.machine()]
    assert Kernel.live().function(name).size < 12
    message = refused(write_update(tmp_path / "u", {name: []}), tmp_path)
    assert message.startswith(f"{name}: refused at 0x")
    assert "too short for a trampoline" in message


def test_edition_missing(tmp_path: Path) -> None:
    source = "int cmdline_proc_show_v3(void);\nint cmdline_proc_show_v3(void) { return 0; }\n"
    message = refused(write_update(tmp_path / "u", {"cmdline_proc_show": [2]}, source), tmp_path)
    assert "cmdline_proc_show_v2" in message


def test_c_that_does_not_compile_shows_the_compilers_words(tmp_path: Path) -> None:
    source = "int cmdline_proc_show_v2(void) { return undeclared_thing; }\n"
    message = refused(write_update(tmp_path / "u", {"cmdline_proc_show": [2]}, source), tmp_path)
    assert "undeclared_thing" in message
    assert "u.c:1" in message


def test_unknown_kernel_symbol_in_c(tmp_path: Path) -> None:
    source = (
        "extern int no_such_symbol_anywhere(void);\nint cmdline_proc_show_v2(void);\n"
        "int cmdline_proc_show_v2(void) { return no_such_symbol_anywhere(); }\n"
    )
    message = refused(write_update(tmp_path / "u", {"cmdline_proc_show": [2]}, source), tmp_path)
    assert "no_such_symbol_anywhere" in message


def test_a_static_key_that_a_module_must_not_use(tmp_path: Path) -> None:
    """The loader of a 6.1 kernel writes to the key of each jump label, which is an oops if the key is read-only."""
    source = (
        "#include <linux/jump_label.h>\nextern struct static_key_false bypass_usercopy_checks;\n"
        "int cmdline_proc_show_v2(void);\n"
        "int cmdline_proc_show_v2(void) { return static_branch_unlikely(&bypass_usercopy_checks); }\n"
    )
    message = refused(write_update(tmp_path / "u", {"cmdline_proc_show": [2]}, source), tmp_path)
    assert "bypass_usercopy_checks" in message
    listed = Kernel.live().symbols.find("bypass_usercopy_checks")
    assert ("read-only since boot" if listed else "KALLSYMS_ALL is off") in message


def test_activate_with_an_edition_that_is_not_there(loaded: Callable[[Path], Any], cli: Callable[..., Any]) -> None:
    loaded(DEMO_UPDATES / pipe())
    result = cli("activate", "pipe", "--edition", 7)
    assert result.returncode == 2
    assert "has no edition 7" in result.stderr
    assert "Traceback" not in result.stderr
    assert control.call("status")["updates"][0]["state"] == "loaded"
    control.call("unload", name="pipe", wait=30.0)


def test_maps_of_the_wrong_shape() -> None:
    right = bpfmaps.SHAPES
    cases = {
        errno.EPROTOTYPE: ("use", "editions", "use", "must_update"),
        errno.EMSGSIZE: ("editions", "editions", "use", "must_update"),
        errno.EBADF: (None, "editions", "use", "must_update"),
        errno.EDOM: ("policy", "editions", "use", "policy"),
    }
    fds = {name: bpf.map_create(name, right[name]) for name in ("policy", "editions", "use", "must_update")}
    small = bpf.map_create("small", bpf.MapShape(bpf.MAP_ARRAY, 4, 8, 64, bpf.F_MMAPABLE))
    plain = bpf.map_create("plain", bpf.MapShape(bpf.MAP_ARRAY, 4, 8, right["policy"].max_entries))
    hashed = bpf.map_create("hashed", bpf.MapShape(bpf.MAP_HASH, 8, 8, 64))
    try:
        with Device() as device:
            for number, names in cases.items():
                with pytest.raises(KernelRefused) as caught:
                    device.set_maps(*(-1 if name is None else fds[name] for name in names))
                assert caught.value.errno == number
            for fd, number in ((small, errno.EDOM), (plain, errno.EPROTO), (hashed, errno.EPROTOTYPE)):
                with pytest.raises(KernelRefused) as caught:
                    device.set_maps(fd, fds["editions"], fds["use"], fds["must_update"])
                assert caught.value.errno == number
            with pytest.raises(KernelRefused) as caught:
                device.set_maps(*fds.values())
            assert caught.value.errno == errno.EBUSY, "right maps, but not those that handlers read"
    finally:
        for fd in (*fds.values(), small, plain, hashed):
            os.close(fd)


def test_an_unprivileged_caller_gets_nowhere() -> None:
    opened = os.open("/dev/dynamos", os.O_RDWR)
    info = uapi.Info(size=ctypes.sizeof(uapi.Info))

    def run() -> None:
        os.setgid(65534)
        os.setuid(65534)
        try:
            os.open("/dev/dynamos", os.O_RDWR)
        except PermissionError:
            pass
        else:
            os._exit(2)
        try:
            fcntl.ioctl(opened, uapi.IOC_INFO, info)
        except PermissionError:
            os._exit(0)
        os._exit(3)

    pid = work.fork(run)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(opened)
    assert os.stat("/dev/dynamos").st_mode & 0o777 == 0o600
    nobody = subprocess.run(
        [sys.executable, "-m", "dynamos_ng", "status"],
        capture_output=True, text=True, check=False, user=65534, timeout=100,
    )  # fmt: skip
    assert nobody.returncode == 4
    assert "permission denied: only root may use it" in nobody.stderr


@pytest.mark.parametrize(
    ("size", "number"), [(0, errno.EINVAL), (4, errno.EINVAL), (ctypes.sizeof(uapi.Switch) + 8, errno.EINVAL)]
)
def test_a_structure_of_the_wrong_size(size: int, number: int) -> None:
    with Path("/dev/dynamos").open("rb+", buffering=0) as device:
        with pytest.raises(OSError) as caught:  # noqa: PT011 - the errno is checked below
            fcntl.ioctl(device, uapi.IOC_ACTIVATE, uapi.Switch(size=size, count=1))
        assert caught.value.errno == number
        with pytest.raises(OSError) as caught:  # noqa: PT011
            fcntl.ioctl(device, uapi.IOC_ACTIVATE + 100, uapi.Switch(size=size))
        assert caught.value.errno == errno.ENOTTY


def test_ids_that_no_function_has() -> None:
    ids = (ctypes.c_uint32 * 1)(1000)
    for count, address, number in (
        (1, ctypes.addressof(ids), errno.ENOENT),
        (0, ctypes.addressof(ids), errno.EINVAL),
        (uapi.FUNCTIONS_MAX + 1, ctypes.addressof(ids), errno.E2BIG),
        (1, 8, errno.EFAULT),
    ):
        raw = uapi.Switch(size=ctypes.sizeof(uapi.Switch), count=count, ids=address)
        with (
            Path("/dev/dynamos").open("rb+", buffering=0) as device,
            pytest.raises(OSError) as caught,  # noqa: PT011 - the errno is checked below
        ):
            fcntl.ioctl(device, uapi.IOC_ACTIVATE, raw)
        assert caught.value.errno == number


def test_an_update_for_another_kernel_version(tmp_path: Path, cli: Callable[..., Any]) -> None:
    module = build(DEMO_UPDATES / pipe(), tmp_path)
    release = platform.release().encode()
    other = bytes([release[0] ^ 1]) + release[1:]
    module.write_bytes(module.read_bytes().replace(b"vermagic=" + release, b"vermagic=" + other))
    result = cli("load", module)
    assert result.returncode == 1
    assert f"built for kernel {other.decode()}, and this one is {release.decode()}" in result.stderr


def test_an_update_for_another_boot(tmp_path: Path) -> None:
    module = build(DEMO_UPDATES / pipe(), tmp_path)
    with Device() as device:
        anchor = device.info().anchor.to_bytes(8, "little")[:4]
    data = module.read_bytes()
    assert anchor in data
    module.write_bytes(data.replace(anchor, bytes([anchor[0] ^ 0x40, *anchor[1:]])))
    with pytest.raises(control.Remote, match="built for another boot"):
        control.call("load", path=str(module))


@pytest.mark.everywhere
def test_an_update_is_activated_once(loaded: Callable[[Path], Any]) -> None:
    loaded(DEMO_UPDATES / pipe())
    control.call("activate", name="pipe")
    with pytest.raises(control.Remote, match=f"activate {pipe()}_read: it is already redirected"):
        control.call("activate", name="pipe")
    control.call("unload", name="pipe", wait=60.0)


def test_a_busy_update_cannot_be_unloaded_behind_our_back(loaded: Callable[[Path], Any]) -> None:
    loaded(DEMO_UPDATES / "cmdline")
    control.call("activate", name="cmdline")
    for module in ("dynamos_cmdline", "dynamos"):
        result = subprocess.run(["rmmod", module], capture_output=True, text=True, check=False)
        assert result.returncode != 0
        assert "in use" in result.stderr
    with Device() as device, pytest.raises(DynamosError, match="still redirected"):
        device.retire("dynamos_cmdline")
    control.call("unload", name="cmdline", wait=60.0)


def test_bytes_that_somebody_else_changed(loaded: Callable[[Path], Any]) -> None:
    """A kprobe where the trampoline would go: refused with the bytes, and fine once it is gone."""
    loaded(DEMO_UPDATES / pipe())
    with Device() as device:
        function = next(f for f in device.functions() if f.name == f"{pipe()}_read")
    with probed("foreign", function.site):
        with pytest.raises(control.Remote, match="not the expected ones") as caught:
            control.call("activate", name="pipe")
        assert f"at {function.site:#x}" in str(caught.value)
    control.call("activate", name="pipe")
    control.call("unload", name="pipe", wait=60.0)


@pytest.mark.parametrize(
    ("arguments", "words", "status"),
    [
        (("unload", "nothing"), "nothing: no such update is loaded", 2),
        (("activate", "nothing"), "nothing: no such update is loaded", 2),
        (("load", "/nowhere.ko"), "/nowhere.ko", 2),
        (("load", "/etc/passwd"), "not a kernel module", 2),
        (("build", "/etc"), "update.toml", 2),
        (("policy", "set", "--pid", "4999999", "--class", "1"), "4999999", 2),
        (("policy", "set", "--comm", "x" * 16, "--class", "1"), "15", 2),
        (("policy", "set", "--pid", "1"), "--class is missing", 2),
        (("quiescence", "no_such_function"), "no_such_function", 1),
        (("frobnicate",), "invalid choice", 2),
    ],
)
def test_the_command_line_explains_itself(
    cli: Callable[..., Any], arguments: tuple[str, ...], words: str, status: int
) -> None:
    result = cli(*arguments)
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert result.returncode == status, result.stderr


def test_an_update_description_that_is_wrong(tmp_path: Path) -> None:
    folder = write_update(tmp_path / "u", {"pipe_read": []})
    (folder / "update.toml").write_text('name = "u"\nfunctions = 3\n')
    with pytest.raises(UsageError, match="functions: unknown key"):
        build(folder, tmp_path)
