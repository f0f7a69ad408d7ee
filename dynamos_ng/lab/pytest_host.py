"""pytest plugin for the host's side: tests under tests/guest run in a guest, and count here like any other.

Each is a test for every kernel that it runs on: on the usual one, on those of ``--kernel``, on all with ``--thorough``;
see the markers in pyproject.toml. Tests that ask for the same kind of guest share a boot, some GUEST_TESTS of them.
When a guest dies, or a test takes too long, that test fails with the console's end, and the rest go on in a new guest.
Guests run while the host's own tests do; what they have told by then is reported when its turn comes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import Any

import pytest

from dynamos_ng.lab import machine, root
from dynamos_ng.lab.pytest_boot import END, Boot, Kind
from dynamos_ng.lab.pytest_guest import VARIANT, parametrize
from dynamos_ng.lab.variants import chosen

#: A test's own limit, unless marked otherwise.
TEST_SECONDS = 600.0
#: How much runs at once: guests, each of which seldom keeps its two CPUs busy, and the host's own tests.
AT_ONCE = min(os.cpu_count() or 1, 4)
#: A guest that has this many tests gets no further file of them: another one can run beside it.
GUEST_TESTS = 60
#: The host's own tests that want no root of a guest come first: the roots are made meanwhile.
FIRST = ("tests/abi/", "tests/house/", "tests/unit/")


#: A kind of guest, and which of those of that kind.
Group = tuple[Kind, int]
_GROUP = pytest.StashKey[Group]()


def in_guest(item: pytest.Item) -> bool:
    """Tell whether a test belongs into a guest."""
    return item.nodeid.startswith("tests/guest/")


def kind_of(item: pytest.Item) -> Kind:
    """Return what sort of guest a test asks for: that of its variant, and what its marker ``boot`` says."""
    kernel, _, cpu = _variant(item).partition("+")
    marker = item.get_closest_marker("boot")
    return tuple(sorted({"kernel": kernel, "cpu": cpu or "max", **(marker.kwargs if marker else {})}.items()))


def group_of(item: pytest.Item) -> Group:
    """Return which guest a test runs in, once all tests are collected."""
    return item.stash[_GROUP]


def _divide(items: Sequence[pytest.Item]) -> None:
    """Say which guest each test of one kind runs in; those of a file stay together."""
    number = count = 0
    for _, tests in groupby(items, lambda item: item.path):
        if count >= GUEST_TESTS:
            number, count = number + 1, 0
        for item in tests:
            item.stash[_GROUP] = kind_of(item), number
            count += 1


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
    """Put the guests' tests last, and those of one kind of guest together; drop those that no kernel is left for.

    The kind with the fewest tests comes last: then all lanes of guests end at nearly the same time. Of the host's own
    tests those come first that want no root of a guest.
    """
    if nowhere := [item for item in items if in_guest(item) and not _variant(item)]:
        config.hook.pytest_deselected(items=nowhere)
        items[:] = [item for item in items if item not in nowhere]
    counts = Counter(kind_of(item) for item in items if in_guest(item))
    kinds = {kind: number for number, (kind, _) in enumerate(counts.most_common())}
    items.sort(
        key=lambda item: kinds[kind_of(item)] if in_guest(item) else -2 if item.nodeid.startswith(FIRST) else -1
    )
    for _, tests in groupby(filter(in_guest, items), kind_of):
        _divide(list(tests))


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


class Guests:
    """Runs the guests' tests: guests take turns beside the host's own tests, and what they tell becomes reports."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.pool = ThreadPoolExecutor(AT_ONCE, "guests")
        self.own_tests_over = threading.Event()
        self.boots: dict[Group, Boot] = {}
        self.hopeless: dict[Group, str] = {}
        self.all_boots: list[Boot] = []
        self.roots: subprocess.Popen[bytes] | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Start what can be done while the host's own tests run: make missing roots, run guests.

        Why a root cannot be made is told when a guest wants it.
        """
        items = [item for item in session.items if in_guest(item)]
        if not items or self.config.option.collectonly:
            return
        kernels = dict.fromkeys(str(dict(kind_of(item))["kernel"]) for item in items)
        self.roots = subprocess.Popen(
            [sys.executable, "-m", "dynamos_ng.lab.root", *kernels], cwd=machine.CHECKOUT,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        if len(items) < len(session.items):
            self.pool.submit(self.own_tests_over.wait)
        for group, tests in groupby(items, group_of):
            self._boot(group, list(tests))

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> bool | None:
        """Report a guest's test; others are not ours."""
        if not in_guest(item):
            return None
        self.own_tests_over.set()
        hook = item.ihook
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item):
            setattr(report, VARIANT, _variant(item))
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def pytest_sessionfinish(self) -> None:
        """End the guests that may still run, and what is being made for others."""
        self.own_tests_over.set()
        if self.roots and self.roots.poll() is None:
            os.killpg(self.roots.pid, signal.SIGTERM)
            self.roots.wait()
        for boot in self.boots.values():
            boot.close("the tests are over")
        self.pool.shutdown()

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Tell how the tests ended on each kernel and processor."""
        counts: dict[str, Counter[str]] = {}
        for outcome, reports in terminalreporter.stats.items():
            for report in reports:
                if outcome and (variant := getattr(report, VARIANT, "")):
                    counts.setdefault(variant, Counter())[outcome] += 1
        if not counts:
            return
        terminalreporter.write_sep("=", "guests")
        for line in table(counts, self.all_boots):
            terminalreporter.write_line(line)

    def _boot(self, group: Group, items: Sequence[pytest.Item]) -> Boot:
        """Let a guest take its turn with these tests."""
        tests = {item.nodeid: limit_of(item) for item in items}
        trouble = [mark.args[0] for item in items if (mark := item.get_closest_marker("trouble"))]
        self.boots[group] = Boot(tests, trouble, _variant(items[0]), group[0], self.config.option, self.pool)
        self.all_boots.append(self.boots[group])
        return self.boots[group]

    def _again(self, item: pytest.Item) -> Boot:
        """Return a new guest for a test and all after it that were to share one."""
        items = item.session.items
        group = group_of(item)
        rest = items[items.index(item) :]
        return self._boot(group, [one for one in rest if in_guest(one) and group_of(one) == group])

    def _reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        group = group_of(item)
        if group in self.hopeless:
            yield _failure(item, f"not run, as its guest does not start: {self.hopeless[group]}")
            return
        boot = self.boots.get(group) or self._again(item)
        phases: list[str] = []
        started: float | None = None
        while (event := boot.event())["event"] != END:
            if event["event"] == "broken":
                boot.broken += f"{event['text']}\n"
            elif event["nodeid"] != item.nodeid:
                boot.give_back(event)
                yield _failure(item, f"{boot.broken}the guest did not find this test")
                return
            elif event["event"] == "start":
                started = event["at"]
            elif event["event"] == "report":
                phases.append(event["when"])
                yield _report(item, event)
            else:
                boot.finished += 1
                if item.nodeid == list(boot.tests)[-1]:
                    # A kernel's last words may come as late as the power-off.
                    self._over(group)
                    if boot.error:
                        yield _failure(item, boot.error, when="teardown")
                return
        yield from self._died(item, boot, phases, None if started is None else event["at"] - started)

    def _over(self, group: Group) -> None:
        """Wait until a guest that has nothing more to do is off; then its `error` is final."""
        boot = self.boots.pop(group)
        while boot.event()["event"] != END:
            pass

    def _died(
        self, item: pytest.Item, boot: Boot, phases: list[str], seconds: float | None
    ) -> Iterator[pytest.TestReport]:
        """Report a test whose guest has ended too early, SECONDS after the test had begun, if it had."""
        error = boot.error or "the guest's pytest did not run this test"
        if boot.broken:
            error = f"{boot.broken}{error}"
        del self.boots[group_of(item)]
        if seconds is not None:
            yield _failure(item, error, when="teardown" if "call" in phases else "call", duration=seconds)
        elif boot.finished:
            yield from self._reports(item)
        else:
            self.hopeless[group_of(item)] = error.partition("\n")[0]
            yield _failure(item, error)


def table(counts: Mapping[str, Mapping[str, int]], boots: Iterable[Boot]) -> list[str]:
    """Return lines that tell how many tests ended in which way on each variant, in how many guests and seconds."""
    guests: dict[str, list[Boot]] = {}
    for boot in boots:
        guests.setdefault(boot.variant, []).append(boot)
    rows = [("kernel", "release", "cpu", "passed", "failed", "other", "guests", "seconds")]
    for variant, count in counts.items():
        kernel, _, cpu = variant.partition("+")
        passed, failed = count.get("passed", 0), count.get("failed", 0) + count.get("error", 0)
        mine = guests[variant]
        rows.append((
            kernel, next((boot.release for boot in mine if boot.release), ""), cpu or "max", str(passed), str(failed),
            str(sum(count.values()) - passed - failed), str(len(mine)), f"{sum(boot.seconds for boot in mine):.0f}",
        ))  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _failure(item: pytest.Item, text: str, when: Any = "call", duration: float = 0.0) -> pytest.TestReport:
    return pytest.TestReport(item.nodeid, item.location, {item.name: 1}, "failed", Trace(text), when, duration=duration)  # type: ignore[arg-type]


def _report(item: pytest.Item, event: dict[str, Any]) -> pytest.TestReport:
    """Turn a guest's report into one of ours; a failure gets what the kernel said meanwhile."""
    trace: Any = None
    if event["skip"]:
        trace = tuple(event["skip"])
    elif event["text"]:
        trace = Trace(event["text"], event["crash"])
    sections = [(str(name), str(text)) for name, text in event["sections"]]
    if console := event.get("console"):
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
