"""Table 4 of the report: RigL with the original's (alpha, dT) beside the best that a search finds."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from regrow_lab.config import RunConfig, check_seeds
from regrow_lab.report.paper import WITH_STD, printed
from regrow_lab.store import folders
from regrow_lab.studies import study_runs
from regrow_lab.studies.figure3 import SPARSITIES
from regrow_lab.studies.settings import BOTH, CIFAR_10, RIGL_AT_80, WRN, setting

Point = Mapping[str, Any]
Ranges = Mapping[str, tuple[float, float, float]]
RANGES: Ranges = {"alpha": (0.1, 0.6, 0.001), "dT": (50, 1000, 50)}
"""From, to and step of both. The report's section on tuning. dT is of a training of 250 epochs on CIFAR-10, and scaled
to the setting's own `every`."""
REFERENCE: Point = {"alpha": 0.3, "dT": 100}
"""The original's values, which are the first trial."""
VALIDATION = {"digits": 130, "digits-images": 130, "cifar10-jpeg": 5_000, "cifar10": 5_000}
"""Training samples held out, where the setting itself holds out none: a tenth."""
NAMES = {"uniform": "RigL", "erk": "RigL (ERK)"}
"""Distribution -> the method's name in the table."""
PRINTED = printed(
    "Table 4",
    WRN,
    WITH_STD,
    SPARSITIES,
    """
    RigL       | 91.7 0.18 | 92.6 0.10 | 93.3 0.07
    RigL (ERK) | 92.4 0.06 | 93.1 0.09 | 93.4 0.14
    """,
    {("RigL", 0.8): RIGL_AT_80},
)
PRINTED_TUNED: Mapping[tuple[str, float], tuple[float, int, float, float]] = {
    ("RigL", 0.9): (0.197, 50, 91.8, 0.17),
    ("RigL", 0.8): (0.448, 150, 92.8, 0.16),
    ("RigL", 0.5): (0.459, 550, 93.3, 0.18),
    ("RigL (ERK)", 0.9): (0.416, 200, 92.4, 0.23),
    ("RigL (ERK)", 0.8): (0.381, 950, 93.1, 0.21),
    ("RigL (ERK)", 0.5): (0.287, 500, 93.8, 0.06),
}
"""Table 4, its right half: (row, sparsity) -> tuned alpha, tuned dT, accuracy, deviation."""


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What one search is about: RigL at one sparsity and distribution. `base` is the reference's run with seed 0."""

    name: str
    base: RunConfig
    seeds: int
    grid: tuple[RunConfig, ...] = ()
    """The points, each as its run with seed 0, where there is nothing to search for; else empty."""

    @property
    def title(self) -> str:
        """As people say it."""
        return f"{NAMES[str(self.base.distribution)]}, S = {self.base.sparsity:g}"

    @property
    def ranges(self) -> Ranges:
        """From, to and step of each coordinate of a point, whole numbers where it is one."""
        return {"point": (0, len(self.grid) - 1, 1)} if self.grid else RANGES

    def runs(self, point: Point) -> list[RunConfig]:
        """The runs of a point, one a seed. Optuna's alpha is a sum that is off by some 1e-16: it is rounded."""
        if self.grid:
            run = self.grid[point["point"]]
        else:
            alpha, every = round(point["alpha"], 3), self._every(point["dT"])
            run = dataclasses.replace(self.base, drop_fraction=alpha, every=every)
        return [dataclasses.replace(run, seed=seed) for seed in range(self.seeds)]

    def in_words(self, run: RunConfig) -> str:
        """The point of a run, as people write it."""
        words = f"alpha {run.drop_fraction:g}, dT {run.every}"
        return f"learning rate {run.learning_rate:g}, {words}" if self.grid else words

    def first(self, directory: Path) -> list[Point]:
        """The points to be tried before any that a sampler suggests: the whole grid; or the reference, and those of
        which `directory` holds all runs, so that a search whose storage is gone goes on from its runs."""
        if self.grid:
            return [{"point": number} for number in range(len(self.grid))]
        low, high, step = RANGES["dT"]
        intervals = {self._every(dT): dT for dT in range(int(high), int(low) - 1, -int(step))}
        low, high, step = RANGES["alpha"]
        found = [REFERENCE]
        for stored in folders.read_runs(directory) if folders.holds_runs(directory) else ():
            config = stored.config
            alpha = low + round((config["drop_fraction"] - low) / step) * step  # to the last digit as Optuna has it
            point = {"alpha": alpha, "dT": intervals.get(config["every"])}
            inside = low <= config["drop_fraction"] <= high and config["every"] in intervals
            runs = self.runs(point) if inside else []
            if runs and runs[0].run_id == stored.folder.name and runs != self.runs(REFERENCE):
                found += [point] * all(folders.is_finished(folders.run_folder(directory, run)) for run in runs)
        return found

    def _every(self, interval: float) -> int:
        return max(1, int(self.base.every * interval / REFERENCE["dT"]))

    def fingerprint(self) -> str:
        """What must not change while a search goes on."""
        grid = [run.run_id for run in self.grid]
        return json.dumps({"base": self.base.to_dict(), "seeds": self.seeds, "grid": grid}, sort_keys=True)


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
    wrong = [given for given in distributions if given not in BOTH]
    if wrong:
        raise ValueError(f"unknown distribution {wrong[0]!r}: choose one of {', '.join(BOTH)}")
    points: list[RunConfig] = []
    if name == "figure3":
        base = setting(scale, data, CIFAR_10)
        one = (BOTH[0], SPARSITIES[0])
        points = [run for run in study_runs(name, 1, scale, data) if (run.distribution, run.sparsity) == one]
    elif data not in (None, name):
        raise ValueError(f"the data to tune on are named by the study, {name!r}: leave out --data {data}")
    else:
        base = setting(scale, None if name == "cifar10" and scale == "paper" else name, CIFAR_10)
        if not base.get("validation") and base["data"] not in VALIDATION:
            raise ValueError(f"there are searches on {', '.join(VALIDATION)}, given data {name!r}: choose one of them")
        base["validation"] = base.get("validation") or VALIDATION[base["data"]]
    found = []
    for distribution in distributions or BOTH:
        for sparsity in sparsities or SPARSITIES:
            run = RunConfig(**{**base, "method": "rigl", "distribution": distribution, "sparsity": sparsity})
            grid = tuple(dataclasses.replace(point, distribution=distribution, sparsity=sparsity) for point in points)
            found.append(Problem(name=f"{distribution}-s{sparsity:g}", base=run, seeds=seeds, grid=grid))
    return found
