"""pytest plugin for the host's side: tests under tests/guest run in a guest, and count here like any other.

Each is a test for every kernel that it runs on: on the usual one, on those of ``--kernel``, on all with ``--thorough``;
see the markers in pyproject.toml. Tests that ask for the same kind of guest share a boot. When a guest dies, or a test
takes too long, that test fails with the console's end, and the rest go on in a new guest.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynamos_ng.errors import DynamosError
from dynamos_ng.lab import machine, root
from dynamos_ng.lab.pytest_guest import EVENTS, TEST_SIGN, VARIANT, WANTED, parametrize
from dynamos_ng.lab.variants import chosen

#: A test's own limit, unless marked otherwise; and the whole guest's, which only a lost guest reaches.
TEST_SECONDS = 600.0
GUEST_SECONDS = 4 * 3600.0
POLL_SECONDS = 0.05
Kind = tuple[tuple[str, Any], ...]


def in_guest(item: pytest.Item) -> bool:
    """Tell whether a test belongs into a guest."""
    return item.nodeid.startswith("tests/guest/")


def kind_of(item: pytest.Item) -> Kind:
    """Return what sort of guest a test asks for: that of its variant, and what its marker ``boot`` says."""
    kernel, _, cpu = _variant(item).partition("+")
    marker = item.get_closest_marker("boot")
    return tuple(sorted({"kernel": kernel, "cpu": cpu or "max", **(marker.kwargs if marker else {})}.items()))


def _variant(item: pytest.Item) -> str:
    """Return a guest's test's variant; empty if it runs on none."""
    return str(item.callspec.params[VARIANT])  # type: ignore[attr-defined]


def limit_of(item: pytest.Item) -> float:
    """Return how many seconds a test may take."""
    marker = item.get_closest_marker("limit")
    return float(marker.args[0]) if marker else TEST_SECONDS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let the kernels and processors of guests be chosen."""
    parser.addoption("--kernel", action="append", choices=tuple(root.KERNELS), default=[],
                     help="run the guests' tests on this kernel, not the usual one; may be repeated")  # fmt: skip
    parser.addoption("--processors", action="store_true",
                     help="run them on each processor that makes a kernel patch its own code differently")  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make a guest's test one for each kernel and processor that it is to run on."""
    item, option = metafunc.definition, metafunc.config.option
    if not in_guest(item):
        return
    only, needs = ([name for mark in item.iter_markers(which) for name in mark.args] for which in ("kernels", "needs"))
    found = chosen(
        only, needs, asked=option.kernel,
        everywhere=option.thorough or item.get_closest_marker("everywhere") is not None,
        processors=option.processors or item.get_closest_marker("processors") is not None,
    )  # fmt: skip
    parametrize(metafunc, [str(variant) for variant in found] or [""])


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put the guests' tests last, and those of one kind of guest together; drop those that no kernel is left for."""
    if nowhere := [item for item in items if in_guest(item) and not _variant(item)]:
        config.hook.pytest_deselected(items=nowhere)
        items[:] = [item for item in items if item not in nowhere]
    kinds: dict[Kind, int] = {}
    for item in filter(in_guest, items):
        kinds.setdefault(kind_of(item), len(kinds))
    items.sort(key=lambda item: kinds[kind_of(item)] if in_guest(item) else -1)


def pytest_configure(config: pytest.Config) -> None:
    """Register the guests' keeper."""
    config.pluginmanager.register(Guests(config), "dynamos-guests")


class Trace:
    """What a guest's test printed as its traceback, in the form that pytest's own summary takes."""

    def __init__(self, text: str, crash: Any = None) -> None:
        self.text = text
        self.reprcrash = _Crash(*crash) if crash else _Crash("", 0, text.partition("\n")[0])

    def __str__(self) -> str:
        return self.text

    def toterminal(self, writer: Any) -> None:
        """Print it; pytest calls this."""
        for line in self.text.splitlines():
            writer.line(line, red=line.startswith("E "), bold=line.startswith(("E ", ">")))


class _Crash:
    def __init__(self, path: str, lineno: int, message: str) -> None:
        self.path = path
        self.lineno = lineno
        self.message = message

    def __str__(self) -> str:
        return f"{self.path}:{self.lineno}: {self.message}"


class Boot:
    """One guest that runs a list of tests, and the events that it has told of so far."""

    def __init__(self, items: list[pytest.Item], kind: Kind, config: pytest.Config) -> None:
        self.items = items
        self.finished = 0
        self.broken = ""
        self.error = ""
        self.stop_reason = ""
        self._folder = tempfile.TemporaryDirectory(prefix="dynamos-tests-")
        self._out = Path(self._folder.name)
        self._kind = dict(kind)
        self._config = config
        (self._out / WANTED).write_text(
            json.dumps({VARIANT: _variant(items[0]), "tests": [item.nodeid for item in items]})
        )
        (self._out / EVENTS).touch()
        self._events = (self._out / EVENTS).open()
        self._part = ""
        self._given_back: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        files = sorted({item.nodeid.split("::")[0] for item in self.items})
        option = self._config.option
        argv = [
            "python3", "-m", "pytest", "-c", "/dynamos/pyproject.toml", "--rootdir=/dynamos", "-p", "no:cacheprovider",
            f"--tb={option.tbstyle}", *(["--showlocals"] if option.showlocals else []),
            *["-v"] * option.verbose, *(["-s"] if option.capture == "no" else []),
            *(["--thorough"] if option.thorough else []),
            *(f"/dynamos/{file}" for file in files),
        ]  # fmt: skip
        show = (lambda text: os.write(1, text.encode())) if option.capture == "no" else None
        try:
            result = machine.run(
                argv,
                timeout=GUEST_SECONDS,
                out_dir=self._out,
                stop=lambda: self.stop_reason,
                on_output=show,  # type: ignore[arg-type]
                **self._kind,
            )
            if result.status not in (0, 1):
                tail = "\n".join(result.output.splitlines()[-40:])
                self.error = f"pytest in the guest ended with status {result.status}:\n{tail}"
        except DynamosError as error:
            self.error = str(error)
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"
            raise

    def event(self) -> dict[str, Any] | None:
        """Wait a moment for the next event; None if there was none yet."""
        if self._given_back:
            return self._given_back.pop()
        alive = self._thread.is_alive()
        self._part += self._events.readline()
        if self._part.endswith("\n"):
            line, self._part = self._part, ""
            found: dict[str, Any] = json.loads(line)
            return found
        if alive:
            time.sleep(POLL_SECONDS)
        return None

    def give_back(self, event: dict[str, Any]) -> None:
        """Let the next call of `event` return this one again."""
        self._given_back.append(event)

    @property
    def over(self) -> bool:
        """Tell whether the guest has ended; events may still be there to be read."""
        return not self._thread.is_alive()

    def console(self, item: pytest.Item) -> str:
        """Return what the kernel wrote to its console since a test began."""
        try:
            text = (self._out / ".lab" / "console").read_text(errors="replace")
        except FileNotFoundError:
            return ""
        return text.rpartition(f"{TEST_SIGN}{item.nodeid}")[2].strip()

    def wait(self) -> None:
        """Wait until the guest is off; then `error` is final."""
        self._thread.join()

    def close(self, reason: str) -> None:
        """End the guest and drop its folder."""
        self.stop_reason = self.stop_reason or reason
        self._thread.join()
        self._events.close()
        self._folder.cleanup()


class Guests:
    """Runs the guests' tests: starts guests as they are needed, and turns their events into reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.boot: Boot | None = None
        self.hopeless: dict[Kind, str] = {}
        self.roots: subprocess.Popen[bytes] | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Make what roots are missing while the host's own tests run.

        Why one cannot be made is told when a guest wants it.
        """
        kernels = dict.fromkeys(str(dict(kind_of(item))["kernel"]) for item in session.items if in_guest(item))
        if kernels and not self.config.option.collectonly:
            self.roots = subprocess.Popen(
                [sys.executable, "-m", "dynamos_ng.lab.root", *kernels], cwd=machine.CHECKOUT,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report a guest's test; others are not ours."""
        if not in_guest(item):
            return None
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item):
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        """End the guest that may still run, and what is being made for others."""
        self._close("the tests are over")
        if self.roots and self.roots.poll() is None:
            os.killpg(self.roots.pid, signal.SIGTERM)
            self.roots.wait()

    def _close(self, reason: str) -> None:
        if self.boot:
            self.boot.close(reason)
            self.boot = None

    def _start(self, item: pytest.Item) -> Boot:
        """Start a guest for a test and all after it of its kind."""
        if self.roots:
            self.roots.wait()
        items = item.session.items
        kind = kind_of(item)
        rest = items[items.index(item) :]
        return Boot([one for one in rest if in_guest(one) and kind_of(one) == kind], kind, self.config)

    def _reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        kind = kind_of(item)
        if kind in self.hopeless:
            yield _failure(item, f"not run, as its guest does not start: {self.hopeless[kind]}")
            return
        if self.boot and item not in self.boot.items:
            self._close("its tests are over")
        if self.boot is None:
            self.boot = self._start(item)
        boot = self.boot
        phases: list[str] = []
        started = deadline = 0.0
        while True:
            event = boot.event()
            if event is None:
                if deadline and time.monotonic() > deadline and not boot.stop_reason:
                    boot.stop_reason = f"the test did not end within {limit_of(item):g} s"
                if boot.over and (event := boot.event()) is None:
                    break
            if event is None:
                continue
            if event["event"] == "broken":
                boot.broken += f"{event['text']}\n"
            elif event["nodeid"] != item.nodeid:
                boot.give_back(event)
                yield _failure(item, f"{boot.broken}the guest did not find this test")
                return
            elif event["event"] == "start":
                started = time.monotonic()
                deadline = started + limit_of(item)
            elif event["event"] == "report":
                phases.append(event["when"])
                yield _report(item, event, boot.console(item))
            else:
                boot.finished += 1
                if item is boot.items[-1]:
                    # A kernel's last words may come as late as the power-off.
                    boot.wait()
                    if boot.error:
                        yield _failure(item, boot.error, when="teardown")
                    self._close("")
                return
        yield from self._died(item, boot, phases, started)

    def _died(self, item: pytest.Item, boot: Boot, phases: list[str], started: float) -> Iterator[pytest.TestReport]:
        """Report a test whose guest has ended too early."""
        error = boot.error or "the guest's pytest did not run this test"
        if boot.broken:
            error = f"{boot.broken}{error}"
        self._close("")
        if started:
            when = "teardown" if "call" in phases else "call"
            yield _failure(item, error, when=when, duration=time.monotonic() - started)
        elif boot.finished:
            yield from self._reports(item)
        else:
            self.hopeless[kind_of(item)] = error.partition("\n")[0]
            yield _failure(item, error)


def _failure(item: pytest.Item, text: str, when: Any = "call", duration: float = 0.0) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {item.name: 1}, "failed", Trace(text), when, duration=duration)  # type: ignore[arg-type]


def _report(item: pytest.Item, event: dict[str, Any], console: str) -> pytest.TestReport:
    """Turn a guest's report into one of ours; a failure gets what the kernel said meanwhile."""
    trace: Any = None
    if event["skip"]:
        trace = tuple(event["skip"])
    elif event["text"]:
        trace = Trace(event["text"], event["crash"])
    sections = [(str(name), str(text)) for name, text in event["sections"]]
    if event["outcome"] == "failed" and console:
        sections.append(("Guest's console", console))
    report = pytest.TestReport(
        item.nodeid,
        item.location,
        {item.name: 1},
        event["outcome"],
        trace,
        event["when"],
        sections,
        duration=event["duration"],
        user_properties=[tuple(pair) for pair in event["properties"]],
    )
    if event["wasxfail"] is not None:
        report.wasxfail = event["wasxfail"]
    return report
