"""The search itself: worker processes that each take a trial, train its runs, and say how good they are.

Any number of workers, of one command or of many on many machines, may work on one search. One that dies leaves its
trial to the others, and the runs that it had finished are not trained again.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import statistics
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from regrow_lab import store
from regrow_lab.config import RunConfig
from regrow_lab.launch.outcome import TRIES, WorkerError
from regrow_lab.tuning.problem import Point, Problem, in_words

CLAIMED_SECONDS = 0.5
"""Time before another look at a run of another process, or at the trials of others."""
PRUNED_SHARE = 25.0
"""Percent of the trials, the worst ones after as many seeds, that are given up where pruning is on."""
PRUNING_BEGINS = 5
"""Trials before any is given up."""
ATTRIBUTE = "problem"


class ChangedError(Exception):
    """The search is no longer the one that this command began."""


class _SurplusError(Exception):
    """Enough trials are under way."""


@dataclass(frozen=True, kw_only=True)
class Search:
    """What every worker is told."""

    name: str
    directory: Path
    url: str | None = None
    trials: int = 15
    prune: bool = False
    seed: int = 0
    device: str = "cpu"
    checkpoint_seconds: float = 30.0
    heartbeat_seconds: int = 60

    def study_name(self, problem: Problem) -> str:
        """The name of the problem's study in the storage."""
        return f"{self.name}-{problem.name}"


def search(options: Search, problems: Sequence[Problem], workers: int, say: Callable[[str], None]) -> None:
    """Do the searches, with `workers` processes; `say` gets a line a trial.

    Raises:
        ValueError: the storage cannot be used, or holds another search of this name.
        WorkerError: the workers die, or the search is changed under them; what was trained is kept.
    """
    begin(options, problems)
    context = multiprocessing.get_context("spawn")
    alive: dict[Connection, Any] = {}
    deaths = 0

    def start(number: int) -> None:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, options, tuple(problems), number), daemon=True)
        process.start()
        theirs.close()
        alive[ours] = (number, process)

    try:
        for number in range(workers):
            start(number)
        while alive:
            for connection in wait(list(alive)):
                assert isinstance(connection, Connection)
                try:
                    kind, text = connection.recv()
                except (EOFError, OSError):
                    number, process = alive.pop(connection)
                    process.join()
                    if process.exitcode == 0:
                        continue
                    deaths += 1
                    if deaths == TRIES * workers:
                        raise WorkerError(f"workers died {deaths} times (exit code {process.exitcode})") from None
                    say(f"worker {number} died (exit code {process.exitcode}): another takes its trial over")
                    start(number)
                    continue
                if kind == "error":
                    raise WorkerError(text)
                say(text)
    finally:
        for _, process in alive.values():
            process.terminate()
        for _, process in alive.values():
            process.join()


def begin(options: Search, problems: Sequence[Problem]) -> None:
    """Make the studies that are not there yet, each with its first points queued.

    Raises ValueError if the storage cannot be used, or holds another search of this name.
    """
    import optuna

    from regrow_lab.tuning.storage import open_storage

    storage = open_storage(options.url, options.directory, options.heartbeat_seconds)
    for problem in problems:
        study = optuna.create_study(
            storage=storage, study_name=options.study_name(problem), direction="maximize", load_if_exists=True
        )
        known = study.user_attrs.get(ATTRIBUTE)
        if known is None:
            # Two commands that begin at once may both queue a point: its runs are trained once all the same.
            for point in problem.first:
                study.enqueue_trial(point, skip_if_exists=True)
            study.set_user_attr(ATTRIBUTE, problem.fingerprint())
        elif known != problem.fingerprint():
            raise ValueError(
                f"the storage holds a search {options.study_name(problem)!r} with other settings or seeds: give "
                "another folder with --out, or another name with --name"
            )


def _work(connection: Connection, options: Search, problems: Sequence[Problem], number: int) -> None:
    """A worker process: every search in turn, until each has its trials."""
    stop = False

    def end(_: int, __: object) -> None:
        nonlocal stop
        stop = True

    for warning in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(warning, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    import optuna
    import torch

    from regrow_lab.tuning.storage import DatabaseError, database_errors, open_storage

    torch.set_num_threads(1)
    try:
        with database_errors():
            storage = open_storage(options.url, options.directory, options.heartbeat_seconds)
            for problem in problems:
                worker = Worker(options, problem, lambda line: connection.send(("line", line)), lambda: stop)
                worker.run(optuna.load_study(study_name=options.study_name(problem), storage=storage))
    except store.StoppedError:
        os._exit(143)
    except (ChangedError, DatabaseError, ValueError) as error:
        connection.send(("error", str(error)))


class Worker:
    """Takes trials of one search until it has enough of them."""

    def __init__(
        self, options: Search, problem: Problem, say: Callable[[str], None], stopping: Callable[[], bool]
    ) -> None:
        self.options = options
        self.problem = problem
        self.say = say
        self.stopping = stopping

    def run(self, study: Any) -> None:
        """Take trials until there are enough; then wait for those of other workers, in case one dies."""
        import optuna

        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        states = optuna.trial.TrialState
        if self.options.prune:
            study.pruner = optuna.pruners.PercentilePruner(100 - PRUNED_SHARE, n_startup_trials=PRUNING_BEGINS)
        while True:
            self._check_unchanged(study)
            trials = study.get_trials(deepcopy=False)
            done = sum(trial.state in (states.COMPLETE, states.PRUNED) for trial in trials)
            if done >= self.options.trials:
                return
            queued = any(trial.state == states.WAITING for trial in trials)
            under_way = sum(trial.state == states.RUNNING for trial in trials)
            if done + under_way >= self.options.trials and not queued:
                optuna.storages.fail_stale_trials(study)
                time.sleep(CLAIMED_SECONDS)
                continue
            study.optimize(self._objective, n_trials=1, catch=(_SurplusError,))
            if self.stopping():
                raise store.StoppedError

    def _objective(self, trial: Any) -> float:
        import optuna

        others = trial.study.get_trials(deepcopy=False)
        before = sum(other.number < trial.number and other.state != optuna.trial.TrialState.FAIL for other in others)
        if before >= self.options.trials:
            raise _SurplusError  # several workers took the last trial at once
        # Each trial has randomness of its own, so a search that goes on suggests what an undisturbed one would have.
        trial.study.sampler = optuna.samplers.TPESampler(
            seed=self.options.seed * 100_003 + trial.number, constant_liar=True
        )
        point = self.problem.suggest(trial)
        runs = self.problem.runs(point)
        trial.set_user_attr("worker", f"{os.getpid()} on {socket.gethostname()}")
        trial.set_user_attr("runs", [run.run_id for run in runs])
        scores: list[float] = []
        for number, run in enumerate(runs):
            try:
                scores.append(self._score(run))
            except store.StoppedError:
                trial.study.enqueue_trial(trial.params)
                raise
            trial.report(statistics.fmean(scores), number)
            if self.options.prune and number + 1 < len(runs) and trial.should_prune():
                self._say(before + 1, point, f"given up after {number + 1} seeds at {statistics.fmean(scores):.2f} %")
                raise optuna.TrialPruned
        self._say(before + 1, point, f"{statistics.fmean(scores):.2f} %")
        return statistics.fmean(scores)

    def _score(self, run: RunConfig) -> float:
        """Validation accuracy in percent; of a grid without validation data the test accuracy; 0 where it diverged."""
        from regrow_lab.train import train

        options = self.options
        while True:
            try:
                result = train(
                    run,
                    options.directory,
                    device=options.device,
                    checkpoint_seconds=options.checkpoint_seconds,
                    stopping=self.stopping,
                )
            except store.ClaimedError:
                if self.stopping():
                    raise store.StoppedError from None
                time.sleep(CLAIMED_SECONDS)
                continue
            measured = result["validation_accuracy"] if run.validation else result["test_accuracy"]
            return 0.0 if measured is None else float(measured)

    def _say(self, number: int, point: Point, outcome: str) -> None:
        self.say(
            f"{self.problem.name:<12} trial {number:3}/{self.options.trials}  "
            f"{in_words(self.problem, point):<40} {outcome}"
        )

    def _check_unchanged(self, study: Any) -> None:
        name = self.options.study_name(self.problem)
        try:
            known = study.user_attrs.get(ATTRIBUTE)
        except KeyError:
            raise ChangedError(
                f"the search {name!r} was deleted from the storage while it went on; its runs are in "
                f"{self.options.directory}, and the same command begins it anew with them"
            ) from None
        if known != self.problem.fingerprint():
            raise ChangedError(
                f"the search {name!r} was changed while it went on; its runs are in {self.options.directory}: give "
                "another name with --name to go on with these settings"
            )


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    sys.stderr.flush()
    os._exit(1)
