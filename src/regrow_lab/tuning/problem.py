"""What is tuned: points of a search space, and the runs that a point stands for. Nothing here imports torch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regrow_lab.config import RunConfig, check_seeds
from regrow_lab.studies.common import BOTH, CIFAR_10, setting
from regrow_lab.studies.figure3 import RATES, SPARSITIES, UPDATES, figure3

if TYPE_CHECKING:
    from optuna import Trial

Point = Mapping[str, Any]
ALPHAS = (0.1, 0.6)
"""The range of alpha, in steps of .001. The report's section on tuning."""
INTERVALS = (50, 1000, 50)
"""The range of dT and its step, for a training of 250 epochs on CIFAR-10; scaled to the setting's own `every`."""
REFERENCE = {"alpha": 0.3, "dT": 100}
"""The original's values, which are the first trial."""
VALIDATION = {"digits": 130, "digits-images": 130, "cifar10-jpeg": 5_000, "cifar10": 5_000}
"""Training samples held out, where the setting itself holds out none: a tenth."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One search: RigL at one sparsity and distribution. `base` is the run at the reference point, with seed 0."""

    name: str
    base: RunConfig
    seeds: int
    grid: tuple[tuple[float, float, float], ...] = ()
    """(learning rate, alpha, dT) of every point, where there is nothing to search for; else empty."""

    @property
    def first(self) -> list[dict[str, Any]]:
        """The points that are tried before any that the sampler suggests."""
        if self.grid:
            return [{"point": number} for number in range(len(self.grid))]
        return [dict(REFERENCE)]

    def may_be_pruned(self, point: Point) -> bool:
        """Whether a trial may be given up before its last seed: all but the reference, which the others are held to."""
        return bool(self.grid) or point != REFERENCE

    def suggest(self, trial: Trial) -> Point:
        """The point of a trial."""
        if self.grid:
            return {"point": trial.suggest_int("point", 0, len(self.grid) - 1)}
        low, high, step = INTERVALS
        return {
            "alpha": trial.suggest_float("alpha", *ALPHAS, step=0.001),
            "dT": trial.suggest_int("dT", low, high, step=step),
        }

    def runs(self, point: Point) -> list[RunConfig]:
        """The runs of a point, one a seed. Optuna's alpha is a sum that is off by some 1e-16: it is rounded."""
        rate, alpha, interval = self.base.learning_rate, point.get("alpha"), point.get("dT")
        if self.grid:
            rate, alpha, interval = self.grid[point["point"]]
        assert alpha is not None
        assert interval is not None
        every = max(1, int(self.base.every * interval / REFERENCE["dT"]))
        changed = {"learning_rate": rate, "drop_fraction": round(alpha, 3), "every": every}
        return [dataclasses.replace(self.base, seed=seed, **changed) for seed in range(self.seeds)]

    def fingerprint(self) -> str:
        """What must not change while a search goes on."""
        return json.dumps({"base": self.base.to_dict(), "seeds": self.seeds, "grid": self.grid}, sort_keys=True)


def in_words(problem: Problem, point: Point) -> str:
    """A point as people write it."""
    run = problem.runs(point)[0]
    words = f"alpha {run.drop_fraction:g}, dT {run.every}"
    return f"learning rate {run.learning_rate:g}, {words}" if problem.grid else words


def problems(
    name: str,
    seeds: int,
    *,
    scale: str = "small",
    data: str | None = None,
    sparsities: Sequence[float] = (),
    distributions: Sequence[str] = (),
) -> list[Problem]:
    """The searches of `name`: Table 4's for a data set such as digits or cifar10, or the grid of figure3.

    Raises ValueError for a name, scale or sparsity that there is not.
    """
    check_seeds("a trial", seeds)
    known = {run.distribution for run in figure3(1)}
    wrong = [given for given in distributions if given not in known]
    if wrong:
        raise ValueError(f"unknown distribution {wrong[0]!r}: choose one of {', '.join(BOTH)}")
    grid: tuple[tuple[float, float, float], ...] = ()
    if name == "figure3":
        base = setting(scale, data, CIFAR_10)
        grid = tuple((rate, alpha, stretch * REFERENCE["dT"]) for rate in RATES for alpha, stretch in UPDATES)
    else:
        if data not in (None, name):
            raise ValueError(f"the data to tune on are named by the study, {name!r}: leave out --data {data}")
        base = setting(scale, None if name == "cifar10" and scale == "paper" else name, CIFAR_10)
        if not base.get("validation"):
            base["validation"] = VALIDATION[base["data"]]
    return [
        Problem(
            name=f"{distribution}-s{sparsity:g}",
            base=RunConfig(**{**base, "method": "rigl", "distribution": distribution, "sparsity": sparsity}),
            seeds=seeds,
            grid=grid,
        )
        for distribution in distributions or BOTH
        for sparsity in sparsities or SPARSITIES
    ]
