"""The character-level language model of the original paper, on tiny Shakespeare."""

from __future__ import annotations

from typing import TYPE_CHECKING

from regrow_lab.config import RunConfig
from regrow_lab.report.claims import above
from regrow_lab.report.pairs import keys, versus
from regrow_lab.report.study_report import Picture, Results, StudyReport
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import BEYOND, Fields, grid, row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TEXT: Fields = {
    "model": "char-gru",
    "data": "tinyshakespeare",
    "epochs": 100,
    "batch_size": 32,
    "sequence_length": 512,
    "optimizer": "adam",
    "momentum": 0.0,
    "learning_rate": 7e-4,
    "weight_decay": 5e-4,
    "schedule": "constant",
    "clip": 10.0,
    "every": 100,
    "drop_fraction": 0.1,
    "stop": 1.0,
}
SMALL: Fields = {**TEXT, "epochs": 3, "sequence_length": 64, "every": 50, "precision": "bf16"}
SPARSITY = 0.75


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """Bits a character of dense, static, SET, SNFS, RigL, RigL_2x and pruning at S = .75, uniform densities."""
    base = {**(TEXT if scale == "paper" else SMALL), **({} if data is None else {"data": data})}
    rows = [row("dense"), row("pruning"), row("static", "uniform"), row("set", "uniform"), row("snfs", "uniform")]
    rows += [row("rigl", "uniform"), row("rigl", "uniform", 2)]
    return grid(base, rows, (SPARSITY,), seeds)


def bits(results: Results) -> Figure | None:
    """Bits a character against training FLOPs relative to the dense net, a point a row."""
    from matplotlib.ticker import FuncFormatter

    from regrow_lab.report import panels

    cells = [cell for cell in results.cells if cell.bits is not None]
    if not cells:
        return None
    figure, (axes,) = panels.side_by_side(1, width=6.0)
    for cell in cells:
        colour, marker = cell.style
        label = cell.label if cell.is_dense else f"{cell.label}, S = {cell.sparsity:g}"
        inside = "white" if cell.multiplier > 1 else colour
        axes.errorbar(
            [cell.train_ratio], [cell.bits or 0.0], [cell.bits_std or 0.0], color=colour, marker=marker, ms=6, lw=0,
            markerfacecolor=inside, elinewidth=1, capsize=2, label=label,
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel("training FLOPs, relative to the dense net")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
    note = "Error bars: standard deviation over seeds; hollow: longer training."
    return panels.finished(figure, [axes], note, "bits a character (lower is better)")


CHARLM = Study(
    name="charlm",
    about="bits a character of a GRU on tiny Shakespeare",
    runs=_runs,
    cost=(
        "7 runs a seed, one twice as long. Paper (GRU of 512, 100 epochs of tiny Shakespeare): minutes a run on a "
        "GPU. Small (3 epochs of shorter windows, bf16): 4 to 5 minutes a run on one core of a 2026 Xeon, some 20 "
        "a seed on two; take --seeds 1 for a first look. Needs tinyshakespeare.txt in the data folder."
    ),
    expected=(
        "(the original gives a figure, no numbers, on another text): pruning the best of the sparse ones, then "
        "RigL; SET the worst of the dynamic ones. Small, bits a character: dense 2.46, pruning 2.50, RigL_2x "
        "2.53; RigL, SNFS and SET 2.67 to 2.68, within noise; static 2.74."
    ),
    report=StudyReport(figures=(Picture("bits", "Bits a character against training FLOPs", bits),)),
    claims={
        BEYOND: {
            "on text RigL is above SET, the worst of the dynamic methods (the original's figure)": above(
                versus(keys("rigl", "uniform"), keys("set", "uniform"), model="char-gru")
            ),
            "on text pruning is above RigL (the original's figure)": above(
                versus(keys("pruning"), keys("rigl", "uniform"), model="char-gru")
            ),
        },
    },
)
