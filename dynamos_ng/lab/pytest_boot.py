"""One guest that runs a list of tests and tells of them by events; it may wait for its turn, and so may its events."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from queue import SimpleQueue
from typing import IO, Any

from dynamos_ng.errors import DynamosError
from dynamos_ng.lab import machine, root
from dynamos_ng.lab.pytest_guest import EVENTS, TEST_SIGN, VARIANT, WANTED

#: The limit of a whole guest, which only a lost one reaches.
GUEST_SECONDS = 4 * 3600.0
#: The last event of each guest; `error` is final then.
END = "end"
Kind = tuple[tuple[str, Any], ...]


class Boot:
    """One guest, run by a thread of a pool."""

    def __init__(
        self,
        tests: Mapping[str, float],
        trouble: Sequence[str],
        variant: str,
        kind: Kind,
        option: argparse.Namespace,
        pool: Executor,
    ) -> None:
        """Let POOL run a guest of a KIND for TESTS: their names, and how many seconds each may take.

        TROUBLE are regular expressions for what the tests have the kernel report.
        """
        self.tests = tests
        self.finished = 0
        self.broken = ""
        self.error = ""
        self.release = ""
        self.seconds = 0.0
        self._stop_reason = ""
        self.variant = variant
        self._kind = dict(kind)
        self._trouble = trouble
        self._option = option
        self._news: SimpleQueue[dict[str, Any]] = SimpleQueue()
        self._given_back: list[dict[str, Any]] = []
        self._part = ""
        self._late = ""
        self._deadline = 0.0
        self._done = pool.submit(self._run)

    def event(self) -> dict[str, Any]:
        """Wait for the next event and return it: one of pytest_guest's, or END; `at` is when it was heard of."""
        return self._given_back.pop() if self._given_back else self._news.get()

    def give_back(self, event: dict[str, Any]) -> None:
        """Let the next call of `event` return this one again."""
        self._given_back.append(event)

    def close(self, reason: str) -> None:
        """End the guest, if it has not ended, and wait for that."""
        self._stop_reason = self._stop_reason or reason
        if not self._done.cancel():
            self._done.exception()

    def _run(self) -> None:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="dynamos-tests-") as name:
            out = Path(name)
            (out / WANTED).write_text(json.dumps({VARIANT: self.variant, "tests": list(self.tests)}))
            (out / EVENTS).touch()
            with (out / EVENTS).open() as events:
                try:
                    self._guest(out, events)
                except DynamosError as error:
                    self.error = str(error)
                except Exception as error:
                    self.error = f"{type(error).__name__}: {error}"
                    raise
                finally:
                    self._hear(events, out)
                    self.seconds = time.monotonic() - began
                    self._news.put({"event": END, "at": time.monotonic()})

    def _guest(self, out: Path, events: IO[str]) -> None:
        option = self._option
        files = sorted({name.split("::")[0] for name in self.tests})
        argv = [
            "python3", "-m", "pytest", "-c", "/dynamos/pyproject.toml", "--rootdir=/dynamos", "-p", "no:cacheprovider",
            f"--tb={option.tbstyle}", *(["--showlocals"] if option.showlocals else []),
            *["-v"] * option.verbose, *(["-s"] if option.capture == "no" else []),
            *(["--thorough"] if option.thorough else []),
            *(f"/dynamos/{file}" for file in files),
        ]  # fmt: skip

        def show(text: str) -> None:
            if option.capture == "no":
                os.write(1, text.encode())

        def stop() -> str:
            self._hear(events, out)
            return self._stop_reason

        self.release = root.ensure(self._kind["kernel"]).release
        result = machine.run(
            argv, timeout=GUEST_SECONDS, out_dir=out, stop=stop, on_output=show, expected=self._trouble, **self._kind
        )
        if result.status not in (0, 1):
            tail = "\n".join(result.output.splitlines()[-40:])
            self.error = f"pytest in the guest ended with status {result.status}:\n{tail}"

    def _hear(self, events: IO[str], out: Path) -> None:
        """Pass on what the guest has told meanwhile; stop it if a test takes too long."""
        now = time.monotonic()
        *lines, self._part = (self._part + events.read()).split("\n")
        for line in lines:
            event = {**json.loads(line), "at": now}
            if event["event"] == "start":
                limit = self.tests[event["nodeid"]]
                self._deadline, self._late = now + limit, f"the test did not end within {limit:g} s"
            elif event["event"] == "finish":
                self._deadline = 0.0
            elif event.get("outcome") == "failed":
                event["console"] = _said(out, event["nodeid"])
            self._news.put(event)
        if self._deadline and now > self._deadline:
            self._stop_reason = self._stop_reason or self._late


def _said(out: Path, test: str) -> str:
    """Return what the kernel wrote to its console since a test began; "" if its guest is gone."""
    try:
        text = (out / ".lab" / "console").read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return text.rpartition(f"{TEST_SIGN}{test}")[2].partition(TEST_SIGN)[0].strip()
