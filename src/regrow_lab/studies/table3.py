"""Table 3 and Figure 2 of the report: every method on CIFAR-100."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.report.claims import no_worse
from regrow_lab.report.pairs import keys, versus
from regrow_lab.report.paper import FULL, printed
from regrow_lab.report.study_report import StudyReport
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import BEST_METHOD, CIFAR_100, RESNET, SLIPS_OF_THE_TEXT, grid, row, setting

SPARSITIES = (0.9, 0.8, 0.95, 0.5)


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """All 15 rows of Table 3, at the four sparsities of Figure 2."""
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


LOTTERY = "train FLOPs of Lottery follow another pruning formula here than on CIFAR-10 (there: pruning + test)"
PRINTED = printed(
    "Table 3",
    RESNET,
    FULL,
    (0.9, 0.8),
    """
    Static        | 69.7 0.42 0.10 0.10 | 72.3 0.30 0.20 0.20
    Small Dense   | 70.8 0.22 0.11 0.11 | 72.6 0.93 0.20 0.20
    SET           | 71.4 0.35 0.10 0.10 | 73.4 0.45 0.20 0.20
    RigL          | 71.8 0.33 0.10 0.10 | 73.5 0.04 0.20 0.20
    Static (ERK)  | 71.5 0.18 0.22 0.22 | 73.2 0.39 0.38 0.38
    SET (ERK)     | 72.3 0.39 0.22 0.22 | 73.5 0.25 0.38 0.38
    RigL (ERK)    | 72.6 0.37 0.23 0.22 | 73.4 0.15 0.38 0.38
    SNFS          | 72.3 0.20 0.58 0.37 | 73.9 0.20 0.70 0.55
    SNFS (ERK)    | 73.0 0.33 0.59 0.38 | 73.9 0.27 0.69 0.54
    Pruning       | 73.1 0.32 0.36 0.11 | 73.8 0.23 0.45 0.25
    RigL_2x       | 73.1 0.71 0.20 0.10 | 74.0 0.24 0.41 0.20
    Lottery       | 73.6 0.32 0.62 0.11 | 74.2 0.41 0.81 0.25
    RigL_3x       | 73.7 0.16 0.30 0.10 | 74.2 0.23 0.61 0.20
    RigL_2x (ERK) | 73.6 0.05 0.46 0.22 | 74.4 0.10 0.76 0.38
    Dense         | 74.7 0.38
    """,
    {("Lottery", 0.9): LOTTERY, ("Lottery", 0.8): LOTTERY},
)


TABLE3 = Study(
    name="table3",
    about="Table 3, and Figure 2",
    runs=_runs,
    cost=(
        "57 runs a seed, two of the rows twice and one three times as long. Paper (ResNet-50, 250 epochs of "
        "CIFAR-100): some 6 hours a run on a GTX 1080. Small: a second a run on digits, some ten minutes a run "
        "with WRN-10-1 on CIFAR-10, on one core; the rows are the same, the data are not CIFAR-100."
    ),
    expected=(
        "at the paper's scale: dense 74.7; at S = .9 static 69.7, RigL 71.8 (ERK 72.6), pruning 73.1, lottery "
        "73.6, RigL_3x 73.7. Small: as for `table2`."
    ),
    report=StudyReport(printed=(PRINTED,), notes=SLIPS_OF_THE_TEXT),
    other_images=True,
    claims={
        BEST_METHOD: {
            "RigL_3x (ERK) is no worse than iterative pruning": no_worse(
                versus(keys("rigl", "erk", multiplier=3), keys("pruning"))
            ),
        },
    },
)
