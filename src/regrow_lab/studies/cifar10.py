"""The main methods on CIFAR-10 as an image folder: small enough for two CPU cores and an evening."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.report.study_report import StudyReport
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import CIFAR_10, grid, row, setting
from regrow_lab.studies.table2 import PRINTED as TABLE_2

SPARSITIES = (0.9, 0.95)


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """Eleven rows on CIFAR-10 (JPEG) at sparsities .9 and .95; small: a WRN-10-1 for 25 epochs."""
    rows = [
        row("dense"),
        row("rigl", "erk"),
        row("static", "erk"),
        row("static", "uniform"),
        row("rigl", "uniform"),
        row("set", "erk"),
        row("set", "uniform"),
        row("small-dense"),
        row("snip"),
        row("pruning"),
        row("snfs", "erk"),
    ]
    return grid(setting(scale, "cifar10-jpeg" if data is None else data, CIFAR_10), rows, SPARSITIES, seeds)


CIFAR10 = Study(
    name="cifar10",
    about="the report's methods with a WRN-10-1 on CIFAR-10 (JPEG), 25 epochs, beside Table 2",
    runs=_runs,
    cost=(
        "21 runs a seed. Small, on one core of a 2026 Xeon with nothing beside it: 5 to 6 minutes a run in "
        "compact storage, 7 or 8 pruning and small-dense, 14 dense and SNFS; two and a half hours a seed. Paper "
        "(WRN-22-2, 250 epochs): some 2 hours a run on a GTX 1080."
    ),
    expected=(
        ", small, at S = .9: dense 83.1, pruning 78.2; RigL and SET 74.4 to 74.8, uniform and ERK, and SNFS 74.2, "
        "within noise of each other; SNIP 73.0, static 71.6 (ERK 72.9), small-dense 71.2. At .95 pruning 75.8, "
        "RigL (ERK) 69.4, static 63.4 (ERK 67.3), small-dense 65.4."
    ),
    report=StudyReport(printed=(TABLE_2,)),
)
