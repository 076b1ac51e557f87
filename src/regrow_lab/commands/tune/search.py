"""Searches over Optuna's ask and tell.

This process asks Optuna for trials, the launcher that studies use trains their runs, and what a trial is worth is read
from the folders of its runs. Those are the truth: a run that stands there is told, never trained again, whatever the
storage knows. The storage is a file in the folder, which one command at a time may hold; or a database that commands on
many machines share, where Optuna's heartbeats show who has died.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import optuna
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from regrow_lab.commands.tune.optuna_storage import failure, quiet
from regrow_lab.commands.tune.trials import PROBLEM, Search, SearchError, Settings
from regrow_lab.config import RunConfig
from regrow_lab.launch import Launcher, Outcome
from regrow_lab.launch.progress import SearchProgress, counted
from regrow_lab.studies.table4 import Problem

WAIT_SECONDS = 0.5
"""Time between two looks at the trials of others."""
PATIENCE_SECONDS = 20
"""How long a storage may be away."""
Result = TypeVar("Result")


def refuse_others(settings: Settings, problems: Sequence[Problem], storage: RDBStorage) -> None:
    """Raise ValueError if the storage holds a search of such a name that is another one, or none of ours."""
    wanted = {f"{settings.name}-{problem.name}": problem for problem in problems}
    for known in optuna.get_all_study_summaries(storage, include_best_trial=False):
        if known.study_name not in wanted:
            continue
        problem, begun = wanted[known.study_name], known.user_attrs.get(PROBLEM)
        empty = begun is None and not known.n_trials
        if not (empty or begun == problem.fingerprint()) or known.direction != StudyDirection.MAXIMIZE:
            # A folder's report mixes searches of several names; a grid's is that of its study, which knows the seeds.
            also = "" if settings.alone else f", {'or' if problem.grid else 'and'} another name with --name"
            raise ValueError(
                f"the storage holds a search {known.study_name!r} with other settings or seeds: give another folder "
                f"with --out{also}"
            )


def search(
    settings: Settings, problems: Sequence[Problem], storage: RDBStorage, launcher: Launcher, progress: SearchProgress
) -> None:
    """Do the searches that are not done. Whatever goes wrong, what is trained is kept, and the same call goes on.

    Raises:
        SearchError: a run fails, the storage is away for long, or the search in it was changed by others.
        WorkerError: no process can be started that trains.
    """
    at_a_time, handed = launcher.at_a_time, set[str]()

    def step() -> list[RunConfig]:
        """Tell what has finished and ask for as much as can be trained at a time; the runs that are new."""
        while True:
            for each in searches:
                for line in each.tell():
                    progress.trial(line)
            runs = {run.run_id: run for each in searches for run in each.wanted()}
            # Those with the fewest trials in hand first: a search suggests the better, the more it has been told.
            calmest = sorted(searches, key=lambda each: len(each.in_hand))
            if len(runs) >= at_a_time or not any(each.ask() for each in calmest):
                break
        progress.show([each.row() for each in searches])
        new = [run for name, run in runs.items() if name not in handed]
        handed.update(run.run_id for run in new)
        return new

    def more(outcome: Outcome) -> list[RunConfig]:
        for name, why in outcome.failed.items():
            raise SearchError(f"{name} failed: {why}; once that is mended, the same command goes on")
        return _patiently(step, searches)

    with quiet():
        searches = [Search(settings, problem, storage) for problem in problems]
        runs = [run for each in searches for run in each.gone()]
        if runs:
            progress.note(f"{counted(len(runs), 'run')} of finished trials, gone from the folder: trained again")
        with _beating(searches, settings.heartbeat_seconds):
            while runs or not _patiently(lambda: all(each.is_done() for each in searches), searches):
                handed.clear()
                runs = runs or _patiently(step, searches)
                if runs:
                    more(launcher.launch(runs, settings.directory, progress, more))
                else:
                    time.sleep(WAIT_SECONDS)  # others have the last trials in hand
                runs = []


def _patiently(act: Callable[[], Result], searches: Sequence[Search]) -> Result:
    """What `act` gives, which may be done again; a storage that is away for a moment is waited for."""
    deadline = math.inf
    while True:
        try:
            return act()
        except Exception as error:  # a storage may raise anything
            why = failure(error)
            if why is None:
                for each in searches:
                    each.check()  # if it was deleted, whatever else went wrong follows from that
                raise
            deadline = min(deadline, time.monotonic() + PATIENCE_SECONDS)
            if time.monotonic() > deadline:
                raise SearchError(f"the storage is gone ({why}); the same command goes on once it is back") from None
            time.sleep(1)


@contextmanager
def _beating(searches: Sequence[Search], seconds: float) -> Iterator[None]:
    """Give signs of life for what is in hand; at the end, however it comes, leave that to others."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(seconds):
            for each in searches:
                with suppress(Exception):  # the next one may be given
                    each.beat()

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with suppress(Exception):  # the storage may be away; then others see that the heartbeats stop
            for each in searches:
                each.give_up()
