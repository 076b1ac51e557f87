"""Table 2 of the supplementary: channels as the unit, with the wall time measured."""

from __future__ import annotations

from collections.abc import Sequence

from regrow_lab.config import RunConfig
from regrow_lab.report.claims import Verdict, above, no_worse
from regrow_lab.report.pairs import Cells, keys, versus
from regrow_lab.report.paper import WALL, printed
from regrow_lab.report.study_report import StudyReport
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import (
    BEYOND,
    BOTH,
    CIFAR_10,
    CIFAR_100,
    RESNET,
    RIGL_AT_80,
    SLIPS_OF_THE_TEXT,
    WRN,
    grid,
    row,
    setting,
)

SPARSITIES = (0.9, 0.8)


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """Small-dense, RigL and RigL-struct; the time of a step is measured beside the dense net's when a run has ended.

    RigL-struct's dead channels are cut out of the net before it is timed; RigL's net keeps its size.
    """
    rows = [row("dense"), row("small-dense")]
    rows += [row(method, name) for method in ("rigl", "rigl-struct") for name in BOTH]
    papers = (CIFAR_10, CIFAR_100) if scale == "paper" and data is None else (CIFAR_10,)
    bases = [{**setting(scale, data, paper, convolutions=True), "timed": True} for paper in papers]
    return [run for base in bases for run in grid(base, rows, SPARSITIES, seeds)]


PRINTED_CIFAR_10 = printed(
    "Supplementary Table 2, CIFAR-10",
    WRN,
    WALL,
    SPARSITIES,
    """
    Small Dense       | 89.0 0.35 0.11 | 91.0 0.07 0.20
    RigL              | 91.7 0.18 1.0  | 92.9 0.10 1.0
    RigL-struct       | 87.0 0.09 0.10 | 90.4 0.27 0.20
    RigL (ERK)        | 92.4 0.06 1.0  | 93.1 0.09 1.0
    RigL-struct (ERK) | 89.6 0.16 0.17 | 91.3 0.18 0.35
    """,
    {("RigL", 0.8): RIGL_AT_80},
)
PRINTED_CIFAR_100 = printed(
    "Supplementary Table 2, CIFAR-100",
    RESNET,
    WALL,
    SPARSITIES,
    """
    Small Dense       | 70.8 0.22 0.11 | 72.6 0.93 0.20
    RigL              | 71.8 0.33 1.0  | 73.5 0.04 1.0
    RigL-struct       | 69.1 0.11 0.10 | 71.9 0.13 0.20
    RigL (ERK)        | 72.6 0.37 1.0  | 73.4 0.15 1.0
    RigL-struct (ERK) | 71.1 0.15 0.23 | 72.9 0.08 0.38
    """,
)
TIMED = "RigL-struct takes the share of a dense net's time that its FLOPs are (supplementary, Table 2, as printed)"
CLOSE = 1.1
"""A measured time of up to so many times the share of FLOPs agrees with it."""


def time_against_flops(studies: Sequence[Cells]) -> Verdict:
    """Whether measured times are the share of FLOPs: no accuracies, so no noise of seeds to judge it by."""
    cells = [
        cell for cells in studies for cell in cells if cell.method == "rigl-struct" and cell.wall_train is not None
    ]
    if not cells:
        return Verdict()
    agree = sum((cell.wall_train or 0.0) <= CLOSE * cell.train_ratio for cell in cells)
    word = "holds" if agree == len(cells) else "does not hold"
    each = (
        f"{cell.label}, S = {cell.sparsity:g}: time {cell.wall_train:.2f}x, FLOPs {cell.train_ratio:.2f}x"
        for cell in cells
    )
    nets = ", ".join(dict.fromkeys(f"{cell.model} on {cell.data}" for cell in cells))
    figures = f"{agree} of {len(cells)} cells within {CLOSE - 1:.0%}; {'; '.join(each)} ({nets})"
    return Verdict(word, figures, len(cells))


STRUCT = Study(
    name="struct",
    about="Table 2 of the supplementary, the wall time measured",
    runs=_runs,
    cost=(
        "11 runs a seed on each data set. Paper: WRN-22-2 on CIFAR-10 and ResNet-50 on CIFAR-100, some 2 and 6 "
        "hours a run on a GTX 1080. Small: WRN-10-1, some 10 s a run on digits as images, some ten minutes on "
        "CIFAR-10, on one core."
    ),
    expected=(
        "at the paper's scale, CIFAR-10, S = .9: small-dense 89.0, RigL 91.7, RigL-struct 87.0 (ERK 92.4 and "
        "89.6). The report's wall times (.10x) are the FLOPs: measured ones are larger, as a narrow net does not "
        "use a machine well. Small, S = .9: small-dense 98.3, RigL 98.9, RigL-struct 96.3 (ERK 98.4 and 98.3), a "
        "step of it .68x and .80x."
    ),
    report=StudyReport(printed=(PRINTED_CIFAR_10, PRINTED_CIFAR_100), notes=SLIPS_OF_THE_TEXT),
    other_images=True,
    claims={
        BEYOND: {
            "RigL-struct is below RigL": above(
                versus(keys("rigl", *BOTH), keys("rigl-struct", *BOTH), same_distribution=True)
            ),
            "small-dense is no worse than RigL-struct (uniform)": no_worse(
                versus(keys("small-dense"), keys("rigl-struct", "uniform"))
            ),
        },
        "Time against FLOPs": {
            TIMED: time_against_flops,
        },
    },
)
