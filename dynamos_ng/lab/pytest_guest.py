"""pytest plugin for the guest's side: runs what the host asks for, writes one line of JSON per event to /out.

Events: ``start`` and ``finish`` of a test, ``report`` of one of its phases, ``broken`` for a file that cannot be
collected.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

OUT = Path("/out")
WANTED = "wanted.json"
#: The parameter that tells a test on which variant of a guest it runs (see lab/variants.py); all tests have it.
VARIANT = "variant"
EVENTS = "events.jsonl"
#: Written to the kernel's log with the test's name, so that the console tells what was done when.
TEST_SIGN = "dynamos test: "


def _write(**event: Any) -> None:
    with (OUT / EVENTS).open("a") as file:
        file.write(json.dumps(event, default=str) + "\n")


def _wanted() -> dict[str, Any]:
    return dict(json.loads((OUT / WANTED).read_text()))


@pytest.hookimpl(trylast=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Name each test as the host does."""
    parametrize(metafunc, [_wanted()[VARIANT]])


def parametrize(metafunc: pytest.Metafunc, variants: Sequence[str]) -> None:
    """Make a test one for each variant."""
    if VARIANT not in metafunc.fixturenames:
        metafunc.fixturenames.append(VARIANT)
    metafunc.parametrize(VARIANT, variants, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what the host wants, in the host's order."""
    collected = {item.nodeid: item for item in items}
    items[:] = [collected[nodeid] for nodeid in _wanted()["tests"] if nodeid in collected]


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Tell of files that cannot be collected."""
    if report.failed:
        _write(event="broken", nodeid=report.nodeid, text=report.longreprtext)


def pytest_runtest_logstart(nodeid: str) -> None:
    """Tell which test is under way, should the guest die in it."""
    Path("/dev/kmsg").write_text(f"<5>{TEST_SIGN}{nodeid}\n")
    _write(event="start", nodeid=nodeid)


def pytest_runtest_logfinish(nodeid: str) -> None:
    """Tell that a test is over."""
    _write(event="finish", nodeid=nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Pass one phase on."""
    crash = getattr(report.longrepr, "reprcrash", None)
    _write(
        event="report",
        nodeid=report.nodeid,
        when=report.when,
        outcome=report.outcome,
        text=report.longreprtext,
        crash=[crash.path, crash.lineno, crash.message] if crash else None,
        skip=list(report.longrepr) if isinstance(report.longrepr, tuple) else None,
        wasxfail=getattr(report, "wasxfail", None),
        sections=report.sections,
        duration=report.duration,
        properties=report.user_properties,
    )
