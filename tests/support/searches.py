"""Searches for tests, whose runs take no time, and to which anything may happen at any moment."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from sqlalchemy import event as sqlalchemy_event

from regrow_lab.commands.tune.optuna_storage import address_of, open_storage
from regrow_lab.commands.tune.search import search
from regrow_lab.commands.tune.trials import Settings
from regrow_lab.config import RunConfig
from regrow_lab.launch.outcome import More, Outcome, no_more
from regrow_lab.launch.progress import Progress, SearchProgress
from regrow_lab.store import folders, whole_files
from regrow_lab.studies.table4 import Problem

TRIALS = 5
PROBLEM = Problem(name="erk-s0.9", base=RunConfig(method="rigl", sparsity=0.9, validation=130), seeds=2)
Event = Callable[[str], object]
"""Called before everything that is committed to the storage ("commit"), and before every training ("run")."""


class Killed(BaseException):
    """Stands for SIGKILL."""


class Killer:
    """Kills the process before its n-th event, from 0."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def __call__(self, kind: str) -> None:
        self.left -= 1
        if self.left < 0:  # the dead write no more
            raise Killed


def score_of(run: RunConfig) -> float:
    return 90 - 50 * abs(run.drop_fraction - 0.2) - run.every / 100 - run.seed


@dataclass
class Instant:
    """A launcher that trains in no time, the newest runs first where it takes several at a time."""

    at_a_time: int = 1
    score: Callable[[RunConfig], float | None] = score_of
    event: Event = lambda kind: None
    trained: list[str] = field(default_factory=list)

    def check(self) -> None: ...

    def launch(self, runs: Sequence[RunConfig], directory: Path, progress: Progress, more: More = no_more) -> Outcome:
        queue, outcome = deque(runs), Outcome()
        while queue:
            run = queue.popleft() if self.at_a_time == 1 else queue.pop()
            folder = folders.run_folder(directory, run)
            self.event("run")
            assert not folders.is_finished(folder), "nothing is trained twice"
            score = self.score(run)
            result = {"status": "finished" if score else "diverged", "diverged_at": None if score else 3}
            result |= {"test_accuracy": score, "validation_accuracy": score, "train_ratio": 1.0, "seconds": 1.0}
            folder.mkdir(parents=True, exist_ok=True)
            folders.write_config(folder, run)
            whole_files.write_json(folder / "result.json", result)
            self.trained.append(run.run_id)
            outcome.count(run, result)
            progress.run(None, run, result)
            queue.extend(more(outcome))
        return outcome


class Machine:
    """A folder and its storage, in which a search is begun and may end in any way."""

    def __init__(self, directory: Path, *problems: Problem, url: str | None = None, **settings: Any) -> None:
        self.problems = problems or (PROBLEM,)
        options: dict[str, Any] = {"name": "s", "trials": TRIALS, "alone": url is None} | settings
        self.settings = Settings(directory=directory, **options)
        self.address = address_of(url, directory)
        self.launcher = Instant()

    @property
    def file(self) -> Path:
        return Path(str(self.address.database))

    def storage(self) -> RDBStorage:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        return open_storage(self.address, self.settings.heartbeat_seconds)

    def go(self, event: Event = lambda kind: None, console: Console | None = None) -> list[FrozenTrial]:
        """Give the command; returns the trials of the first search."""
        storage = self.storage()
        self.launcher.event = event
        sqlalchemy_event.listen(storage.engine, "commit", lambda connection: event("commit"))
        progress = SearchProgress(console or Console(quiet=True))
        search(self.settings, self.problems, storage, self.launcher, progress)
        return self.trials()

    def study(self, problem: Problem | None = None) -> optuna.Study:
        name = f"{self.settings.name}-{(problem or self.problems[0]).name}"
        return optuna.create_study(storage=self.storage(), study_name=name, direction="maximize", load_if_exists=True)

    def trials(self, problem: Problem | None = None) -> list[FrozenTrial]:
        return self.study(problem).get_trials()


def points(trials: Sequence[FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.params for trial in trials if trial.state == TrialState.COMPLETE]


def wait_until(true: Callable[[], object], seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.1)
