"""A search whose runs take no time, in the test's own process, and to which anything may happen at any moment."""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest
from searches import trials_of

from regrow_lab import store
from regrow_lab.config import RunConfig
from regrow_lab.tuning import errors, worker
from regrow_lab.tuning.journal import Journal, JournalFile
from regrow_lab.tuning.problem import Problem
from regrow_lab.tuning.search import Search, begin
from regrow_lab.tuning.worker import Worker

TRIALS = 5
PROBLEM = Problem(name="erk-s0.9", base=RunConfig(method="rigl", sparsity=0.9, validation=130), seeds=2)
Event = Callable[[str], None]
"""Called before every written line ("line"), every lock of a trial ("lock") and every training ("run")."""


class Killed(BaseException):
    """Stands for SIGKILL."""


class Killer:
    """Kills the process before its n-th event, from 0; if that is a written line, half of it may be there."""

    def __init__(self, moment: int) -> None:
        self.left = moment

    def __call__(self, kind: str) -> None:
        self.left -= 1
        if self.left < 0:  # the dead write no more
            raise Killed


class Machine:
    """Workers in this process, whose runs take no time, and to which something may happen at any moment."""

    def __init__(self, directory: Path, problem: Problem = PROBLEM) -> None:
        self.problem = problem
        self.options = Search(name="s", directory=directory, trials=TRIALS)
        self.journal = directory / "tune" / "journal.log"
        self.trained: list[str] = []

    def train(self, run: RunConfig, directory: Path, **_: Any) -> dict[str, Any]:
        folder = store.run_folder(directory, run)
        if not store.is_finished(folder):
            self.event("run")
            folder.mkdir(parents=True, exist_ok=True)
            score = 100 - 50 * abs(run.drop_fraction - 0.2) - run.every / 100 - run.seed
            store.write_json(folder / "result.json", {"validation_accuracy": score})
            self.trained.append(run.run_id)
        return store.read_json(folder / "result.json")

    def storage(self) -> Journal:
        return Journal(self.options.directory / "tune", 60)

    def open(self, *_: object) -> Journal:
        self.opened.append(self.storage())
        return self.opened[-1]

    def go(self, event: Event = lambda kind: None) -> None:
        """Give the command."""
        self.event, self.opened = event, []
        append, lock = JournalFile.append_logs, Journal.record_heartbeat

        def append_logs(file: JournalFile, logs: Sequence[dict[str, Any]]) -> None:
            event("line")
            append(file, logs)

        def record_heartbeat(journal: Journal, trial: int) -> None:
            event("lock")
            lock(journal, trial)

        store.open_study(self.options.directory, "tune-digits", 2)
        options = dataclasses.replace(self.options, study=errors.settings(self.options.directory))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("regrow_lab.train.train", self.train)
            patch.setattr(worker, "open_storage", self.open)
            patch.setattr(JournalFile, "append_logs", append_logs)
            patch.setattr(Journal, "record_heartbeat", record_heartbeat)
            try:
                begin(options, [self.problem])
                Worker(options, self.problem, lambda line: None, lambda: False).run_with_patience()
            finally:
                for journal in self.opened:
                    for lock in journal.held.values():
                        lock.close()

    def is_killed(self, moment: int, torn: bool) -> None:
        """Give the command, which is killed; half a line is left behind if it is `torn`."""
        with contextlib.suppress(Killed):
            self.go(Killer(moment))
        if torn and self.journal.exists():
            with self.journal.open("a") as file:
                file.write('{"op_code": 4, "wor')

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        return trials_of(self.options, self.problem)
