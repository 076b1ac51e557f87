"""The studies, a file and a record each: runs, scales, the paper's values, figures and tables, cost, expected result.

May import :mod:`regrow_lab.report`, :mod:`regrow_lab.store`, :mod:`regrow_lab.methods` and :mod:`regrow_lab.config`;
torch never, matplotlib only to draw. A study of one's own is a `Study` in any module, and known as `module:NAME`.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Literal

from regrow_lab.config import RunConfig, check_seeds
from regrow_lab.methods import imported, is_import, method_of
from regrow_lab.studies.charlm import CHARLM
from regrow_lab.studies.cifar10 import CIFAR10
from regrow_lab.studies.digits import DIGITS
from regrow_lab.studies.figure3 import FIGURE3
from regrow_lab.studies.figure4 import FIGURE4
from regrow_lab.studies.record import Study
from regrow_lab.studies.saliency import SALIENCY
from regrow_lab.studies.storages import STORAGES
from regrow_lab.studies.struct import STRUCT
from regrow_lab.studies.table1 import TABLE1
from regrow_lab.studies.table2 import TABLE2
from regrow_lab.studies.table3 import TABLE3
from regrow_lab.studies.table5 import TABLE5
from regrow_lab.studies.tickets import TICKETS

__all__ = ["ALL", "STUDIES", "Study", "find_study", "known_study", "studies_of", "study_runs", "usual_storage"]

ALL = "all"
STUDIES: dict[str, Study] = {
    study.name: study
    for study in (
        DIGITS, CIFAR10, TABLE1, TABLE2, TABLE3, FIGURE3, FIGURE4, TABLE5, STRUCT, TICKETS, SALIENCY, CHARLM, STORAGES
    )
}  # fmt: skip
"""In the order in which all are done."""


def find_study(name: str) -> Study:
    """The study of a name: of the lab, or `module:NAME` for one of one's own. Raises ValueError if there is none."""
    if name in STUDIES:
        return STUDIES[name]
    if not is_import(name):
        known = ", ".join([*STUDIES, ALL])
        raise ValueError(f"unknown study {name!r}: choose one of {known}, or module:NAME for one of your own")
    found = imported(name, "module:NAME of a regrow_lab.studies.Study")
    if not isinstance(found, Study):
        raise ValueError(f"{name} is a {type(found).__name__}, expected a regrow_lab.studies.Study: give one")
    return found


def known_study(name: str | None) -> Study | None:
    """The study that a folder says it is of; None where there is none of that name, as for a search.

    One's own is known where its module has been imported, as `regrow study module:NAME` does: a file that is read, from
    wherever it may come, imports nothing.
    """
    if not name or (name not in STUDIES and not (is_import(name) and name.partition(":")[0] in sys.modules)):
        return None
    return find_study(name)


def study_runs(
    name: str,
    seeds: int,
    scale: str = "small",
    data: str | None = None,
    storage: Literal["dense", "compact"] = "dense",
    precision: str | None = None,
    model: str | None = None,
    method: str | None = None,
) -> list[RunConfig]:
    """The runs of the study `name` with `seeds` seeds (0 to seeds - 1) each, in `storage` where their method can be.

    `precision` None is that of the study. A study that sets storages and precisions beside each other keeps them.
    `model` takes the place of the study's nets; `method` is one more row, see `with_method`.

    Raises ValueError for a name that is no study, fewer seeds than one, and what the study itself refuses.
    """
    study = find_study(name)
    check_seeds("a study", seeds)
    if scale not in study.scales:
        raise ValueError(f"study {name} has no scale {scale!r}: choose {' or '.join(study.scales)}")
    runs = with_method(study.runs(seeds, scale, data), method)
    runs = runs if model is None else [dataclasses.replace(run, model=model) for run in runs]
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


def with_method(runs: Sequence[RunConfig], method: str | None) -> list[RunConfig]:
    """The runs of a study, and those of a method beside them: wherever there is a sparse run of usual length and start.

    It is given no distribution: it takes its own, or erk. Raises ValueError for a name that is no method.
    """
    if method is None:
        return list(runs)
    plain = [run for run in runs if run.sparsity and run.multiplier == 1 and run.prerequisite is None]
    added = [dataclasses.replace(run, method=method, distribution=None) for run in plain]
    return list(dict.fromkeys([*runs, *added]))


def usual_storage(runs: Sequence[RunConfig], device: str) -> Literal["dense", "compact"]:
    """The storage of a study that is not told one: compact on a CPU for images of CIFAR, where it pays; else dense."""
    return "compact" if device == "cpu" and any(run.data.startswith("cifar") for run in runs) else "dense"


def studies_of(name: str, scale: str) -> list[str]:
    """The studies that `name` stands for: itself, or for `all` those that there are at this scale."""
    return [study.name for study in STUDIES.values() if scale in study.scales] if name == ALL else [name]
