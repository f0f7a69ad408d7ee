"""Updates that take effect whenever the daemon starts, and the guard that keeps one from killing each boot.

Addresses are compiled into an update, so it is built anew from its folder. Before it is activated it is noted on the
disk; the note goes when the daemon has lived with it for some minutes, when it ends in peace, or when the update could
not be activated. One whose note is still there was young when the machine or the daemon died: it is tried once more,
and then no more.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import threading
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from dynamos_ng.build import description
from dynamos_ng.closing import Closing
from dynamos_ng.errors import DynamosError, UsageError
from dynamos_ng.manager import Manager
from dynamos_ng.model import Change, EnabledUpdate, PendingUpdate
from dynamos_ng.pending import Pending, take_effect

log = logging.getLogger("dynamosd")

UPDATES = Path("/etc/dynamos/updates.d")
STATE = Path("/var/lib/dynamos")
#: After so many seconds an update is not taken for the cause of what happens to the machine.
YOUNG = 300.0
#: How often an update is activated on its own while its note is never taken away.
ATTEMPTS = 2


class Notes:
    """How often updates were activated on their own and not heard of again, in a file.

    What a method writes is on the disk when it returns.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()

    def read(self) -> dict[str, int]:
        """Return the attempts by update; a file that is damaged holds none."""
        try:
            return {name: int(attempts) for name, attempts in json.loads(self._file.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.error("%s is damaged, and taken for empty: %s", self._file, error)
            return {}

    def add(self, name: str) -> None:
        """Note that an update is about to be activated."""
        with self._lock:
            notes = self.read()
            self._write(notes | {name: notes.get(name, 0) + 1})

    def drop(self, *names: str) -> None:
        """Forget updates, or all."""
        with self._lock:
            notes = self.read()
            left = {name: attempts for name, attempts in notes.items() if names and name not in names}
            if left != notes:
                self._write(left)

    def _write(self, notes: dict[str, int]) -> None:
        _replace(self._file, json.dumps(notes))


class Boot(Closing):
    """The updates that are enabled: one file each in a folder of the administrator's."""

    def __init__(self, manager: Manager, pending: Pending, updates: Path = UPDATES, state: Path = STATE) -> None:
        """Begin to let them take effect, in the background."""
        _make(state)
        self._manager = manager
        self._pending = pending
        self._updates = updates
        self._notes = Notes(state / "young.json")
        self._trouble: dict[str, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="boot")
        self._thread.start()

    def close(self) -> None:
        """End in peace: whatever happens to the machine from now on is not the updates' doing."""
        self._stop.set()
        self._thread.join()
        try:
            self._notes.drop()
        except DynamosError as error:
            log.error("%s; what was activated will be taken for the cause of the machine's death", error)

    def enabled(self) -> tuple[EnabledUpdate, ...]:
        """Return the updates that are enabled, and why one of them did not take effect."""
        return tuple(map(self._told, sorted(self._updates.glob("*.toml"))))

    def enable(
        self, folder: str, *, edition: int | None = None, classes: Sequence[int] | None = None
    ) -> EnabledUpdate:
        """Let the update in FOLDER take effect whenever the daemon starts, from the next time on.

        `edition` and `classes` are those of `activate`. The guard forgets what it had noted of it.
        """
        place = Path(folder).resolve()
        name = description.read(place).name
        check_safe(place)
        lines = [f"folder = {json.dumps(str(place), ensure_ascii=False)}"]
        lines += [f"edition = {edition}"] if edition is not None else []
        lines += [f"classes = {list(classes)}"] if classes is not None else []
        _make(self._updates)
        file = self._updates / f"{name}.toml"
        _replace(file, "\n".join([*lines, ""]))
        self._forget(name)
        return self._told(file)

    def disable(self, name: str) -> EnabledUpdate:
        """Let an update take effect by itself no more; one that is active stays so."""
        module = description.module_name(name)
        for file in self._updates.glob("*.toml"):
            if description.module_name(file.stem) == module:
                told = self._told(file)
                try:
                    file.unlink()
                except OSError as error:
                    raise DynamosError(f"{file}: cannot be removed: {error.strerror}") from None
                self._forget(file.stem)
                return told
        known = ", ".join(update.name for update in self.enabled()) or "none"
        raise UsageError(f"{name}: this update is not enabled; enabled: {known}")

    def _forget(self, name: str) -> None:
        self._notes.drop(name)
        self._trouble.pop(name, None)

    def _told(self, file: Path) -> EnabledUpdate:
        try:
            return replace(_read(file), trouble=self._trouble.get(file.stem, ""))
        except UsageError as error:
            return EnabledUpdate(file.stem, "", trouble=str(error))

    def _run(self) -> None:
        for file in sorted(self._updates.glob("*.toml")):
            if self._stop.is_set():
                return
            try:
                self._begin(_read(file))
            except DynamosError as error:
                self._trouble[file.stem] = str(error)
                log.error("%s is enabled, and it cannot take effect: %s", file.stem, error)
            except Exception:
                self._trouble[file.stem] = "an internal error; see dynamosd's log"
                log.exception("%s is enabled: an internal error", file.stem)
        if not self._stop.wait(YOUNG):
            try:
                self._notes.drop()
            except DynamosError as error:
                log.error("%s; what was activated is noted as young for longer", error)

    def _begin(self, update: EnabledUpdate) -> None:
        """Let an update take effect, unless it has already, or the machine has died of it."""
        module = description.module_name(update.name)
        if any(loaded.module == module for loaded in self._manager.updates()):
            return
        if any(waiting.name == update.name for waiting in self._pending.waiting()):
            return
        attempts = self._notes.read().get(update.name, 0)
        if attempts >= ATTEMPTS:
            raise DynamosError(
                f"held back: {attempts} times the machine or the daemon died within {YOUNG / 60:g} minutes of its "
                f"activation; to let it try again: dynamos enable {update.folder}; to give it up: "
                f"dynamos disable {update.name}"
            )
        folder = Path(update.folder)
        wanted = description.read(folder)
        if wanted.name != update.name:
            raise UsageError(f"{folder} holds update {wanted.name} now: enable it again")
        check_safe(folder)
        self._notes.add(update.name)
        try:
            begin: Callable[[], Change | PendingUpdate]
            if wanted.modules:
                begin = partial(self._pending.add, update.folder, edition=update.edition, classes=update.classes)
            else:
                begin = partial(take_effect, self._manager, folder, update.edition, update.classes)
            done = self._pending.journal.by_itself("enable", {"folder": update.folder}, begin)
        except DynamosError:
            self._notes.drop(update.name)
            raise
        log.info("%s is enabled: %s", update.name, "activated" if isinstance(done, Change) else "waits for its module")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as error:
        raise DynamosError(f"{folder}: cannot be made: {error.strerror}") from None


def _replace(file: Path, text: str) -> None:
    """Give a file a new text as a whole, and see it on the disk."""
    new = file.with_suffix(".new")
    try:
        with new.open("w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(new, file)
        folder = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise DynamosError(f"{file}: cannot be written: {error.strerror}") from None


def _read(file: Path) -> EnabledUpdate:
    """Read an enabled update's file; UsageError says what is wrong in it."""
    try:
        table = tomllib.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"{file}: {error}") from None
    folder, edition, classes = table.get("folder"), table.get("edition"), table.get("classes")
    if not isinstance(folder, str) or not folder.startswith("/"):
        raise UsageError(f"{file}: folder: the absolute path of an update's folder belongs here")
    if edition is not None and not isinstance(edition, int):
        raise UsageError(f"{file}: edition: a number belongs here")
    if classes is not None and not (isinstance(classes, list) and all(isinstance(one, int) for one in classes)):
        raise UsageError(f"{file}: classes: a list of numbers belongs here")
    return EnabledUpdate(file.stem, folder, edition, None if classes is None else tuple(classes))


def check_safe(folder: Path) -> None:
    """Raise UsageError if anybody but root could change what is in a folder: it will run in the kernel unasked."""
    for path in (*folder.rglob("*"), folder, *folder.parents):
        found = path.lstat()
        shared = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX
        if stat.S_ISLNK(found.st_mode):
            raise UsageError(f"{path}: it is a symbolic link; what is enabled must be root's own files")
        if found.st_uid or (found.st_mode & 0o022 and not shared):
            raise UsageError(
                f"{path}: others than root may write there, and could have code of theirs run in the kernel: "
                "chown it to root and chmod go-w"
            )
