"""A worker of a search: takes a trial, trains its runs, says how good they are, until there are enough."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime, timedelta
from multiprocessing.connection import Connection, wait
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import TrialState

from regrow_lab import store
from regrow_lab.config import RunConfig
from regrow_lab.tuning import queue
from regrow_lab.tuning.errors import SearchError, database_error, in_a_line
from regrow_lab.tuning.journal import Journal
from regrow_lab.tuning.problem import Point, Problem, in_words
from regrow_lab.tuning.search import Search, check_unchanged, deleted
from regrow_lab.tuning.storage import UnreachableError, open_storage, quiet

WAIT_SECONDS = 0.5
"""Time before another look at a run of another process, or at the trials of others."""
START_SECONDS = 60
"""Time that a worker has between the beginning of a trial in a database and its first sign of life."""
WORKER = "worker"
"""Attribute of a trial: who works on it. It is there once the trial has a sign of life."""
PATIENCE_SECONDS = 20
"""How long a database may be away."""
SEEDS = 2**32
"""How many seeds a sampler can have."""


def work(connection: Connection, options: Search, problems: Sequence[Problem]) -> None:
    """A worker process: every search in turn, until each has its trials. It never ends with a traceback."""
    stop = False

    def end(_: int, __: object) -> None:
        nonlocal stop
        stop = True

    for warning in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(warning, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from regrow_lab.machine import take_threads

    take_threads(1)
    try:
        for problem in problems:
            worker = Worker(options, problem, lambda line: connection.send(("line", line)), lambda: stop)
            worker.run_with_patience()
    except store.StoppedError:
        os._exit(143)
    except Exception as error:  # whatever ended this process, the parent shall say it
        with suppress(OSError):  # then the parent has ended
            connection.send(("error", in_a_line(error, options.directory)))


class Worker:
    """Takes trials of one search until it has enough of them."""

    def __init__(
        self, options: Search, problem: Problem, say: Callable[[str], None], stopping: Callable[[], bool]
    ) -> None:
        self.options = options
        self.problem = problem
        self.say = say
        self.stopping = stopping
        self.name = options.study_name(problem)
        self.in_hand: int | None = None

    def run_with_patience(self) -> None:
        """Do the search; a database that is away for a moment is waited for.

        Raises:
            SearchError: the search or its folder was deleted or changed; whatever else went wrong follows from that.
            store.StoppedError: it was told to stop.
        """
        options, failed, deadline = self.options, -math.inf, 0.0
        study: Any = None
        while True:
            try:
                storage = open_storage(options.url, options.directory, options.heartbeat_seconds)
                try:
                    study = optuna.load_study(study_name=self.name, storage=storage)
                except KeyError:
                    raise deleted(options, self.name) from None
                return self._run(study)
            except (store.StoppedError, SearchError):
                raise
            except Exception as error:  # a database may raise anything; what is not its own is raised again
                if not isinstance(error, UnreachableError) and database_error(error) is None:
                    options.check_folder()
                    if study is not None:
                        check_unchanged(options, self.problem, study)
                    raise
                if self.stopping():
                    raise store.StoppedError from None
                now = time.monotonic()
                if now - failed > PATIENCE_SECONDS:  # it has answered in between
                    deadline = now + PATIENCE_SECONDS
                failed = now
                if now > deadline:
                    raise
                time.sleep(1)

    def _run(self, study: Any) -> None:
        """Take trials until there are enough; then wait for those of other workers, in case one dies."""
        options, problem = self.options, self.problem
        if self.in_hand is not None:
            self._give_up(study, self.in_hand)
        while True:
            options.check_folder()
            check_unchanged(options, problem, study)
            self._take_over(study)
            for point in queue.owed(problem, study.get_trials(deepcopy=False), options.trials):
                study.enqueue_trial(point)
            trials = study.get_trials(deepcopy=False)
            if not any(trial.state == TrialState.WAITING for trial in trials):
                if queue.is_done(problem, trials, options.trials):
                    self._train_again_what_is_gone(trials)
                    return
                if len(queue.living(problem, trials)) >= options.trials:
                    if self.stopping():
                        raise store.StoppedError
                    time.sleep(WAIT_SECONDS)
                    continue
            if self.stopping():
                raise store.StoppedError
            self._take(study)

    def _take_over(self, study: Any) -> None:
        """Give up, for their workers, the trials whose workers are dead; their points are owed then."""
        stale = set(study._storage._get_stale_trial_ids(study._study_id))
        long_ago = datetime.now() - timedelta(seconds=START_SECONDS)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            unsigned = WORKER not in trial.user_attrs and trial.datetime_start < long_ago
            if trial._trial_id in stale or (unsigned and not isinstance(study._storage, Journal)):
                self._give_up(study, trial._trial_id)

    def _give_up(self, study: Any, trial_id: int) -> None:
        with suppress(UpdateFinishedTrialError, KeyError):
            study._storage.set_trial_state_values(trial_id, TrialState.FAIL)
        _release(study._storage, trial_id)
        if trial_id == self.in_hand:
            self.in_hand = None

    def _take(self, study: Any) -> None:
        """One trial, the next in the queue or a new one. Whatever breaks it off, it is given up and its point owed."""
        storage = study._storage
        with quiet(), storage.beginning() if isinstance(storage, Journal) else nullcontext():
            trial = study.ask()
            self.in_hand = trial._trial_id
            storage.record_heartbeat(trial._trial_id)
        try:
            with _held(storage, trial._trial_id, self.options.heartbeat_seconds):
                value, state = self._try(trial)
                study.tell(trial, value, state, skip_if_finished=True)
        except UpdateFinishedTrialError:
            pass  # it was taken for dead, and another has its point
        except BaseException:
            with suppress(Exception):
                self._give_up(study, trial._trial_id)
            raise
        _release(storage, trial._trial_id)
        self.in_hand = None

    def _try(self, trial: Any) -> tuple[float | None, TrialState]:
        """Train the runs of a trial."""
        problem, options = self.problem, self.options
        trial.set_user_attr(WORKER, f"{os.getpid()} on {socket.gethostname()}")
        trials = trial.study.get_trials(deepcopy=False)
        place = queue.place_of(problem, trial.number, trials)
        if queue.is_surplus(problem, trial.number, place, trials, options.trials):
            return None, TrialState.FAIL
        trial.set_user_attr(queue.PLACE, place)
        # The randomness of each place is its own: a search that goes on suggests what an undisturbed one would have.
        seed = (options.seed * 100_003 + place) % SEEDS
        trial.study.sampler = optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        point = problem.suggest(trial)
        prune = options.prune and problem.may_be_pruned(point)
        runs = problem.runs(point)
        trial.set_user_attr("runs", [run.run_id for run in runs])
        scores: list[float] = []
        for number, run in enumerate(runs):
            scores.append(self._score(run))
            mean = statistics.fmean(scores)
            trial.report(mean, number)
            others = trial.study.get_trials(deepcopy=False) if prune and number + 1 < len(runs) else []
            if queue.is_hopeless(mean, number, others):
                seeds = f"{number + 1} seed{'s' if number else ''}"
                self._say(place, point, f"given up after {seeds} at {mean:.2f} %")
                return None, TrialState.PRUNED
        self._say(place, point, f"{statistics.fmean(scores):.2f} %")
        return statistics.fmean(scores), TrialState.COMPLETE

    def _score(self, run: RunConfig) -> float:
        """Validation accuracy in percent; of a grid without validation data the test accuracy; 0 where it diverged."""
        from regrow_lab.train import train

        options = self.options
        while True:
            options.check_folder()
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
                time.sleep(WAIT_SECONDS)
                continue
            measured = result["validation_accuracy"] if run.validation else result["test_accuracy"]
            return 0.0 if measured is None else float(measured)

    def _train_again_what_is_gone(self, trials: Sequence[Any]) -> None:
        """Runs of finished trials that the folder has no more. With a database each folder has a part of them."""
        if self.options.url is not None:
            return
        for trial in trials:
            if queue.is_finished(self.problem, trial):
                for run in self.problem.runs(queue.point_of(trial))[: len(trial.intermediate_values)]:
                    if not store.is_finished(store.run_folder(self.options.directory, run)):
                        self.say(f"{run.run_id} is in the folder no more: it is trained again")
                        self._score(run)

    def _say(self, place: int, point: Point, outcome: str) -> None:
        self.say(
            f"{self.problem.name:<12} trial {place + 1:3}/{self.options.trials}  "
            f"{in_words(self.problem, point):<40} {outcome}"
        )


@contextmanager
def _held(storage: BaseHeartbeat, trial_id: int, seconds: float) -> Iterator[None]:
    """Give more signs of life for a trial; one that cannot be given is left out."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(seconds):
            with suppress(Exception):
                storage.record_heartbeat(trial_id)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _release(storage: Any, trial_id: int) -> None:
    if isinstance(storage, Journal):
        storage.release(trial_id)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    sys.stderr.flush()
    os._exit(1)
