"""Table 5 and Figure 5 of the report: redistribution, and starting again from what it found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from regrow_lab.config import RunConfig
from regrow_lab.methods import method_of
from regrow_lab.report.claims import above, no_worse
from regrow_lab.report.pairs import keys, versus
from regrow_lab.report.paper import FULL, printed
from regrow_lab.report.study_report import Picture, Results, StudyReport
from regrow_lab.report.words import distribution_in_words
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import (
    BOTH,
    CIFAR_10,
    CIFAR_100,
    REDISTRIBUTION,
    RESNET,
    RIGL_AT_80,
    SLIPS_OF_THE_TEXT,
    WRN,
    grid,
    row,
    setting,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPARSITIES = (0.9, 0.8)


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """RigL, RigL-SG, RigL-SM from both distributions; RigL from RigL-SM's final masks, and from its densities alone.

    The third group of Table 5 is RigL from the final masks of RigL-SM with the same seed; starting from the densities
    alone is ours, and tells whether the masks or the densities are at fault.
    """
    rows = [row("dense")]
    rows += [row(method, name) for name in BOTH for method in ("rigl-sm", "rigl-sg", "rigl")]
    rows += [row("rigl", name, start="rigl-sm") for name in BOTH]
    rows += [row("rigl", name, start="rigl-sm-densities") for name in BOTH]
    papers = (CIFAR_10, CIFAR_100) if scale == "paper" and data is None else (CIFAR_10,)
    return [
        run for paper in papers for run in grid(setting(scale, data, paper, convolutions=True), rows, SPARSITIES, seeds)
    ]


PRINTED_CIFAR_10 = printed(
    "Table 5, CIFAR-10",
    WRN,
    FULL,
    SPARSITIES,
    """
    RigL                      | 91.7  0.18 0.10 0.10 | 92.9 0.10 0.20 0.20
    RigL-SG                   | 92.2  0.17 0.28 0.28 | 92.7 0.25 0.49 0.49
    RigL-SM                   | 92.2  0.20 0.28 0.28 | 92.9 0.21 0.50 0.49
    RigL (ERK)                | 92.4  0.06 0.17 0.17 | 93.1 0.09 0.35 0.35
    RigL-SG (ERK)             | 92.1  0.19 0.28 0.28 | 92.7 0.19 0.49 0.49
    RigL-SM (ERK)             | 92.27 0.01 0.28 0.28 | 93.0 0.13 0.50 0.49
    RigL (from RigL-SM's masks) | 90.3  0.34 0.28 0.28 | 91.0 0.38 0.50 0.49
    RigL (ERK, from RigL-SM's masks) | 90.2  0.57 0.28 0.28 | 90.6 0.56 0.50 0.49
    """,
    {("RigL", 0.8): RIGL_AT_80},
)
PRINTED_CIFAR_100 = printed(
    "Table 5, CIFAR-100",
    RESNET,
    FULL,
    SPARSITIES,
    """
    RigL                      | 71.8 0.33 0.10 0.10 | 73.5 0.04 0.20 0.20
    RigL-SG                   | 72.3 0.12 0.36 0.35 | 73.7 0.15 0.53 0.53
    RigL-SM                   | 72.6 0.27 0.36 0.36 | 73.7 0.35 0.53 0.53
    RigL (ERK)                | 72.6 0.37 0.23 0.22 | 73.4 0.15 0.38 0.38
    RigL-SG (ERK)             | 73.0 0.13 0.37 0.36 | 74.2 0.26 0.53 0.53
    RigL-SM (ERK)             | 72.6 0.27 0.37 0.37 | 74.2 0.13 0.53 0.53
    RigL (from RigL-SM's masks) | 67.6 0.28 0.36 0.36 | 68.9 0.65 0.53 0.53
    RigL (ERK, from RigL-SM's masks) | 67.8 0.73 0.37 0.37 | 68.9 0.47 0.53 0.53
    """,
)


def flops_over_steps(results: Results) -> Figure | None:
    """Forward FLOPs relative to dense against the step: Figure 5, left. A panel a sparsity, one seed of each row.

    At step 0 every method has the densities of its distribution, which RigL keeps: its FLOPs are where all lines begin.
    """
    from regrow_lab.report import panels

    shown: dict[tuple[str, str | None, float], Mapping[str, Any]] = {}
    for run in results.runs:
        config, result = run.config, run.result or {}
        wanted = config["method"] in ("rigl", "rigl-sg", "rigl-sm", "snfs") and config["multiplier"] == 1
        if wanted and result.get("sparse_flops_by_epoch") and not config.get("start"):
            shown.setdefault((config["method"], config["distribution"], config["sparsity"]), result)
    if not shown:
        return None
    sparsities = sorted({sparsity for _, _, sparsity in shown})
    rows = list(dict.fromkeys((method, distribution) for method, distribution, _ in shown))
    figure, all_axes = panels.side_by_side(len(sparsities))
    for axes, sparsity in zip(all_axes, sparsities, strict=True):
        axes.set_title(f"S = {sparsity:g}")
        for method, distribution in rows:
            found: Mapping[str, Any] = shown.get((method, distribution, sparsity), {})
            ratios = [flops / found["dense_flops"] for flops in found.get("sparse_flops_by_epoch", ())]
            if ratios:
                steps = [found["steps"] * (epoch + 1) / len(ratios) for epoch in range(len(ratios))]
                if (first := shown.get(("rigl", distribution, sparsity))) is not None:
                    steps, ratios = [0, *steps], [first["sparse_flops"] / first["dense_flops"], *ratios]
                label = f"{method_of(method).label} ({distribution_in_words(distribution)})"
                style = "-" if distribution == "uniform" else "--"
                axes.plot(steps, ratios, style, color=method_of(method).colour, lw=1.4, label=label)
        axes.set_xlabel("optimizer step")
    return panels.finished(figure, all_axes, y="forward FLOPs, relative to dense")


TABLE5 = Study(
    name="table5",
    about="Table 5 with its re-initialisation, and Figure 5",
    runs=_runs,
    cost=(
        "21 runs a seed on each data set. Paper: CIFAR-10 (WRN-22-2) and CIFAR-100 (ResNet-50), some 2 and 6 "
        "hours a run on a GTX 1080. Small: WRN-10-1, some 10 s a run on digits as images, some ten minutes on "
        "CIFAR-10, on one core."
    ),
    expected=(
        "at the paper's scale, CIFAR-10, S = .9: RigL 91.7, RigL-SG and RigL-SM 92.2 from uniform; 92.4, 92.1, "
        "92.3 from ERK; 90.3 and 90.2 re-initialised; FLOPs of both redistributions .28x. Small: the FLOPs rise "
        "as they do there, and all rows lie between 98.4 and 99.5 percent, re-initialised ones too: too easy to "
        "tell them apart."
    ),
    report=StudyReport(
        printed=(PRINTED_CIFAR_10, PRINTED_CIFAR_100),
        notes=SLIPS_OF_THE_TEXT,
        figures=(Picture("flops_steps", "Forward FLOPs over the training", flops_over_steps),),
    ),
    other_images=True,
    claims={
        REDISTRIBUTION: {
            "from uniform densities, RigL-SG and RigL-SM are above RigL": above(
                versus(keys("rigl-sg", "uniform") + keys("rigl-sm", "uniform"), keys("rigl", "uniform"))
            ),
            "from uniform densities, redistribution reaches RigL (ERK)": no_worse(
                versus(keys("rigl-sg", "uniform") + keys("rigl-sm", "uniform"), keys("rigl", "erk"))
            ),
            "from ERK, redistribution does not improve RigL": no_worse(
                versus(keys("rigl", "erk"), keys("rigl-sg", "erk") + keys("rigl-sm", "erk"))
            ),
            "RigL started from RigL-SM's final masks is worse than RigL": above(
                versus(keys("rigl", *BOTH), keys("rigl", *BOTH, variant="start=rigl-sm"), same_distribution=True)
            ),
            "RigL started from RigL-SM's final densities alone is worse than RigL (ours)": above(
                versus(
                    keys("rigl", *BOTH), keys("rigl", *BOTH, variant="start=rigl-sm-densities"), same_distribution=True
                )
            ),
        },
    },
)
