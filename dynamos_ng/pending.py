"""Updates that wait for a module: they are built, loaded and activated when it comes.

Addresses are compiled into an update, so nothing of it can be made before. Between the module's arrival and the
activation its functions run as they are.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from dynamos_ng import modules
from dynamos_ng.build import description
from dynamos_ng.build.update import build
from dynamos_ng.closing import Closing
from dynamos_ng.errors import DynamosError, UsageError
from dynamos_ng.journal import Journal
from dynamos_ng.manager import Manager
from dynamos_ng.model import Change, PendingUpdate
from dynamos_ng.uevents import Uevents

log = logging.getLogger("dynamosd")


class Pending(Closing):
    """The updates that wait. They are kept in a file, for the daemon that comes after this one."""

    def __init__(self, manager: Manager, file: Path, kept: Journal) -> None:
        """Go on waiting for what FILE names; what has come in the meantime takes effect in the background."""
        self._manager = manager
        self.journal = kept
        self._file = file
        self._lock = threading.Lock()  # of _waiting; held while one takes effect, and taken before the manager's
        self._waiting = {update.name: update for update in _read(file)}
        self._uevents = Uevents()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; what is waiting stays in the file."""
        self._uevents.stop()
        self._thread.join()
        self._uevents.close()

    def waiting(self) -> tuple[PendingUpdate, ...]:
        """Return the updates that wait."""
        return tuple(dict(self._waiting).values())

    def add(
        self, folder: str, *, edition: int | None = None, classes: Sequence[int] | None = None
    ) -> PendingUpdate | Change:
        """Let the update in FOLDER take effect as soon as the modules that it names are loaded, or now if they are.

        `edition` and `classes` are those of `activate`. What cannot take effect now is refused and does not wait.
        """
        wanted = description.read(Path(folder))
        if not wanted.modules:
            raise UsageError(f"{wanted.name}: it changes no module's functions: there is nothing to wait for")
        given = None if classes is None else tuple(classes)
        update = PendingUpdate(wanted.name, str(Path(folder).resolve()), wanted.modules, edition, given)
        if any(loaded.module == wanted.module for loaded in self._manager.updates()):
            raise UsageError(f"{wanted.name}: it is loaded already")
        with self._lock:
            self._set(update)
            if not _all_loaded(update):
                return update
            try:
                return take_effect(self._manager, Path(update.folder), edition, given)
            finally:
                self._drop(update.name)

    def forget(self, name: str) -> bool:
        """Let an update wait no longer; return whether it did."""
        if self._find(name) is None:
            return False
        with self._lock:
            return self._drop(name)

    def _find(self, name: str) -> str | None:
        module = description.module_name(name)
        return next((known for known in self._waiting if description.module_name(known) == module), None)

    def _set(self, update: PendingUpdate) -> None:
        self._waiting = self._waiting | {update.name: update}
        self._write()

    def _drop(self, name: str) -> bool:
        found = self._find(name)
        if found is None:
            return False
        self._waiting = {known: update for known, update in self._waiting.items() if known != found}
        self._write()
        return True

    def _write(self) -> None:
        """Replace the file as a whole, so that it is never half a file."""
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps([asdict(update) for update in self._waiting.values()], indent=2))
        os.replace(new, self._file)

    def _listen(self) -> None:
        self._try(self.waiting())
        while (event := self._uevents.wait()) is not None:
            action, path = event
            kind, _, name = path.removeprefix("/").partition("/")
            if action == "add" and kind == "module":
                self._try(update for update in self.waiting() if name in update.modules)
            elif action == "lost":
                self._try(self.waiting())

    def _try(self, updates: Iterable[PendingUpdate]) -> None:
        """Let updates take effect whose modules are there; one that cannot goes on waiting, for another load."""
        for update in updates:
            with self._lock:
                if self._waiting.get(update.name) != update or not _all_loaded(update):
                    continue
                try:
                    self.journal.by_itself(
                        "load_when_module", {"folder": update.folder}, partial(_take_effect, self._manager, update)
                    )
                    self._drop(update.name)
                    log.info("%s: %s is loaded: activated", update.name, ", ".join(update.modules))
                except DynamosError as error:
                    log.error("%s: %s is loaded, and it cannot take effect: %s", update.name, update.modules[0], error)
                    self._set(replace(update, failure=str(error)))
                except Exception:
                    log.exception("%s: an internal error", update.name)
                    self._set(replace(update, failure="an internal error; see dynamosd's log"))


def _take_effect(manager: Manager, update: PendingUpdate) -> Change:
    return take_effect(manager, Path(update.folder), update.edition, update.classes)


def take_effect(manager: Manager, folder: Path, edition: int | None, classes: Sequence[int] | None) -> Change:
    """Build, load and activate the update in FOLDER; nothing of it is left if one of these fails."""
    with tempfile.TemporaryDirectory(prefix="dynamos-pending-") as place:
        file = build(folder, Path(place))
        with manager.lock:
            if any(update.module == file.stem for update in manager.updates()):
                name = description.update_name(file.stem)
                raise UsageError(f"{name}: it has been loaded meanwhile, and stays as it is")
            loaded = manager.load(str(file))
            try:
                return manager.activate(loaded.name, edition=edition, classes=classes)
            except DynamosError:
                manager.unload(loaded.name)
                raise


def _all_loaded(update: PendingUpdate) -> bool:
    return all(modules.live(name) for name in update.modules)


def _read(file: Path) -> list[PendingUpdate]:
    try:
        entries = json.loads(file.read_text())
        return [
            PendingUpdate(
                entry["name"], entry["folder"], tuple(entry["modules"]), entry["edition"],
                None if entry["classes"] is None else tuple(entry["classes"]), entry["failure"],
            )
            for entry in entries
        ]  # fmt: skip
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.error("%s: %s: no update waits for a module any more; load them again", file, error)
        return []
