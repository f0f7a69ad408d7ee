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
import signal
import socket
import socketserver
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynamos_ng import __version__, explanation
from dynamos_ng.control import RUN, SOCKET
from dynamos_ng.enforcement import Enforcement
from dynamos_ng.errors import DynamosError, UsageError
from dynamos_ng.manager import REMOVAL_SECONDS, Manager
from dynamos_ng.model import Change, FunctionState, Snapshot
from dynamos_ng.pending import Pending
from dynamos_ng.wire import plain

log = logging.getLogger("dynamosd")

REQUEST_MAX = 1 << 20


#: Verbs that only look: they are not worth a line in the log.
QUIET = frozenset(("ping", "status", "quiescence", "policy_show", "policy_explain", "policy_diff"))


def verbs(manager: Manager, pending: Pending, enforcement: Enforcement) -> dict[str, Callable[..., Any]]:
    """Return what clients may ask for; arguments are given by name."""

    def status() -> Snapshot:
        return replace(manager.status(), pending=pending.waiting())

    def unload(name: str, wait: float | None = REMOVAL_SECONDS, nudge: bool = False) -> Change:
        if pending.forget(name):
            return Change("unload", name, FunctionState.LOADED, (), (), 0)
        return manager.unload(name, wait=wait, nudge=nudge)

    return {
        "ping": lambda: {"version": __version__, "pid": os.getpid()},
        "load": manager.load,
        "load_when_module": pending.add,
        "unload": unload,
        "activate": manager.activate,
        "confirm": manager.confirm,
        "deactivate": manager.deactivate,
        "phase": manager.phase,
        "status": status,
        "quiescence": manager.quiescence,
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
        while line := self.rfile.readline(REQUEST_MAX):
            answer = self.server.answer(line)
            try:
                self.wfile.write(json.dumps(answer).encode() + b"\n")
            except BrokenPipeError:  # the client left; what it asked for is done all the same
                return


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, methods: dict[str, Callable[..., Any]]) -> None:
        self._verbs = methods
        super().__init__(str(path), _Handler)

    def answer(self, line: bytes) -> dict[str, Any]:
        """Return the answer to one request line; no request can end the daemon."""
        try:
            request = json.loads(line)
            verb, arguments = str(request["verb"]), dict(request.get("arguments", {}))
        except (ValueError, KeyError, TypeError, AttributeError):
            return {"error": "malformed request", "exit": UsageError.exit_code}
        try:
            result = plain(self._carry_out(verb, arguments))
        except DynamosError as error:
            log.info("%s refused: %s", verb, str(error).splitlines()[0])
            return {"error": str(error), "exit": error.exit_code}
        except Exception:
            log.exception("%s failed", verb)
            return {"error": f"{verb}: an internal error; see dynamosd's log", "exit": 1}
        if verb not in QUIET:
            words = {key: value for key, value in arguments.items() if key != "text"}
            log.info("%s %s", verb, " ".join(f"{key}={value}" for key, value in words.items()))
        return {"result": result}

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


def serve(path: Path, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; redirections and policy stay in force afterwards."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with (
        _only_one(path.parent),
        contextlib.closing(Manager()) as manager,
        Enforcement(manager, path.parent) as enforcement,
        Pending(manager, path.parent / "pending.json") as pending,
    ):
        path.unlink(missing_ok=True)
        old = os.umask(0o177)  # the socket is root's alone from its first moment
        server = _Server(path, verbs(manager, pending, enforcement))
        os.umask(old)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        functions = manager.functions()
        log.info("ready on %s; %d functions are loaded", path, len(functions))
        ready()
        stop.wait()
        server.shutdown()
        path.unlink(missing_ok=True)


def _notify() -> None:
    """Tell a service manager that asked for it that the daemon is ready (sd_notify's protocol)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"READY=1", "\0" + address[1:] if address.startswith("@") else address)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the daemon in the foreground."""
    parser = argparse.ArgumentParser("dynamosd", description=__doc__.splitlines()[0])
    parser.add_argument("--socket", type=Path, default=SOCKET, help=f"control socket (default {SOCKET})")
    parser.add_argument("--version", action="version", version=__version__)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s", stream=sys.stderr)
    if os.geteuid():
        print("dynamosd: root is needed", file=sys.stderr)
        return 1
    RUN.mkdir(mode=0o755, exist_ok=True)
    try:
        serve(options.socket, _notify)
    except DynamosError as error:
        print(f"dynamosd: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
