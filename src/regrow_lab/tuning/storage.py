"""Where Optuna keeps its trials (a journal on the disk, or PostgreSQL), and how a dead worker's trial is known."""

from __future__ import annotations

import fcntl
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import IO, Any

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

TRIES = 3
"""How often a trial is begun again whose worker died."""
START_SECONDS = 60
"""Time that a worker has between the beginning of a trial and its first sign of life."""
CONNECT_SECONDS = 10
ATTEMPTS = 5


class DatabaseError(Exception):
    """The database is gone; what was trained stands on the disk."""


class Journal(JournalStorage, BaseHeartbeat):
    """A journal on the disk. A worker locks the trial that it works on; if it dies, the kernel frees the lock."""

    def __init__(self, folder: Path, heartbeat_seconds: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(JournalFileBackend(str(folder / "journal.log")))
        self.folder = folder
        self.heartbeat_seconds = heartbeat_seconds
        self.held: dict[int, IO[str]] = {}

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a journal is opened by each process for itself")

    def record_heartbeat(self, trial_id: int) -> None:
        """Hold the lock of this trial, and of no other."""
        if trial_id not in self.held:
            for file in self.held.values():
                file.close()
            self.held.clear()
            file = self._lock(trial_id).open("w")
            fcntl.flock(file, fcntl.LOCK_EX)
            self.held[trial_id] = file

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        running = self.get_all_trials(study_id, deepcopy=False, states=(TrialState.RUNNING,))
        return [trial._trial_id for trial in running if self._is_stale(trial)]

    def _is_stale(self, trial: FrozenTrial) -> bool:
        path = self._lock(trial._trial_id)
        if not path.exists():
            began = trial.datetime_start
            return began is not None and datetime.now() - began > timedelta(seconds=START_SECONDS)
        with path.open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
        return True

    def _lock(self, trial_id: int) -> Path:
        return self.folder / f"trial-{trial_id}.lock"

    def get_heartbeat_interval(self) -> int:
        """See BaseHeartbeat."""
        return self.heartbeat_seconds

    def get_heartbeat_stale_trial_callback(self) -> Callable[[optuna.Study, FrozenTrial], None]:
        """A trial whose worker died is queued again."""
        return _retry()


def open_storage(url: str | None, directory: Path, heartbeat_seconds: int) -> BaseStorage:
    """The journal of `directory`, or the PostgreSQL database at `url`.

    Raises ValueError, without the password, if `url` is of another kind, or nothing answers there as it should.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None:
        with _quiet():
            return Journal(directory / "tune", heartbeat_seconds)
    try:
        import psycopg  # noqa: F401
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError
        from sqlalchemy.pool import NullPool
    except ImportError:
        raise ValueError("PostgreSQL needs psycopg: pip install 'regrow[postgres]'") from None
    try:
        address = make_url(url)
    except ArgumentError:
        raise ValueError("a database is given as postgresql://USER:PASSWORD@HOST:PORT/NAME") from None
    if address.get_backend_name() != "postgresql":
        raise ValueError(
            f"a database is given as postgresql://USER:PASSWORD@HOST:PORT/NAME, given {address.render_as_string()}; "
            "without --storage a journal on the disk is used"
        )
    engine = address.set(drivername="postgresql+psycopg")
    # No connection is kept between two questions: a trial asks few, and a server has some hundred connections in all.
    options = {"poolclass": NullPool, "connect_args": {"connect_timeout": CONNECT_SECONDS}}
    for attempt in range(ATTEMPTS):
        try:
            with _quiet():
                return RDBStorage(
                    engine.render_as_string(hide_password=False),
                    engine_kwargs=options,
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=2 * heartbeat_seconds,
                    heartbeat_stale_trial_callback=_retry(),
                )
        except SQLAlchemyError as error:
            # In an empty database several commands may make the same table at once: all but one are refused, once.
            if not isinstance(error, IntegrityError | ProgrammingError) or attempt == ATTEMPTS - 1:
                where = address.render_as_string()
                raise ValueError(f"the database {where} cannot be used: {reason(error)}") from None
            time.sleep(1)
    raise AssertionError


@contextmanager
def database_errors() -> Iterator[None]:
    """Turns what a database that has gone away raises into DatabaseError."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:  # then no database is used
        yield
        return
    try:
        yield
    except Exception as error:
        # Optuna stumbles over a lost database in several ways; what they have in common is where they began.
        causes = [cause for cause in _causes(error) if isinstance(cause, SQLAlchemyError)]
        if not causes:
            raise
        raise DatabaseError(f"the database is gone ({reason(causes[0])}); the same command goes on") from None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def reason(error: BaseException) -> str:
    """The first line that says what is wrong."""
    said = getattr(error, "orig", None) or error
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in ("FATAL", "refused", "failed", "timeout"))]
    return (telling or lines or [type(error).__name__])[0].removeprefix("connection failed: ")


def _retry() -> RetryHeartbeatStaleTrialCallback:
    with _quiet():
        return RetryHeartbeatStaleTrialCallback(max_retry=TRIES)


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield
