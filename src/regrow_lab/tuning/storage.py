"""Where Optuna keeps its trials: a journal on the disk, or PostgreSQL."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, RDBStorage

from regrow_lab.tuning.errors import reason
from regrow_lab.tuning.journal import Journal

CONNECT_SECONDS = 10
ATTEMPTS = 5
FORM = "a database is given as postgresql://USER:PASSWORD@HOST:PORT/NAME"


class UnreachableError(ValueError):
    """Nothing answers at the database's address as it should."""


def open_storage(url: str | None, directory: Path, heartbeat_seconds: int) -> BaseStorage:
    """The journal of `directory`, or the PostgreSQL database at `url`.

    Raises:
        ValueError: `url` is of another kind.
        UnreachableError: nothing answers there as it should. Neither message has the password.
        SearchError: the journal is damaged.
        store.NotWrittenError: there is no journal, and the disk does not take one.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if url is None:
        with quiet():
            return Journal(directory / "tune", heartbeat_seconds)
    try:
        import psycopg  # noqa: F401
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError, IntegrityError, ProgrammingError, SQLAlchemyError
        from sqlalchemy.pool import NullPool
    except ImportError:
        raise ValueError("PostgreSQL needs psycopg: pip install 'psycopg[binary]'") from None
    try:
        address = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError(FORM) from None
    if "@" in (address.host or ""):  # the rest of a password, which would be taken for a host and printed
        raise ValueError(f"{FORM}, with %40 for an @ in the password")
    shown = address.set(query={}).render_as_string()  # a password may stand there too
    if address.get_backend_name() != "postgresql":
        raise ValueError(f"{FORM}, given {shown}; without --storage a journal on the disk is used")
    engine = address.set(drivername="postgresql+psycopg")
    # No connection is kept between two questions: a trial asks few, and a server has some hundred connections in all.
    options = {"poolclass": NullPool, "connect_args": {"connect_timeout": CONNECT_SECONDS}}
    for attempt in range(ATTEMPTS):
        try:
            with quiet():
                return RDBStorage(
                    engine.render_as_string(hide_password=False),
                    engine_kwargs=options,
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=2 * heartbeat_seconds,
                )
        except SQLAlchemyError as error:
            # In an empty database several commands may make the same table at once: all but one are refused, once.
            if not isinstance(error, IntegrityError | ProgrammingError) or attempt == ATTEMPTS - 1:
                raise UnreachableError(f"the database {shown} cannot be used: {reason(error)}") from None
            time.sleep(1)
    raise AssertionError


@contextmanager
def quiet() -> Iterator[None]:
    """Optuna warns that heartbeats are an experiment, and meant for its own loop."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
