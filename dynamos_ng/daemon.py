"""dynamosd: one process that holds the probes and answers on a Unix socket.

A request is one line of JSON, ``{"verb": …, "arguments": {…}}``; the answer is one line, either
``{"result": …}`` or ``{"error": text, "exit": status}``. One thread serves each connection, so that `status`
answers while a removal waits.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import inspect
import json
import logging
import os
import queue
import resource
import signal
import socket
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynamos_ng import __version__, explanation, history, host, journal, metrics, service
from dynamos_ng.boot import STATE, UPDATES, Boot
from dynamos_ng.control import RUN, SOCKET
from dynamos_ng.enforcement import Enforcement
from dynamos_ng.errors import DynamosError, NotAllowed, UsageError
from dynamos_ng.journal import Journal
from dynamos_ng.manager import REMOVAL_SECONDS, Manager
from dynamos_ng.metrics import Exporter, Tally
from dynamos_ng.model import Change, Event, FunctionState, Peer, Snapshot
from dynamos_ng.pending import Pending
from dynamos_ng.recording import Recorder
from dynamos_ng.roles import Caller, Role, Roles, caller, looks
from dynamos_ng.wire import plain

log = logging.getLogger("dynamosd")

REQUEST_MAX = 1 << 20
#: How many connections each role may hold at once: no viewer can keep an admin out.
CONNECTIONS = 32
#: So many descriptors are enough: a function that is watched takes four, and there are 1024 at most.
FILES = 1 << 14


def snapshot(manager: Manager, pending: Pending, boot: Boot) -> Snapshot:
    """Return what is to be seen now, and what the daemon has cost until now."""
    return replace(
        manager.status(),
        pending=pending.waiting(),
        enabled=boot.enabled(),
        taken=time.time(),
        uptime=time.clock_gettime(time.CLOCK_BOOTTIME),
        daemon=host.own_cost(),
    )


def verbs(
    manager: Manager, pending: Pending, boot: Boot, enforcement: Enforcement, kept: Journal
) -> dict[str, Callable[..., Any]]:
    """Return what clients may ask for; arguments are given by name."""

    def recent() -> tuple[Event, ...]:
        return tuple(map(history.event, kept.recent()))

    def unload(name: str, wait: float | None = REMOVAL_SECONDS, nudge: bool = False) -> Change:
        if pending.forget(name):
            return Change("unload", name, FunctionState.LOADED, (), (), 0)
        return manager.unload(name, wait=wait, nudge=nudge)

    return {
        "ping": lambda: {"version": __version__, "pid": os.getpid()},
        "load": manager.load,
        "load_when_module": pending.add,
        "unload": unload,
        "enable": boot.enable,
        "disable": boot.disable,
        "activate": manager.activate,
        "confirm": manager.confirm,
        "deactivate": manager.deactivate,
        "phase": manager.phase,
        "status": lambda: snapshot(manager, pending, boot),
        "history": recent,
        "quiescence": manager.quiescence,
        "latency": manager.latency,
        "policy_show": lambda: explanation.show(manager, enforcement),
        "policy_apply": enforcement.apply,
        "policy_clear": enforcement.clear,
        "policy_explain": lambda pid: explanation.explain(enforcement, pid),
        "policy_diff": lambda text, file: explanation.diff(enforcement, text, file),
        "policy_process": manager.set_process_class,
        "policy_rule": manager.set_rule,
        "policy_edition": manager.set_edition,
    }


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        who = caller(self.connection)
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # what a client asked for is done all the same
            while line := self.rfile.readline(REQUEST_MAX):
                answer = self.server.answer(line, who)
                self.wfile.write(json.dumps(answer).encode() + b"\n")
                if not line.endswith(b"\n"):  # what follows would be taken for another request
                    return


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(
        self, path: Path, methods: dict[str, Callable[..., Any]], roles: Roles, tally: Tally, kept: Journal
    ) -> None:
        self._verbs = methods
        self._journal = kept
        self._tally = tally
        self._roles = roles
        self._free = {role: threading.BoundedSemaphore(CONNECTIONS) for role in (Role.VIEWER, Role.ADMIN)}
        self._held: dict[socket.socket, Role] = {}
        super().__init__(str(path), _Handler)

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002
        """Send strangers away before they cost a thread, and whoever would be one too many."""
        who = caller(request)
        role = self._roles.role(who)
        try:
            self._roles.need(Role.VIEWER, who, "dynamosd")
            if not self._free[role].acquire(blocking=False):
                raise DynamosError(f"dynamosd has {CONNECTIONS} connections of your role already: try again later")
        except DynamosError as error:
            with contextlib.suppress(OSError):
                request.setblocking(False)
                request.send(json.dumps({"error": str(error), "exit": error.exit_code}).encode() + b"\n")
            return False
        self._held[request] = role
        return True

    def shutdown_request(self, request: Any) -> None:
        """Close a connection, and let another one have its place."""
        super().shutdown_request(request)
        if role := self._held.pop(request, None):
            self._free[role].release()

    def answer(self, line: bytes, who: Caller) -> dict[str, Any]:
        """Return the answer to one request line; no request can end the daemon."""
        try:
            request = json.loads(line)
            verb, arguments = str(request["verb"]), dict(request.get("arguments", {}))
        except (ValueError, KeyError, TypeError, AttributeError):
            self._tally.add("malformed", "refused")
            return {"error": "malformed request", "exit": UsageError.exit_code}
        number = None
        # What others ask for in vain is in the log: they must not fill the journal.
        if verb in self._verbs and not looks(verb, arguments) and self._roles.role(who) is Role.ADMIN:
            number = self._journal.begin(Peer(who.uid, who.pid, host.name_of(who.pid)), verb, arguments)
        outcome, answer = self._answer(verb, arguments, who)
        if number is not None:
            self._journal.end(number, answer)
        self._tally.add(verb if verb in self._verbs else "unknown", outcome, answer.get("result"))
        return answer

    def _answer(self, verb: str, arguments: dict[str, Any], who: Caller) -> tuple[str, dict[str, Any]]:
        try:
            self._roles.check(who, verb, arguments)
            result = plain(self._carry_out(verb, arguments))
        except NotAllowed as error:
            log.warning("%s", error)
            return "forbidden", {"error": str(error), "exit": error.exit_code}
        except DynamosError as error:
            log.info("%s refused: %s", verb, str(error).splitlines()[0])
            return "refused", {"error": str(error), "exit": error.exit_code}
        except Exception:
            log.exception("%s failed", verb)
            return "failed", {"error": f"{verb}: an internal error; see dynamosd's log", "exit": 1}
        if not looks(verb, arguments):
            words = {key: value for key, value in arguments.items() if key != "text"}
            log.info("%s %s, by %s", verb, " ".join(f"{key}={value}" for key, value in words.items()), who.name)
        return "done", {"result": result}

    def _carry_out(self, verb: str, arguments: dict[str, Any]) -> Any:
        """Call a verb; UsageError when there is none such or its arguments do not fit."""
        method = self._verbs.get(verb)
        if method is None:
            raise UsageError(f"{verb}: the daemon knows no such verb; it is version {__version__}")
        try:
            inspect.signature(method).bind(**arguments)
        except TypeError as error:
            raise UsageError(f"{verb}: {error}") from None
        return method(**arguments)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the lock that makes this the only daemon; it goes with the process, however it ends."""
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DynamosError(f"another dynamosd is running (it holds {folder}/lock)") from None
        yield


@contextlib.contextmanager
def _manager(kept: Journal) -> Iterator[Manager]:
    """Open the manager, and note down what a daemon that begins has found: no change from before will end any more."""
    with contextlib.closing(Manager()) as manager:
        found = [function.name for function in manager.functions()]
        kept.note(journal.START, {"version": __version__}, {"result": {"functions": found}})
        yield manager


def serve(options: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT; redirections and policy stay in force afterwards.

    SIGHUP has the groups looked up again.
    """
    path: Path = options.socket
    roles = Roles(options.admin_group, options.view_group)
    tally = Tally()
    if options.metrics:  # what is wrong is said before the probes are compiled
        metrics.address(options.metrics)
        metrics.library()
    signals: queue.SimpleQueue[int] = queue.SimpleQueue()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, FILES), most))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: signals.put(number))
    with (
        _only_one(path.parent),
        Journal(options.journal) as kept,
        _manager(kept) as manager,
        Enforcement(manager, path.parent) as enforcement,
        Pending(manager, path.parent / "pending.json", kept) as pending,
        Boot(manager, pending, options.updates, options.state) as boot,
        contextlib.ExitStack() as also,
    ):
        if options.metrics:
            also.enter_context(Exporter(options.metrics, lambda: snapshot(manager, pending, boot), tally))
        if options.record:
            also.enter_context(Recorder(options.journal, options.record, lambda: snapshot(manager, pending, boot)))
        path.unlink(missing_ok=True)
        old = os.umask(0o177)  # the socket is root's alone from its first moment
        server = _Server(path, verbs(manager, pending, boot, enforcement, kept), roles, tally, kept)
        os.umask(old)
        roles.give(path)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        functions = manager.functions()
        log.info("ready on %s; %d functions are loaded", path, len(functions))
        with service.Watchdog(path):
            service.notify(READY=1, STATUS=f"{len(functions)} functions are loaded")
            while signals.get() == signal.SIGHUP:
                service.reloading()
                _reload(roles, path)
                service.notify(READY=1)
            service.notify(STOPPING=1)
        server.shutdown()
        path.unlink(missing_ok=True)


def _reload(roles: Roles, path: Path) -> None:
    try:
        roles.reload()
        roles.give(path)
        log.info("reloaded: the groups are looked up again")
    except DynamosError as error:
        log.error("reload: %s; the groups stay as they were", error)


def _seconds(text: str) -> float:
    """Parse how far apart snapshots are for argparse."""
    value = float(text)
    if not 0.1 <= value <= 86400:
        raise argparse.ArgumentTypeError(f"{text} is no number of seconds from 0.1 to 86400")
    return value


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground."""
    parser = argparse.ArgumentParser("dynamosd", description=__doc__.splitlines()[0])
    parser.add_argument("--socket", type=Path, default=SOCKET, help=f"control socket (default {SOCKET})")
    parser.add_argument("--admin-group", default="", metavar="GROUP",
                        help="members may change all that root may, and so are root in effect (default: nobody)")
    parser.add_argument("--view-group", default="", metavar="GROUP",
                        help="members may look, and see addresses of the kernel (default: nobody)")  # fmt: skip
    parser.add_argument("--updates", type=Path, default=UPDATES, metavar="DIR",
                        help=f"the updates that 'dynamos enable' named (default {UPDATES})")
    parser.add_argument("--state", type=Path, default=STATE, metavar="DIR",
                        help=f"where it is noted which of them were activated lately (default {STATE})")  # fmt: skip
    parser.add_argument("--metrics", default="", metavar="[HOST:]PORT",
                        help="answer there with OpenMetrics, on the loopback unless HOST is given (default: nowhere)")
    parser.add_argument("--journal", type=Path, default=journal.FOLDER, metavar="DIR",
                        help=f"where each change is noted down (default {journal.FOLDER})")  # fmt: skip
    parser.add_argument("--record", type=_seconds, default=0.0, metavar="S",
                        help="keep a snapshot each S seconds there, for 'dynamos top --replay'")  # fmt: skip
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    service.log_to_stderr()
    if os.geteuid():
        log.error("root is needed")
        return 1
    RUN.mkdir(mode=0o755, exist_ok=True)
    try:
        serve(options)
    except DynamosError as error:
        log.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
