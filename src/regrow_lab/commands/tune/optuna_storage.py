"""Where Optuna keeps the trials of a search: a SQLite file, or a PostgreSQL database. Only what is public of Optuna."""

from __future__ import annotations

import sqlite3
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from sqlalchemy import event
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.pool import NullPool

CONNECT_SECONDS = 10
LOCKED_SECONDS = 60
"""How long a command waits for another to be done with a SQLite file."""
ATTEMPTS = 5
FORM = "a database is given as postgresql://USER:PASSWORD@HOST:PORT/NAME or sqlite:///FILE"


def address_of(url: str | None, directory: Path) -> URL:
    """The database at `url`, or the file of `directory`.

    Raises ValueError, without the password, for what is none.
    """
    if url is None:
        return URL.create("sqlite", database=str(directory / "tune" / "trials.db"))
    try:
        address = make_url(url)
        kind = address.get_backend_name()
    except (ArgumentError, ValueError):
        raise ValueError(FORM) from None
    if "@" in (address.host or ""):  # the rest of a password, which would be taken for a host and printed
        raise ValueError(f"{FORM}, with %40 for an @ in the password")
    if kind == "sqlite" and address.database not in (None, "", ":memory:") and not address.query:
        folder = Path(str(address.database)).parent
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder: give a file in one that is there with --storage")
        return address
    if kind != "postgresql":
        raise ValueError(f"{FORM}, given {_shown(address)}; without --storage a file in the folder is used")
    return address.set(drivername="postgresql+psycopg")


def is_there(address: URL) -> bool:
    """Whether there may be searches in it: not in a file that is yet to be made."""
    return address.get_backend_name() != "sqlite" or Path(str(address.database)).exists()


def open_storage(address: URL, heartbeat_seconds: int) -> RDBStorage:
    """The storage at an address, made if need be. Optuna's own messages are kept quiet from then on.

    Raises ValueError, without the password, if it cannot be used.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def connect() -> sqlite3.Connection:
        file = str(address.database)
        connection = sqlite3.connect(file, timeout=LOCKED_SECONDS, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA synchronous = OFF")  # should the power fail, the runs tell what the trials gave
        return connection

    # No connection is kept between two questions: a trial asks few, and a server has some hundred connections in all.
    options: dict[str, Any] = {"poolclass": NullPool}
    is_file = address.get_backend_name() == "sqlite"
    options |= {"creator": connect} if is_file else {"connect_args": {"connect_timeout": CONNECT_SECONDS}}
    for attempt in range(ATTEMPTS):
        try:
            with quiet():
                storage = RDBStorage(
                    "sqlite://" if is_file else address.render_as_string(hide_password=False),
                    engine_kwargs=options,
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=2 * heartbeat_seconds,
                    heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
                )
            if is_file:  # where two commands read before either writes, both would take one trial
                event.listen(storage.engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
            return storage
        except ImportError:
            raise ValueError("PostgreSQL needs psycopg: pip install 'psycopg[binary]'") from None
        except (SQLAlchemyError, RuntimeError) as error:
            # In an empty database several commands may make the same table at once: all but one are refused, once.
            again = (IntegrityError, ProgrammingError, *([OperationalError] if is_file else []))
            if not isinstance(error, again) or attempt == ATTEMPTS - 1:
                why = failure(error) or str(error)
                if is_file:
                    raise ValueError(
                        f"{address.database} is no file of trials ({why}): give another; if it was one, move it away, "
                        "and the same command goes on from the runs that are finished"
                    ) from None
                raise ValueError(f"the database {_shown(address)} cannot be used: {why}") from None
            time.sleep(0.2 if is_file else 1)
    raise AssertionError


def failure(error: BaseException | None) -> str | None:
    """What is wrong with the database, in a line; None if it is something else that Optuna stumbled over."""
    while error is not None and not isinstance(error, SQLAlchemyError):
        error = error.__cause__ or error.__context__
    if error is None:
        return None
    lines = [line.strip() for line in str(getattr(error, "orig", None) or error).splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in ("FATAL", "refused", "failed", "timeout"))]
    return (telling or lines or [type(error).__name__])[0].removeprefix("connection failed: ")


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna warns that heartbeats are an experiment, and meant for its own loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", "Heartbeat of storage is supposed")
        warnings.filterwarnings("ignore", "The reported value is ignored")  # when a step is taken again
        yield


def _shown(address: URL) -> str:
    return address.set(query={}).render_as_string()  # a password may stand there too
