"""What can go wrong under a search, each as one line for people: nothing here ends in a traceback."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from pathlib import Path

from regrow_lab import store

GOES_ON = "the same command goes on"


class SearchError(Exception):
    """The search cannot go on. The message says why and what to do; what was trained stands on the disk."""


def check_folder(directory: Path, study: dict[str, object]) -> None:
    """Raise SearchError unless `directory` is still the folder of `study` (settings of study.json; empty: of none)."""
    if not study:
        return
    path = directory / "study.json"
    if not path.exists():
        gone = path if directory.exists() else directory
        raise SearchError(f"{gone} was deleted while the search went on; {GOES_ON} from what is left")
    found = settings(directory)
    if found != study:
        raise SearchError(
            f"{path} was changed while the search went on (it is of the study {found.get('study')!r} now): put it back "
            "and give the same command, or give another folder with --out"
        )


def settings(directory: Path) -> dict[str, object]:
    """What study.json says and a search must not change: all but the number of seeds, which another may raise."""
    return {name: value for name, value in store.read_study(directory).items() if name != "seeds"}


def in_a_line(error: Exception, directory: Path) -> str:
    """What happened, in a line. What nobody foresaw has its traceback in a file of the folder."""
    lost = database_error(error)
    if lost is not None and not isinstance(error, SearchError):
        return f"the database is gone ({reason(lost)}); {GOES_ON}"
    if isinstance(error, (SearchError, ValueError, store.NotWrittenError)):
        return " ".join(str(error).split())
    if isinstance(error, OSError):
        return f"{error.filename or directory} cannot be used ({error.strerror or error}): mend that, then {GOES_ON}"
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    path = directory / "error.txt"
    try:
        store.write_whole(
            path, lambda file: file.write("".join(traceback.format_exception(error)).encode(errors="backslashreplace"))
        )
    except OSError:
        return said
    return f"{said} (see {path})"


def database_error(error: BaseException) -> BaseException | None:
    """What SQLAlchemy raised, if that is where `error` began: Optuna stumbles over a lost database in several ways."""
    try:
        from sqlalchemy.exc import SQLAlchemyError
    except ImportError:  # then no database is used
        return None
    return next((cause for cause in _causes(error) if isinstance(cause, SQLAlchemyError)), None)


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
