"""Searches for tests: a short one, and what is asked of any."""

import os
import subprocess
import time
from collections.abc import Callable
from typing import Any

import optuna
from optuna.trial import TrialState

from regrow_lab.config import RunConfig
from regrow_lab.tuning.problem import Problem
from regrow_lab.tuning.search import Search
from regrow_lab.tuning.storage import open_storage

SHORT = Problem(
    name="erk-s0.9", base=RunConfig(method="rigl", sparsity=0.9, epochs=1, every=2, validation=130), seeds=2
)


def trials_of(options: Search, problem: Problem = SHORT) -> list[optuna.trial.FrozenTrial]:
    """All trials; none where the search has not begun."""
    storage = open_storage(options.url, options.directory, options.heartbeat_seconds)
    name = options.study_name(problem)
    return [
        trial
        for study in storage.get_all_studies()
        if study.study_name == name
        for trial in storage.get_all_trials(study._study_id)
    ]


def points(trials: list[optuna.trial.FrozenTrial]) -> list[dict[str, Any]]:
    return [trial.params for trial in trials if trial.state == TrialState.COMPLETE]


def wait_until(true: Callable[[], object], seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.1)


def children(words: str) -> list[int]:
    """Processes of ours whose command line has these words."""
    found = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", words], capture_output=True, text=True)
    return [int(word) for word in found.stdout.split()]
