"""Compact storage beside masked dense weights: the same accuracy, in fp32 and bf16, in less time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regrow_lab.config import RunConfig
from regrow_lab.report.columns import unit_of
from regrow_lab.report.study_report import Picture, Results, StudyReport
from regrow_lab.report.words import variant_in_words
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import CIFAR_10, SMALL, grid, row, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPARSITIES = (0.9, 0.95)
PRECISIONS = ("float32", "bf16")


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """RigL (ERK) in compact storage and with masks, and the dense net, each in fp32 and in bf16; hours are a column."""
    base = setting(scale, data, CIFAR_10, convolutions=True)
    if scale == "paper":
        base = {**SMALL["cifar10-jpeg"], "model": base["model"], "data": base["data"], "epochs": 30}
    rows = [row("dense", precision=precision) for precision in PRECISIONS]
    rows += [
        row("rigl", "erk", precision=precision, storage=storage)
        for storage in ("dense", "compact")
        for precision in PRECISIONS
    ]
    return grid(base, rows, SPARSITIES, seeds)


def accuracy_over_time(results: Results) -> Figure | None:
    """Accuracy against the wall time of a run by storage and precision, a panel a sparsity, the dense nets in each."""
    from regrow_lab.report import panels
    from regrow_lab.report.accuracy_axis import accuracy_scale

    cells = [cell for cell in results.cells if cell.mean is not None and "precision=" in cell.variant]
    sparsities = sorted({cell.sparsity for cell in cells if not cell.is_dense})
    if not sparsities:
        return None
    kinds = list(dict.fromkeys((cell.method, cell.variant) for cell in cells))
    unit, name = unit_of([cell.seconds for cell in cells])
    figure, all_axes = panels.side_by_side(len(sparsities))
    for axes, sparsity in zip(all_axes, sparsities, strict=True):
        axes.set_title(f"S = {sparsity:g}")
        for cell in cells:
            if cell.sparsity in (0.0, sparsity):
                label = f"{cell.label.split(' (')[0]}, {variant_in_words(cell.variant)}"
                number = kinds.index((cell.method, cell.variant))
                panels.line(axes, [cell.seconds / unit], [cell], number, label, colour=cell.style[0])
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{name} a run")
        accuracy_scale(axes, cells)
    return panels.finished(figure, all_axes, "Error bars: standard deviation over seeds.")


STORAGES = Study(
    name="storages",
    about="nothing of the report: compact storage beside masked and dense weights, fp32 and bf16, by accuracy and time",
    runs=_runs,
    cost=(
        "10 runs a seed. Small: WRN-10-1, 2 to 6 s a run on digits as images. By the time of a step on one core "
        "of a 2026 Xeon: on CIFAR-10 (JPEG) 6 to 10 minutes a run in compact storage, 15 to 45 the others; paper "
        "(WRN-22-2, 30 epochs) half an hour (bf16) or an hour (fp32) compact, 2 to 5 hours the others."
    ),
    expected=(
        "at each sparsity the four ways of RigL within noise of each other; hours as the engine's measured ratios."
    ),
    report=StudyReport(
        figures=(Picture("storages", "Accuracy against the time of a run", accuracy_over_time),), usual_figures=False
    ),
    other_images=True,
)
