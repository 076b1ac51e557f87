"""The studies: each a function that returns the list of runs it is made of; its docstring says cost and result."""

from __future__ import annotations

from collections.abc import Callable

from regrow_lab.config import RunConfig
from regrow_lab.studies.digits import digits

STUDIES: dict[str, Callable[[int], list[RunConfig]]] = {"digits": digits}


def study_runs(name: str, seeds: int) -> list[RunConfig]:
    """The runs of the study `name` with `seeds` seeds (0 to seeds - 1) each.

    Raises ValueError for a name that is no study and for fewer seeds than one.
    """
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}: choose one of {', '.join(STUDIES)}")
    if seeds < 1:
        raise ValueError(f"a study needs 1 seed or more, given {seeds}")
    return STUDIES[name](seeds)
