"""What is to be seen, for Prometheus: an OpenMetrics endpoint by the prometheus_client library, if it is asked for."""

from __future__ import annotations

import contextlib
import logging
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from dynamos_ng import __version__
from dynamos_ng.closing import Closing
from dynamos_ng.errors import DynamosError, MissingTool, UsageError
from dynamos_ng.model import CallCounts, FunctionState, Snapshot

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("dynamosd")

LOOPBACK = "127.0.0.1"
#: How long a request may take to come: they are answered one after the other, so there is never more than one.
PATIENCE = 10.0
CONFIRMATIONS = ("waiting", "reverting", "reverted")


class Tally:
    """Counts what was asked of the daemon. Verbs come from a closed list, so there is an end to what is kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._stops: Counter[str] = Counter()
        self._stop_ns: Counter[str] = Counter()

    def add(self, verb: str, outcome: str, result: Any = None) -> None:
        """Count a request: its outcome is "done", "refused", "forbidden" or "failed"."""
        stop_ns = result.get("stop_ns") if isinstance(result, dict) else None
        with self._lock:
            self._requests[verb, outcome] += 1
            if stop_ns:
                self._stops[verb] += 1
                self._stop_ns[verb] += stop_ns

    def read(self) -> tuple[Counter[tuple[str, str]], Counter[str], Counter[str]]:
        """Return requests by verb and outcome, and stops and their nanoseconds by verb."""
        with self._lock:
            return self._requests.copy(), self._stops.copy(), self._stop_ns.copy()


def families(snapshot: Snapshot, tally: Tally) -> Iterator[Metric]:
    """Yield all that is told, from one snapshot."""
    from prometheus_client import metrics_core as core

    info = core.InfoMetricFamily("dynamos", "The daemon's version, and what runs its probes.")
    info.add_metric([], {"version": __version__, "engine": snapshot.engine})
    yield info

    state = core.GaugeMetricFamily("dynamos_update_state", "1 for the state that it has.", labels=["update", "state"])
    phase = core.GaugeMetricFamily("dynamos_update_phase", "Phase of a synchronised update, 0 to 3.", labels=["update"])
    pinned = core.GaugeMetricFamily("dynamos_update_pinned_tasks", "Tasks that a group keeps to v1.", labels=["update"])
    shadows = core.GaugeMetricFamily("dynamos_update_shadows", "Objects that have shadow data.", labels=["update"])
    waits = core.GaugeMetricFamily(
        "dynamos_update_confirmation", "1 for what became of a confirmation.", labels=["update", "state"]
    )
    left = core.GaugeMetricFamily(
        "dynamos_update_confirmation_seconds", "Seconds until it is taken back by itself.", labels=["update"]
    )
    uses: Counter[tuple[str, str, str, str]] = Counter()
    exits: Counter[tuple[str, str, str, str]] = Counter()
    calls: dict[tuple[str, str], dict[int, CallCounts]] = {}  # of each address: several updates may have one
    for update in snapshot.updates:
        for one in FunctionState:
            state.add_metric([update.name, one.name.lower()], update.state is one)
        if update.phase.phased:
            phase.add_metric([update.name], update.phase.phase)
        if update.phase.consistent:
            pinned.add_metric([update.name], update.phase.pinned)
        shadows.add_metric([update.name], update.shadows)
        found = update.confirmation
        for word in CONFIRMATIONS:
            waits.add_metric([update.name, word], found is not None and found.state == word)
        if found and found.state == "waiting":
            left.add_metric([update.name], found.left)
        for status in update.functions:
            function = status.function
            for use in status.uses:
                key = (update.name, function.module, function.name, str(use.number))
                uses[key] += use.entered
                exits[key] += use.exited
            if status.probes:
                calls.setdefault((function.module, function.name), {})[function.address] = status.probes
    yield from (state, phase, pinned, shadows, waits, left)

    labels = ["update", "module", "function", "edition"]
    entered = core.CounterMetricFamily("dynamos_edition_entered", "Calls that entered an edition.", labels=labels)
    exited = core.CounterMetricFamily("dynamos_edition_exited", "Calls that left an edition.", labels=labels)
    inside = core.GaugeMetricFamily("dynamos_edition_in_flight", "Calls that are in an edition.", labels=labels)
    for key, count in uses.items():
        entered.add_metric(key, count)
        exited.add_metric(key, exits[key])
        inside.add_metric(key, count - exits[key])
    yield from (entered, exited, inside)

    labels = ["module", "function"]
    entries = core.CounterMetricFamily("dynamos_original_entries", "Calls, by probes.", labels=labels)
    returns = core.CounterMetricFamily("dynamos_original_returns", "Its returns, by probes.", labels=labels)
    missed = core.CounterMetricFamily("dynamos_original_missed", "What probes missed of both.", labels=labels)
    for name, counts in calls.items():
        entries.add_metric(name, sum(count.entries for count in counts.values()))
        returns.add_metric(name, sum(count.exits for count in counts.values()))
        missed.add_metric(name, sum(count.missed for count in counts.values()))
    yield from (entries, returns, missed)

    yield core.GaugeMetricFamily("dynamos_pending_updates", "Updates that wait for a module.", len(snapshot.pending))
    enabled = core.GaugeMetricFamily(
        "dynamos_enabled_update", "1 for each update that is enabled at boot; 0 if it could not take effect.",
        labels=["update"],
    )  # fmt: skip
    for one_enabled in snapshot.enabled:
        enabled.add_metric([one_enabled.name], not one_enabled.trouble)
    yield enabled

    asked, stops, stop_ns = tally.read()
    requests = core.CounterMetricFamily(
        "dynamos_requests", "What was asked of the daemon, and how it ended.", labels=["verb", "outcome"]
    )
    for (verb, outcome), count in asked.items():
        requests.add_metric([verb, outcome], count)
    yield requests
    stopped = core.SummaryMetricFamily(
        "dynamos_stop_seconds", "Stops that changed the kernel: how long all processors stood still.", labels=["verb"]
    )
    for verb, count in stops.items():
        stopped.add_metric([verb], count, stop_ns[verb] / 1e9)
    yield stopped


def address(text: str) -> tuple[str, int]:
    """Return host and port of PORT, HOST:PORT or [HOST]:PORT; the host is the loopback unless it is given."""
    found = re.fullmatch(r"(?:(?:\[([0-9a-fA-F:]+)\]|([\w.-]+)):)?(\d{1,5})", text)
    if not found or not 0 <= int(found[3]) < 1 << 16:
        raise UsageError(f"--metrics {text}: an address and a port belong here, like {LOOPBACK}:9123")
    return found[1] or found[2] or LOOPBACK, int(found[3])


def library() -> Any:
    """Return prometheus_client; MissingTool names the package if it is not here."""
    try:
        import prometheus_client
    except ImportError:
        raise MissingTool(
            "--metrics: the Python package prometheus_client is not installed: "
            "apt install python3-prometheus-client, or python3 -m pip install prometheus-client"
        ) from None
    return prometheus_client


class _Quiet(WSGIRequestHandler):
    timeout = PATIENCE

    def handle(self) -> None:
        """Answer one request, and let nobody keep the others waiting by sending it byte by byte."""
        late = threading.Timer(PATIENCE, self._cut)
        late.daemon = True
        late.start()
        try:
            super().handle()
        finally:
            late.cancel()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RD)

    def log_message(self, *_: Any) -> None:
        pass


class _Server6(WSGIServer):
    address_family = socket.AF_INET6


class Exporter(Closing):
    """Answers on an address, until it is closed, with what `look` gives then."""

    def __init__(self, where: str, look: Callable[[], Snapshot], tally: Tally) -> None:
        """Begin to answer; errors are those of `address` and `library`, or that nobody can listen there."""
        (host, port), client = address(where), library()
        self._look = look
        self._tally = tally
        registry = client.CollectorRegistry()
        registry.register(self)
        client.ProcessCollector(registry=registry)
        try:
            self._server = make_server(
                host, port, client.make_wsgi_app(registry), _Server6 if ":" in host else WSGIServer, _Quiet
            )
        except OSError as error:
            raise DynamosError(f"--metrics {where}: cannot listen there: {error.strerror or error}") from None
        self.port = self._server.server_port
        if host not in (LOOPBACK, "::1", "localhost"):
            log.warning("metrics: whoever reaches %s may read them", where)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True, name="metrics")
        self._thread.start()

    def describe(self) -> tuple[()]:
        """Tell the registry nothing beforehand: to describe is to look."""
        return ()

    def collect(self) -> Iterator[Metric]:
        """Yield what there is now."""
        return families(self._look(), self._tally)

    def close(self) -> None:
        """Answer no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
