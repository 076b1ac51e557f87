"""A search: what every worker is told, and its studies in the storage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from regrow_lab.tuning.errors import SearchError, check_folder
from regrow_lab.tuning.problem import Problem

ATTRIBUTE = "problem"


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
    study: Mapping[str, Any] = field(default_factory=dict)
    """What study.json says while the search goes on."""

    def study_name(self, problem: Problem) -> str:
        """The name of the problem's study in the storage."""
        return f"{self.name}-{problem.name}"

    def check_folder(self) -> None:
        """Raise SearchError if the folder is no longer the one that the search began in."""
        check_folder(self.directory, dict(self.study))


def refuse_others(options: Search, problems: Sequence[Problem]) -> None:
    """Raise ValueError if the storage cannot be used, or holds another search of this name; begins none."""
    if options.url is None and not (options.directory / "tune" / "journal.log").exists():
        return
    from regrow_lab.tuning.storage import open_storage

    storage = open_storage(options.url, options.directory, options.heartbeat_seconds)
    known = {study.study_name: study.user_attrs.get(ATTRIBUTE) for study in storage.get_all_studies()}
    for problem in problems:
        if known.get(options.study_name(problem)) not in (None, problem.fingerprint()):
            # A folder's report mixes searches of several names; a grid's is that of its study, which knows the seeds.
            also = (
                ", or another name with --name"
                if problem.grid
                else ", and another name with --name" * bool(options.url)
            )
            raise ValueError(
                f"the storage holds a search {options.study_name(problem)!r} with other settings or seeds: give "
                f"another folder with --out{also}"
            )


def begin(options: Search, problems: Sequence[Problem]) -> None:
    """Make the studies that are not there yet.

    Raises ValueError if the storage cannot be used, or holds another search of this name.
    """
    import optuna

    from regrow_lab.tuning.storage import open_storage

    refuse_others(options, problems)
    storage = open_storage(options.url, options.directory, options.heartbeat_seconds)
    for problem in problems:
        study = optuna.create_study(
            storage=storage, study_name=options.study_name(problem), direction="maximize", load_if_exists=True
        )
        if ATTRIBUTE not in study.user_attrs:
            study.set_user_attr(ATTRIBUTE, problem.fingerprint())


def check_unchanged(options: Search, problem: Problem, study: Any) -> None:
    """Raise SearchError unless the study is still there and the one that this command began."""
    name = options.study_name(problem)
    try:
        known = study.user_attrs.get(ATTRIBUTE)
    except KeyError:
        raise deleted(options, name) from None
    if known != problem.fingerprint():
        raise SearchError(
            f"the search {name!r} was changed while it went on; its runs are in {options.directory}: give "
            "another name with --name to go on with these settings"
        )


def deleted(options: Search, name: str) -> SearchError:
    """What to raise where the search is in the storage no more."""
    return SearchError(
        f"the search {name!r} was deleted from the storage while it went on; its runs are in {options.directory}, and "
        "the same command begins it anew with them"
    )
