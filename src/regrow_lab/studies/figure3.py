"""Figure 3 of the report: learning rate against sparsity."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from regrow_lab.config import RunConfig
from regrow_lab.report.claims import near_the_best
from regrow_lab.report.pairs import Cells, Finder, Pair, usable
from regrow_lab.report.study_report import Picture, Results, StudyReport
from regrow_lab.report.summary import Summary
from regrow_lab.report.words import distribution_in_words, fields_of, variant_in_words
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import BOTH, CIFAR_10, TUNING, grid, row, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPARSITIES = (0.9, 0.8, 0.5)
RATES = (0.1, 0.05, 0.01, 0.005)
UPDATES = ((0.3, 1), (0.4, 2), (0.4, 5), (0.5, 7.5))
"""alpha, and dT as a multiple of the setting's: (.3, 100), (.4, 200), (.4, 500), (.5, 750) at the paper's scale."""


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """RigL at four learning rates × four pairs (alpha, dT), S = .9, .8, .5, both distributions."""
    base = setting(scale, data, CIFAR_10)
    every = base.get("every", RunConfig().every)
    rows = [
        row("rigl", name, learning_rate=rate, drop_fraction=alpha, every=int(every * stretch))
        for rate in RATES
        for alpha, stretch in UPDATES
        for name in BOTH
    ]
    return grid(base, rows, SPARSITIES, seeds)


def learning_rates(results: Results) -> Figure | None:
    """Accuracy against learning rate, a panel a distribution, a colour a sparsity, a thin line each (alpha, dT)."""
    from regrow_lab.report import panels
    from regrow_lab.report.accuracy_axis import accuracy_axis

    cells = [cell for cell in results.cells if cell.mean is not None and "learning_rate=" in cell.variant]
    if not cells:
        return None
    distributions = list(dict.fromkeys(cell.distribution for cell in cells))
    sparsities = sorted({cell.sparsity for cell in cells})
    figure, all_axes = panels.side_by_side(len(distributions))
    rates = sorted({_rate(cell) for cell in cells})
    for axes, distribution in zip(all_axes, distributions, strict=True):
        axes.set_title(distribution_in_words(distribution))
        for number, sparsity in enumerate(sparsities):
            same = [cell for cell in cells if (cell.distribution, cell.sparsity) == (distribution, sparsity)]
            lines: dict[str, list[Summary]] = defaultdict(list)
            for cell in sorted(same, key=_rate):
                lines[cell.variant.replace(f"learning_rate={_rate(cell)}", "")].append(cell)
            for line in lines.values():
                panels.line(axes, [_rate(cell) for cell in line], line, number, "", width=0.7, alpha=0.35)
            best = [
                max((c for c in same if _rate(c) == rate), key=lambda c: c.mean or 0, default=None) for rate in rates
            ]
            panels.line(axes, [_rate(c) for c in best if c], [c for c in best if c], number, f"S = {sparsity:g}")
        panels.log_axis(axes, rates, lambda rate: f"{rate:g}")
        axes.set_xlabel("learning rate")
        accuracy_axis(axes, cells)
    return panels.finished(figure, all_axes, "Thick: the best (alpha, dT) at each rate; thin: each pair.")


def _rate(cell: Summary) -> float:
    return float(fields_of(cell.variant)["learning_rate"])


def tuned(field: str, references: Sequence[str]) -> Finder:
    """The reference values of `field` against the best of all that were tried, per distribution and sparsity."""

    def find(cells: Cells) -> Iterable[Pair]:
        tried: dict[tuple[str, str, str | None, float], list[Summary]] = {}
        for cell in usable(cells):
            if cell.method == "rigl" and cell.multiplier == 1 and f"{field}=" in cell.variant:
                tried.setdefault((cell.model, cell.data, cell.distribution, cell.sparsity), []).append(cell)
        for (model, data, distribution, sparsity), found in tried.items():
            best = max(found, key=lambda cell: cell.mean or 0.0)
            usual = [cell for cell in found if fields_of(cell.variant).get(field) in references]
            if usual:
                where = f"{distribution}, S = {sparsity:g}, {model} on {data}; best: {variant_in_words(best.variant)}"
                yield Pair(where, max(usual, key=lambda cell: cell.mean or 0.0), best)

    return find


FIGURE3 = Study(
    name="figure3",
    about="learning rate × (alpha, dT) × sparsity",
    runs=_runs,
    cost=(
        "96 runs a seed. Paper (WRN-22-2, 250 epochs): some 2 hours a run on a GTX 1080. Small: a second a run on "
        "digits, some ten minutes a run with WRN-10-1 on CIFAR-10, on one core."
    ),
    expected=(
        "learning rates .1 and .05 are the best or within the noise of it at every sparsity and distribution, "
        ".005 is the worst; (alpha, dT) matters little."
    ),
    report=StudyReport(
        figures=(Picture("learning_rates", "Learning rate against sparsity", learning_rates),), usual_figures=False
    ),
    other_images=True,
    claims={
        TUNING: {
            "alpha = .3 with the reference dT is no worse than the best of those tried": near_the_best(
                tuned("drop_fraction", ("0.3",))
            ),
            "learning rates .1 and .05 are no worse than the best of those tried": near_the_best(
                tuned("learning_rate", ("0.1", "0.05"))
            ),
        },
    },
)
