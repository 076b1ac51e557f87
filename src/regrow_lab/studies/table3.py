"""Table 3 and Figure 2 of the report: every method on CIFAR-100."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.studies.settings import CIFAR_100, grid, row, setting

SPARSITIES = (0.9, 0.8, 0.95, 0.5)


def table3(seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
    """All 15 rows of Table 3, at the four sparsities of Figure 2.

    Cost: 57 runs a seed, two of the rows twice and one three times as long. Paper (ResNet-50, 250 epochs of CIFAR-100):
    some 6 hours a run on a GTX 1080. Small: a second a run on digits, some ten minutes a run with WRN-10-1 on CIFAR-10,
    on one core; the rows are the same, the data are not CIFAR-100.

    Expected at the paper's scale: dense 74.7; at S = .9 static 69.7, RigL 71.8 (ERK 72.6), pruning 73.1, lottery 73.6,
    RigL_3x 73.7. Small: as for `table2`.
    """
    rows = [
        row("dense"),
        row("pruning"),
        row("static", "uniform"),
        row("small-dense"),
        row("set", "uniform"),
        row("rigl", "uniform"),
        row("static", "erk"),
        row("set", "erk"),
        row("rigl", "erk"),
        row("snfs", "uniform"),
        row("snfs", "erk"),
        row("rigl", "uniform", 2),
        row("lottery"),
        row("rigl", "uniform", 3),
        row("rigl", "erk", 2),
    ]
    return grid(setting(scale, data, CIFAR_100), rows, SPARSITIES, seeds)
