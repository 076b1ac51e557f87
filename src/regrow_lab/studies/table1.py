"""Table 1 of the report: the reproduction beside the original authors' numbers, without a validation split."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.report.paper import ACCURACY, printed
from regrow_lab.report.study_report import StudyReport
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import CIFAR_10, SLIPS_OF_THE_TEXT, WRN, grid, row, setting

SPARSITIES = (0.9, 0.8, 0.5)


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """Dense, static (ERK), pruning and RigL (ERK), trained on all 50,000 images of CIFAR-10: Table 1."""
    base = {**setting(scale, data, CIFAR_10), "validation": 0}
    if scale == "paper":  # the same steps as with the validation split, of 391 batches an epoch in place of 352
        base |= {field: base[field] * 352 / 391 for field in ("stop", "pruning_start")}
    rows = [row("dense"), row("static", "erk"), row("pruning"), row("rigl", "erk")]
    return grid(base, rows, SPARSITIES, seeds)


PRINTED = printed(
    "Table 1",
    WRN,
    ACCURACY,
    SPARSITIES,
    """
    Dense        | 94.6
    Static (ERK) | 91.6 | 93.2 | 94.3
    Pruning      | 93.2 | 93.6 | 94.3
    RigL (ERK)   | 93.2 | 93.8 | 94.4
    """,
)
ORIGINAL = printed(
    "Table 1, original",
    WRN,
    ACCURACY,
    SPARSITIES,
    """
    Dense        | 94.1
    Static (ERK) | 91.6 | 92.9 | 94.2
    Pruning      | 93.3 | 93.5 | 94.1
    RigL (ERK)   | 93.1 | 93.8 | 94.3
    """,
)


TABLE1 = Study(
    name="table1",
    about="Table 1: no validation split, beside the original authors' numbers",
    runs=_runs,
    cost=(
        "10 runs a seed. Paper (WRN-22-2, 250 epochs): some 2 hours a run on a GTX 1080. Small: a second a run on "
        "digits, some ten minutes a run with WRN-10-1 on CIFAR-10, on one core."
    ),
    expected=(
        "at the paper's scale, S = .9, .8, .5: dense 94.6; static 91.6, 93.2, 94.3; pruning 93.2, 93.6, 94.3; "
        "RigL 93.2, 93.8, 94.4. Small: pruning and RigL above static at S = .9, no difference to be seen at .5."
    ),
    report=StudyReport(printed=(PRINTED, ORIGINAL), notes=SLIPS_OF_THE_TEXT),
    other_images=True,
)
