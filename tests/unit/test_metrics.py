"""Metrics: what a scraper gets over HTTP, read by the library's own strict parser, and what the examples ask for."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from dynamos_ng import metrics
from dynamos_ng.errors import DynamosError, MissingTool, UsageError
from dynamos_ng.model import (
    CallCounts,
    Confirmation,
    Edition,
    EditionUse,
    EnabledUpdate,
    Function,
    FunctionState,
    FunctionStatus,
    PendingUpdate,
    Phase,
    Snapshot,
    UpdateStatus,
)

DOCS = Path(__file__).parents[2] / "docs"
REDIRECTED = FunctionState.REDIRECTED


def function(name: str, module: str = "") -> FunctionStatus:
    one = Function(0, name, "dynamos_u", REDIRECTED, 16, 16, 16, 16, 32, b"", b"", (Edition(1, 16, 24),), module=module)
    return FunctionStatus(one, (EditionUse(1, 10, 7), EditionUse(2, 5, 5)), bytes(256), CallCounts(100, 90, 1))


SNAPSHOT = Snapshot(
    updates=(
        # Two functions of one name in one update, as the kernel has them.
        UpdateStatus("plain", REDIRECTED, Phase(0, False, False, False, 0), (function("same"), function("same")), (), 4,
                     Confirmation("waiting", 42)),
        UpdateStatus("group", FunctionState.DRAINING, Phase(0, True, False, False, 3), (function("f", "ext4"),)),
        UpdateStatus("phased", REDIRECTED, Phase(2, False, True, False, 0), (), confirmation=Confirmation("reverted")),
    ),
    engine="bcc",
    pending=(PendingUpdate("later", "/later", ("ext4",)),),
    enabled=(EnabledUpdate("good", "/good"), EnabledUpdate("bad", "/bad", trouble="held back")),
)  # fmt: skip


@pytest.fixture
def exporter() -> Iterator[metrics.Exporter]:
    tally = metrics.Tally()
    for outcome in ("done", "done", "refused"):
        tally.add("activate", outcome, {"stop_ns": 500_000} if outcome == "done" else None)
    with metrics.Exporter("0", lambda: SNAPSHOT, tally) as one:
        yield one


def scrape(port: int) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.headers["Content-Type"].startswith("application/openmetrics-text")
        text = answer.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        for sample in family.samples
    }


def test_a_scraper_gets_what_status_shows(exporter: metrics.Exporter) -> None:
    got = scrape(exporter.port)

    def value(name: str, **labels: str) -> float:
        return got[name, frozenset(labels.items())]

    assert value("dynamos_update_state", update="plain", state="redirected") == 1
    assert value("dynamos_update_state", update="plain", state="draining") == 0
    assert value("dynamos_update_state", update="group", state="draining") == 1
    assert value("dynamos_update_phase", update="phased") == 2
    assert value("dynamos_update_pinned_tasks", update="group") == 3
    assert value("dynamos_update_shadows", update="plain") == 4
    assert value("dynamos_update_confirmation", update="plain", state="waiting") == 1
    assert value("dynamos_update_confirmation_seconds", update="plain") == 42
    assert value("dynamos_update_confirmation", update="phased", state="reverted") == 1
    same = {"update": "plain", "module": "", "function": "same", "edition": "1"}
    assert value("dynamos_edition_entered_total", **same) == 20
    assert value("dynamos_edition_exited_total", **same) == 14
    assert value("dynamos_edition_in_flight", **same) == 6
    assert value("dynamos_original_entries_total", module="ext4", function="f") == 100
    assert value("dynamos_pending_updates") == 1
    assert (value("dynamos_enabled_update", update="good"), value("dynamos_enabled_update", update="bad")) == (1, 0)
    assert value("dynamos_requests_total", verb="activate", outcome="done") == 2
    assert value("dynamos_requests_total", verb="activate", outcome="refused") == 1
    assert value("dynamos_stop_seconds_count", verb="activate") == 2
    assert value("dynamos_stop_seconds_sum", verb="activate") == pytest.approx(0.001)
    assert value("process_resident_memory_bytes") > 0


@pytest.mark.parametrize("example", ["alerts.yml", "grafana.json"])
def test_the_examples_ask_for_what_there_is(exporter: metrics.Exporter, example: str) -> None:
    text = (DOCS / example).read_text()
    asked = set(re.findall(r"\b(?:dynamos|process)_\w+", text.replace("dynamos_ng", "")))
    assert len(asked) > 5
    assert asked <= {name for name, _ in scrape(exporter.port)}
    if example.endswith(".json"):
        panels: list[dict[str, Any]] = json.loads(text)["panels"]
        assert len({panel["id"] for panel in panels}) == len(panels)


def test_it_listens_on_the_loopback_unless_told_otherwise() -> None:
    assert metrics.address("9123") == ("127.0.0.1", 9123)
    assert metrics.address("0.0.0.0:1") == ("0.0.0.0", 1)
    assert metrics.address("[::1]:65535") == ("::1", 65535)


@pytest.mark.parametrize("text", ["", "x", "127.0.0.1", "127.0.0.1:65536", "::1:80", "a b:1", "1:2:3", "-1"])
def test_a_bad_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="an address and a port belong here"):
        metrics.address(text)


def test_who_sends_byte_by_byte_keeps_nobody_waiting(
    exporter: metrics.Exporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "PATIENCE", 0.3)
    patient = []
    with socket.create_connection(("127.0.0.1", exporter.port)) as slow:

        def trickle() -> None:
            with contextlib.suppress(OSError):
                for _ in range(200):
                    slow.send(b"x")
                    time.sleep(0.1)
                patient.append("to the end")

        sender = threading.Thread(target=trickle)
        sender.start()
        time.sleep(0.2)
        assert scrape(exporter.port), "the next one's turn comes"
        assert not patient
    sender.join()


def test_an_address_that_is_taken_is_told(exporter: metrics.Exporter) -> None:
    with pytest.raises(DynamosError, match=f"^--metrics {exporter.port}: cannot listen there: Address already in use"):
        metrics.Exporter(str(exporter.port), lambda: SNAPSHOT, metrics.Tally())


def test_the_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(MissingTool, match="apt install python3-prometheus-client"):
        metrics.Exporter("0", lambda: SNAPSHOT, metrics.Tally())
