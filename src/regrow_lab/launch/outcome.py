"""What every launcher is, takes and returns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from regrow_lab.config import RunConfig
from regrow_lab.launch.progress import Progress
from regrow_lab.store import folders

TRIES = 3
"""How often a run is started whose process dies."""
CLAIMED_SECONDS = 0.5
"""Time to wait after a run of another process was met."""


class WorkerError(Exception):
    """No process can be started that trains."""


@dataclass
class Outcome:
    """What became of the runs: how many were finished before and now, which diverged, which failed and why."""

    before: int = 0
    finished: int = 0
    diverged: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        """Runs that were finished or failed now."""
        return self.finished + len(self.failed)

    def count(self, run: RunConfig, result: dict[str, Any]) -> None:
        """Take in a run that was finished now."""
        self.finished += 1
        if result["status"] == "diverged":
            self.diverged.append(run.run_id)

    def fail(self, run: RunConfig, why: str, progress: Progress) -> None:
        """Take in a run that cannot be trained, and say so; what many fail of is said once."""
        if why not in self.failed.values():
            progress.note(f"{run.run_id} failed: {why}")
        self.failed[run.run_id] = why

    def reasons(self) -> dict[str, list[str]]:
        """Why runs failed -> those that did."""
        found: dict[str, list[str]] = {}
        for run_id, why in self.failed.items():
            found.setdefault(why, []).append(run_id)
        return found


More = Callable[[Outcome], Sequence[RunConfig]]
"""Asked each time that runs have ended, with what has become of all: the runs that are to be trained besides."""


def no_more(outcome: Outcome) -> Sequence[RunConfig]:
    """Nothing besides: the runs of a study are known from the start."""
    return ()


class Launcher(Protocol):
    """Trains runs."""

    @property
    def at_a_time(self) -> int:
        """How many runs it trains at a time."""
        ...

    def check(self) -> None:
        """Raise ValueError, with the remedy, if this cannot work here. Nothing is written."""

    def launch(self, runs: Sequence[RunConfig], directory: Path, progress: Progress, more: More = no_more) -> Outcome:
        """Train all `runs` that are not finished under `directory`, each once, and say what became of them.

        It may be killed at any moment and called again. What `more` gives while it works is trained as well.
        """
        ...


def unfinished(runs: Sequence[RunConfig], directory: Path) -> list[RunConfig]:
    """Those of `runs` that have no result yet."""
    return [config for config in runs if not folders.is_finished(folders.run_folder(directory, config))]
