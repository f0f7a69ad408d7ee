"""Policy classes in the kernel: inherited, re-evaluated at exec, cleared at exit, with nobody watching."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dynamos_ng import bpf, bpfmaps, engine, probes
from dynamos_ng.build import dynamos_ko
from dynamos_ng.demo import load as work
from dynamos_ng.errors import DynamosError, UsageError

#: Pins of our own, so that a daemon's are left alone.
PINS = bpfmaps.BPFFS / "dynamos-test"


@pytest.fixture(scope="module")
def classification() -> Iterator[None]:
    """Attach the programs by a process that is then killed: all tests run without it."""
    dynamos_ko.ensure_loaded()
    bpfmaps.remove_pins(PINS)
    bpfmaps.open_maps(directory=PINS).close()
    loader = f"""
import os, signal
from pathlib import Path
from dynamos_ng import probes
assert not probes.ensure_classification(Path({str(PINS)!r}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    status = subprocess.run([sys.executable, "-c", loader], check=False).returncode
    assert status == -signal.SIGKILL
    yield
    bpfmaps.remove_pins(PINS)


@pytest.fixture
def maps(classification: None) -> Iterator[bpfmaps.Maps]:
    with bpfmaps.open_maps(directory=PINS) as maps:
        yield maps
        maps.set_class(os.getpid(), 0)
        for comm, _ in list(maps.rules()):
            maps.set_rule(comm, 0)


@contextmanager
def started(*command: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program (with vfork) and stop it at the end."""
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        try:
            yield process
        finally:
            process.kill()


def eventually(value: Callable[[], object], wanted: object) -> bool:
    """Wait until something becomes as wanted, 20 s at most."""
    deadline = time.monotonic() + 20
    while value() != wanted:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def fork_as(pid: int, run: Callable[[], object]) -> int | None:
    """Fork a child that gets this PID; None when somebody else was quicker to take it."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(pid - 1))
    child = work.fork(run)
    if child == pid:
        return child
    work.reap(child)
    return None


def children_agree(maps: bpfmaps.Maps, own: int, count: int) -> bool:
    """Fork so many children, each of which looks its class up as the first thing it does."""
    maps.set_class(os.getpid(), own)
    for _ in range(count):
        child = os.fork()
        if child == 0:
            os._exit(int(maps.class_of(os.getpid()) != own))
        if os.waitpid(child, 0)[1]:
            return False
    return True


# fork


def test_child_has_its_parents_class_before_it_runs(maps: bpfmaps.Maps) -> None:
    assert children_agree(maps, 7, 20)


def test_grandchild_inherits_what_its_parent_had_at_fork(maps: bpfmaps.Maps) -> None:
    maps.set_class(os.getpid(), 3)
    read, write = os.pipe()

    def parent() -> None:
        maps.set_class(os.getpid(), 4)
        if os.fork() == 0:
            os.write(write, bytes([maps.class_of(os.getpid()), maps.class_of(os.getppid())]))
            os._exit(0)
        os.wait()

    with work.forked(parent):
        assert os.read(read, 2) == bytes([4, 4])
    assert maps.class_of(os.getpid()) == 3
    os.close(read)
    os.close(write)


def test_threads_share_the_class_and_take_nothing_with_them(maps: bpfmaps.Maps) -> None:
    maps.set_class(os.getpid(), 5)
    seen: list[int] = []
    thread = threading.Thread(target=lambda: seen.append(threading.get_native_id()))
    thread.start()
    thread.join()
    assert maps.class_of(seen[0]) == 0, "a thread's own id has a class"
    assert maps.class_of(os.getpid()) == 5, "the thread's exit cleared the process's class"


# exec


def test_exec_gives_the_class_of_the_rule(maps: bpfmaps.Maps) -> None:
    maps.set_rule("sleep", 9)
    with started("sleep", "60") as process:
        assert eventually(lambda: maps.class_of(process.pid), 9)
    assert list(maps.rules()) == [("sleep", 9)]


def test_exec_without_a_rule_gives_class_0(maps: bpfmaps.Maps) -> None:
    maps.set_class(os.getpid(), 6)
    with started("sleep", "60") as process:
        assert eventually(lambda: maps.class_of(process.pid), 0)
    assert maps.class_of(os.getpid()) == 6, "the exec of a vfork child changed its parent's class"


def test_a_rule_taken_away_rules_no_more(maps: bpfmaps.Maps) -> None:
    maps.set_rule("sleep", 9)
    maps.set_rule("sleep", 0)
    maps.set_rule("sleep", 0)
    maps.set_class(os.getpid(), 6)
    with started("sleep", "60") as process:
        assert eventually(lambda: maps.class_of(process.pid), 0)


def test_a_script_has_its_own_name(maps: bpfmaps.Maps, tmp_path: Path) -> None:
    script = tmp_path / "fifteen_letters_and_more"
    script.write_text("#!/bin/sh\nread line\n")
    script.chmod(0o755)
    maps.set_rule("sh", 1)
    maps.set_rule("fifteen_letters", 8)
    with started(str(script)) as process:
        assert eventually(lambda: maps.class_of(process.pid), 8)


def test_exec_by_another_thread_than_the_leader(maps: bpfmaps.Maps) -> None:
    maps.set_rule("sleep", 10)

    def exec_in_thread() -> None:
        maps.set_class(os.getpid(), 2)
        threading.Thread(target=os.execvp, args=("sleep", ["sleep", "60"])).start()
        signal.pause()

    with work.forked(exec_in_thread) as (pid,):
        assert eventually(lambda: maps.class_of(pid), 10)
        assert Path(f"/proc/{pid}/comm").read_text() == "sleep\n"
    assert maps.class_of(pid) == 0


# exit


def test_exit_clears_the_class(maps: bpfmaps.Maps) -> None:
    maps.set_class(os.getpid(), 11)
    with work.forked(signal.pause) as (pid,):
        assert maps.class_of(pid) == 11
        os.kill(pid, signal.SIGKILL)
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert maps.class_of(pid) == 0
    assert dict(maps.classified())[os.getpid()] == 11
    assert pid not in dict(maps.classified())


def test_the_class_outlives_the_leader_and_ends_with_the_last_thread(maps: bpfmaps.Maps) -> None:
    read, write = os.pipe()

    def leader_exits() -> None:
        os.close(write)
        maps.set_class(os.getpid(), 12)
        threading.Thread(target=os.read, args=(read, 1)).start()
        number = 60 if os.uname().machine == "x86_64" else 1
        ctypes.CDLL(None).syscall(number, 0)  # exit(2): of this thread alone

    with work.forked(leader_exits) as (pid,):
        assert eventually(lambda: Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0], "Z")
        assert maps.class_of(pid) == 12
        os.close(write)
        assert eventually(lambda: maps.class_of(pid), 0)
    os.close(read)


def test_a_reused_pid_never_has_the_old_class(maps: bpfmaps.Maps) -> None:
    with work.forked(signal.pause) as (pid,):
        pass
    for _ in range(20):
        maps.set_class(pid, 13)  # written too late: what the exit did not see
        read, write = os.pipe()
        child = fork_as(pid, lambda: os.write(write, bytes([maps.class_of(os.getpid())])))  # noqa: B023
        seen = os.read(read, 1) if child else b""
        os.close(read)
        os.close(write)
        if child:
            os.waitpid(child, 0)
            assert seen == b"\0"
            return
    pytest.fail("the PID was never ours again")


def passed_over() -> int:
    """Return how many forks, execs and exits the programs that our own pins lead to did not see."""
    missed, links = 0, list(PINS.glob("classify-*/*"))
    assert len(links) == 3
    for path in links:
        link = bpf.open_pin(path)
        info = bpf.link_info(link)
        assert info is not None
        program = bpf.program_by_id(info.program)
        missed += bpf.program_misses(program)
        os.close(program)
        os.close(link)
    return missed


def test_classes_stay_apart_while_pids_wrap_around(maps: bpfmaps.Maps) -> None:
    pid_max = Path("/proc/sys/kernel/pid_max")
    before = pid_max.read_text()
    pid_max.write_text("500")
    try:
        workers = []
        for own in (0, 21, 22):
            worker = os.fork()
            if worker == 0:
                os._exit(0 if children_agree(maps, own, 300) else 1)
            workers.append(worker)
        assert [os.waitpid(worker, 0)[1] for worker in workers] == [0, 0, 0]
    finally:
        pid_max.write_text(before)
    assert not {21, 22} & set(dict(maps.classified()).values())
    assert passed_over() == 0


# Takeover


def test_a_restarted_daemon_takes_the_links_over_without_compiling(
    maps: bpfmaps.Maps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def compiles(*_: object, **__: object) -> None:
        raise AssertionError("compiled again")

    monkeypatch.setattr(engine, "load", compiles)
    assert probes.ensure_classification(PINS)


def test_another_version_replaces_the_links_without_a_gap(maps: bpfmaps.Maps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probes, "_digest", lambda: "another")
    stop = threading.Event()
    agreed: list[bool] = []

    def fork_all_the_time() -> None:
        maps.set_class(os.getpid(), 14)
        while not stop.is_set():
            with work.forked(lambda: os._exit(int(maps.class_of(os.getpid()) != 14))) as (pid,):
                agreed.append(os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT).si_status == 0)  # type: ignore[union-attr]

    thread = threading.Thread(target=fork_all_the_time)
    thread.start()
    try:
        assert not probes.ensure_classification(PINS)
    finally:
        stop.set()
        thread.join()
    assert [path.name for path in PINS.glob("classify-*")] == ["classify-another"]
    assert agreed and all(agreed)


def test_links_of_a_lost_policy_map_are_not_taken_over(classification: None) -> None:
    (PINS / "policy").unlink()
    with bpfmaps.open_maps(directory=PINS) as maps:
        maps.set_class(os.getpid(), 15)
        with work.forked(signal.pause) as (pid,):
            assert maps.class_of(pid) == 0, "the old links still write elsewhere"
        assert not probes.ensure_classification(PINS)
        with work.forked(signal.pause) as (pid,):
            assert maps.class_of(pid) == 15


def test_classification_without_maps_says_what_is_missing() -> None:
    with pytest.raises(DynamosError, match="classification in /sys/fs/bpf/dynamos-none: No such file"):
        probes.ensure_classification(bpfmaps.BPFFS / "dynamos-none")


# The maps


def test_bpftool_shows_what_was_written(maps: bpfmaps.Maps) -> None:
    maps.set_class(os.getpid(), 17)
    maps.set_row(5, bytes(range(256)))
    maps.set_rule("sleep", 18)

    def dumped(name: str) -> dict[bytes, bytes]:
        text = subprocess.run(
            ["bpftool", "-j", "map", "dump", "pinned", str(PINS / name)], check=True, capture_output=True
        ).stdout
        return {
            bytes(int(byte, 16) for byte in entry["key"]): bytes(int(byte, 16) for byte in entry["value"])
            for entry in json.loads(text)
        }

    pid = os.getpid()
    number = pid // 8
    looked_up = subprocess.run(
        ["bpftool", "-j", "map", "lookup", "pinned", str(PINS / "policy"), "key"]
        + [str(byte) for byte in number.to_bytes(4, "little")],
        check=True,
        capture_output=True,
    ).stdout
    assert int(json.loads(looked_up)["value"][pid % 8], 16) == 17
    assert dumped("editions")[(5).to_bytes(4, "little")] == bytes(range(256))
    assert dumped("rules") == {b"sleep".ljust(16, b"\0"): (18).to_bytes(8, "little")}


def test_use_counters_are_summed_over_cpus(maps: bpfmaps.Maps) -> None:
    cpus = bpfmaps.possible_cpus()
    assert cpus >= 2
    values = b"".join((10 + cpu).to_bytes(8, "little") + cpu.to_bytes(8, "little") for cpu in range(cpus))
    bpf.update(maps.fds[2], (3 * 16 + 2).to_bytes(4, "little"), values)
    ramp = cpus * (cpus - 1) // 2
    assert maps.use(3, 2) == (10 * cpus + ramp, ramp)
    assert maps.use(3, 1) == (0, 0)


@pytest.mark.parametrize("pid", [0, -1, bpfmaps.PID_LIMIT], ids=["none", "negative", "limit"])
def test_pids_that_cannot_be_are_refused(maps: bpfmaps.Maps, pid: int) -> None:
    with pytest.raises(UsageError, match="give a number from 1 to"):
        maps.set_class(pid, 1)


def test_a_pid_of_another_namespace_is_refused(maps: bpfmaps.Maps) -> None:
    attempt = f"""
from pathlib import Path
from dynamos_ng import bpfmaps
bpfmaps.open_maps(directory=Path({str(PINS)!r})).set_class(1, 1)
"""
    done = subprocess.run(
        ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", attempt],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert "run it outside the container" in done.stderr
    assert maps.class_of(1) == 0


def test_a_pin_of_another_shape_is_refused(tmp_path: Path) -> None:
    pins = bpfmaps.BPFFS / "dynamos-test-shape"
    pins.mkdir()
    try:
        fd = bpf.map_create("policy", bpf.MapShape(bpf.MAP_ARRAY, 4, 8, 2048, bpf.F_MMAPABLE))
        bpf.pin(fd, pins / "policy")
        with pytest.raises(DynamosError, match=rf"2048 entries.*needed is .*{bpfmaps.PID_LIMIT // 8} entries.*rm -r"):
            bpfmaps.open_maps(directory=pins)
        assert [path.name for path in pins.iterdir()] == ["policy"]
        os.close(fd)
    finally:
        bpfmaps.remove_pins(pins)
    assert not pins.exists()


def test_a_lost_pin_is_restored_from_the_map_that_the_module_holds() -> None:
    pins = bpfmaps.BPFFS / "dynamos-test-lost"
    try:
        with bpfmaps.open_maps(directory=pins) as first:
            held = tuple(bpf.map_info(fd).id for fd in first.fds)
            assert len(held) == 4
            first.set_class(1, 19)
            bpfmaps.remove_pins(pins)
            with bpfmaps.open_maps(held, pins) as again:
                assert again.class_of(1) == 19
            (pins / "policy").unlink()
            bpfmaps.open_maps(directory=pins).close()  # puts another map there
            with pytest.raises(DynamosError, match=f"dynamos.ko uses map {held[0]}; take the pin away"):
                bpfmaps.open_maps(held, pins)
    finally:
        bpfmaps.remove_pins(pins)
