"""``dynamos lab mass``: hundreds of functions of a guest's kernel redirected at once under load; names a culprit.

The functions are picked by a seed among those that the load calls, or are those of a given update. An oops ends
the guest, so the search for the culprit is done from outside: a new guest for each part of the functions.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dynamos_ng.errors import DynamosError, GuestDied, GuestTimeout, LabError, UsageError
from dynamos_ng.lab import machine, root

#: As the guest sees them.
PLAN, REPORT, UPDATE = Path("/out/plan.json"), Path("/out/report.json"), Path("/out/update")
#: The guest's status when the plan could not be carried out at all, which says nothing of the functions.
OUT_OF_REACH = 3
GUEST_SECONDS = 900.0


class Misbehaved(DynamosError):
    """The guest's kernel did not survive, or did not do its work; the message says what was seen."""


@dataclass(frozen=True)
class Plan:
    """What to redirect: the functions NAMES, or all of the folder `update`, or FUNCTIONS that the guest picks by SEED.

    `seconds` is how long they stay redirected. Functions of an update get its newest editions, others are cloned.
    `kernel` and `cpu` are those of machine.run.
    """

    seed: int
    functions: int
    seconds: float
    names: tuple[str, ...] = ()
    update: Path | None = None
    kernel: str = root.DEFAULT
    cpu: str = "max"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: what the guest reported of it, and what was wrong, if anything."""

    report: dict[str, Any] = field(default_factory=dict)
    wrong: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """Return the functions that were redirected."""
        return tuple(self.report.get("names", ()))


def attempt(plan: Plan, show: Callable[[str], None]) -> Outcome:
    """Run a plan in a guest of its own; LabError or UsageError when it could not be tried."""
    with machine.out_folder() as out:
        given = {**asdict(plan), "update": None}
        (out / PLAN.name).write_text(json.dumps(given))
        if plan.update:
            shutil.copytree(plan.update, out / UPDATE.name)
        try:
            result = machine.run(
                ["python3", "-m", "dynamos_ng.lab.mass_guest"],
                timeout=GUEST_SECONDS + plan.seconds, out_dir=out, on_output=show, kernel=plan.kernel, cpu=plan.cpu,
            )  # fmt: skip
            wrong = result.output.strip().rpartition("\n")[2] if result.status else ""
            if result.status not in (0, 1):
                raise LabError(f"lab mass: the guest could not try it:\n{result.output.strip()}")
        except (GuestDied, GuestTimeout) as error:
            wrong = str(error)
        written = out / REPORT.name
        report = json.loads(written.read_text()) if written.exists() else {}
    if wrong and not report.get("names"):
        raise LabError(f"lab mass: the guest failed before any function was chosen: {wrong}")
    return Outcome(report, wrong)


def smallest(names: Sequence[str], fails: Callable[[Sequence[str]], bool]) -> tuple[str, ...]:
    """Return a part of NAMES that fails, and of which no single name can be left out (Zeller's ddmin).

    `fails` is not asked about NAMES itself, which are known to fail, nor about none.
    """
    rest, parts = tuple(names), 2
    while len(rest) > 1:
        cuts = [len(rest) * number // parts for number in range(parts + 1)]
        chunks = [rest[low:high] for low, high in itertools.pairwise(cuts)]
        others = [tuple(name for name in rest if name not in chunk) for chunk in chunks] if parts > 2 else []
        if found := next((chunk for chunk in chunks if fails(chunk)), None):
            rest, parts = found, 2
        elif found := next((other for other in others if fails(other)), None):
            rest, parts = found, parts - 1
        elif parts == len(rest):
            break
        else:
            parts = min(2 * parts, len(rest))
    return rest


def read_names(path: Path) -> tuple[str, ...]:
    """Return the functions that a file names, one a line; UsageError if there is none."""
    try:
        names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    if not names:
        raise UsageError(f"{path}: no functions in it; one name a line is wanted")
    return names


def check_update(folder: Path) -> None:
    """Refuse an update that no load can be put on, or whose editions are not the policy's to choose; UsageError."""
    from dynamos_ng.build import description

    update = description.read(folder)
    why = ""
    if not update.functions:
        why = "it has no functions"
    elif update.phased or update.consistent:
        why = "its functions switch task by task"
    elif any(change.adapt for change in update.functions):
        why = "a BPF program chooses its editions"
    if why:
        raise UsageError(f"lab mass: {update.name}: {why}: try it by hand, with dynamos lab shell")


def run(plan: Plan, bisect: bool, say: Callable[[str], None], names_file: Path | None = None) -> Outcome:
    """Carry a plan out and return how it ended; Misbehaved, with the culprits if BISECT, when it failed.

    `names_file` gets the functions' names, for a run with the same ones.
    """
    if names_file:
        machine.check_file(names_file)
    say(f"seed {plan.seed}\n")
    outcome = attempt(plan, say)
    if names_file:
        names_file.write_text("".join(f"{name}\n" for name in outcome.names))
    if not outcome.wrong:
        return outcome
    if not bisect:
        raise Misbehaved(f"lab mass: {outcome.wrong}\nsearch for the culprit with --bisect --seed {plan.seed}")
    last = outcome

    def fails(names: Sequence[str]) -> bool:
        nonlocal last
        tried = attempt(replace(plan, functions=0, names=tuple(names)), lambda _: None)
        say(f"{len(names)} functions: {'fail' if tried.wrong else 'good'}\n")
        last = tried if tried.wrong else last
        return bool(tried.wrong)

    say(f"{len(outcome.names)} functions: fail\n")
    culprits = smallest(outcome.names, fails)
    word = "culprit" if len(culprits) == 1 else f"{len(culprits)} functions fail together, and no fewer"
    raise Misbehaved(f"lab mass: {word}: {' '.join(culprits)}\n{last.wrong}")


def summary(outcome: Outcome) -> str:
    """Return a run's figures in a few lines."""
    report = outcome.report
    entered = [count for count in report["entered"].values() if count]
    return (
        f"{len(outcome.names)} functions redirected at once, {len(report['hot'])} of them seen in the load before; "
        f"{len(report['refused'])} others were refused by the rewriter\n"
        f"{len(entered)} entered, {sum(entered)} calls; all counters balance, everything is removed again"
    )
