"""The client's side of the control socket."""

from __future__ import annotations

import grp
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamos_ng.errors import DaemonUnreachable, DynamosError, NotAllowed

if TYPE_CHECKING:
    from subprocess import Popen

RUN = Path("/run/dynamos")
SOCKET = Path(os.environ.get("DYNAMOS_SOCKET", RUN / "control.sock"))


class Remote(DynamosError):
    """An error that the daemon told us, with the exit status that it means."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def _who_may(path: Path) -> str:
    """Say whom the socket's mode lets connect."""
    try:
        status = path.stat()
        if status.st_mode & 0o020:
            return f"only root and members of the group {grp.getgrgid(status.st_gid).gr_name} may use it"
    except (OSError, KeyError):
        pass
    return "only root may use it"


def call(verb: str, /, *, socket_path: Path = SOCKET, **arguments: Any) -> Any:
    """Ask the daemon to carry out a verb; return its result as plain JSON values."""
    return ask(verb, arguments, socket_path)


def wait_for(daemon: Popen[bytes], seconds: float = 300.0) -> None:
    """Wait until a daemon that was just started answers; DynamosError if it has ended, or takes longer."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            call("ping")
            return
        except DynamosError:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def ask(verb: str, arguments: dict[str, Any], socket_path: Path = SOCKET, timeout: float | None = None) -> Any:
    """Do the same as `call`, and wait no longer than TIMEOUT seconds for each step."""
    request = json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout)
            sock.connect(str(socket_path))
            with suppress(BrokenPipeError):  # who is sent away at once is told why
                sock.sendall(request)
            with sock.makefile("rb") as stream:
                line = stream.readline()
    except (FileNotFoundError, ConnectionRefusedError):
        raise DaemonUnreachable(f"no daemon answers on {socket_path}: start dynamosd") from None
    except TimeoutError:
        raise DaemonUnreachable(f"the daemon on {socket_path} does not answer within {timeout:g} s") from None
    except PermissionError:
        raise NotAllowed(f"{socket_path}: permission denied: {_who_may(socket_path)}") from None
    except OSError as error:
        raise DaemonUnreachable(f"{socket_path}: {error.strerror}") from None
    if not line.endswith(b"\n"):
        raise DaemonUnreachable(
            f"the daemon went away while it worked on {verb}; 'dynamos status' tells what is true now"
        )
    answer = json.loads(line)
    if "error" in answer:
        raise Remote(answer["error"], int(answer["exit"]))
    return answer["result"]
