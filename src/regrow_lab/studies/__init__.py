"""The studies: each a function that returns the list of runs it is made of; its docstring says cost and result."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal, Protocol

from regrow_lab.config import RunConfig, check_seeds
from regrow_lab.methods import method_of
from regrow_lab.studies.charlm import charlm
from regrow_lab.studies.cifar10 import cifar10
from regrow_lab.studies.digits import digits
from regrow_lab.studies.figure3 import figure3
from regrow_lab.studies.figure4 import figure4
from regrow_lab.studies.saliency import saliency
from regrow_lab.studies.storages import storages
from regrow_lab.studies.struct import struct
from regrow_lab.studies.table1 import table1
from regrow_lab.studies.table2 import table2
from regrow_lab.studies.table3 import table3
from regrow_lab.studies.table5 import table5
from regrow_lab.studies.tickets import tickets


class Study(Protocol):
    """What a study is."""

    def __call__(self, seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
        """Its runs with `seeds` seeds each, at a scale, on the study's own data or on another set."""


STUDIES: dict[str, Study] = {
    "digits": digits,
    "cifar10": cifar10,
    "table1": table1,
    "table2": table2,
    "table3": table3,
    "figure3": figure3,
    "figure4": figure4,
    "table5": table5,
    "struct": struct,
    "tickets": tickets,
    "charlm": charlm,
    "saliency": saliency,
    "storages": storages,
}
ALL = "all"


def study_runs(
    name: str,
    seeds: int,
    scale: str = "small",
    data: str | None = None,
    storage: Literal["dense", "compact"] = "dense",
    precision: str | None = None,
) -> list[RunConfig]:
    """The runs of the study `name` with `seeds` seeds (0 to seeds - 1) each, in `storage` where their method can be.

    `precision` None is that of the study. A study that sets storages and precisions beside each other keeps them.

    Raises ValueError for a name that is no study, fewer seeds than one, and what the study itself refuses.
    """
    if name not in STUDIES:
        raise ValueError(f"unknown study {name!r}: choose one of {', '.join([*STUDIES, ALL])}")
    check_seeds("a study", seeds)
    wanted = {"scale": scale} if scale != "small" else {}
    runs = STUDIES[name](seeds, **wanted, **({} if data is None else {"data": data}))
    if any(run.storage != "dense" for run in runs):
        return runs
    return [
        dataclasses.replace(
            run,
            storage=storage if storage in method_of(run.method).storages else "dense",
            precision=run.precision if precision is None else precision,
        )
        for run in runs
    ]


def usual_storage(runs: Sequence[RunConfig], device: str) -> Literal["dense", "compact"]:
    """The storage of a study that is not told one: compact on a CPU for images of CIFAR, where it pays; else dense."""
    return "compact" if device == "cpu" and any(run.data.startswith("cifar") for run in runs) else "dense"


def studies_of(name: str, scale: str) -> list[str]:
    """The studies that `name` stands for: itself, or for `all` those that there are at this scale."""
    if name != ALL:
        return [name]
    return [study for study in STUDIES if study != "digits" or scale == "small"]
