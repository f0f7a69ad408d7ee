"""The client's side of the control socket."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

from dynamos_ng.errors import DaemonUnreachable, DynamosError

RUN = Path("/run/dynamos")
SOCKET = Path(os.environ.get("DYNAMOS_SOCKET", RUN / "control.sock"))


class Remote(DynamosError):
    """An error that the daemon told us, with the exit status that it means."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def call(verb: str, /, *, socket_path: Path = SOCKET, **arguments: Any) -> Any:
    """Ask the daemon to carry out a verb; return its result as plain JSON values."""
    request = json.dumps({"verb": verb, "arguments": arguments}).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.connect(str(socket_path))
            sock.sendall(request)
            with sock.makefile("rb") as stream:
                line = stream.readline()
    except (FileNotFoundError, ConnectionRefusedError):
        raise DaemonUnreachable(f"no daemon answers on {socket_path}: start dynamosd") from None
    except PermissionError:
        raise DaemonUnreachable(f"{socket_path}: permission denied: run as root") from None
    except OSError as error:
        raise DaemonUnreachable(f"{socket_path}: {error.strerror}") from None
    if not line:
        raise DaemonUnreachable(
            f"the daemon went away while it worked on {verb}; 'dynamos status' tells what is true now"
        )
    answer = json.loads(line)
    if "error" in answer:
        raise Remote(answer["error"], int(answer["exit"]))
    return answer["result"]
