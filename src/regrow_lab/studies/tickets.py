"""Lottery tickets: iterative pruning, its rewinding and controls; instability against the rewind step."""

from __future__ import annotations

import statistics
from collections import defaultdict
from typing import TYPE_CHECKING

from regrow_lab.config import RunConfig
from regrow_lab.methods import imp_sparsity
from regrow_lab.report.claims import above, no_worse
from regrow_lab.report.pairs import keys, versus
from regrow_lab.report.plain_tables import Grid
from regrow_lab.report.study_report import Picture, Results, StudyReport
from regrow_lab.report.words import variant_in_words
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import BEYOND, BOTH, CIFAR_10, grid, row, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LEVELS = {"small": 20, "paper": 12}
LATE = 0.05
"""Share of the training to which late rewinding goes back."""
REWINDS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
STABLE_AT = (5, 10)
"""Rounds of pruning after which a ticket's instability is measured too."""
TICKET_REWINDS = (0.0, 0.02, LATE, 0.1, 0.2)
"""Rewind steps of those tickets, as shares of the training; each takes all the rounds before."""


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """IMP with rewinding to 0 and to 5 %, with fine-tuning, with its two controls; instability of nets and tickets.

    The controls are the masks of rewinding to 0 with other initial weights, and shuffled in each layer. Instability is
    the error on the line between two trainings that part at the rewind step: in result.json, as `line`.
    """
    base = setting(scale, data, CIFAR_10)
    levels = [imp_sparsity(level) for level in range(1, LEVELS.get(scale, 0) + 1)]
    kinds = [row("imp"), row("imp", rewind=LATE), row("imp", start="trained")]
    kinds += [row("imp", start="reinitialized"), row("imp", start="shuffled")]
    runs = grid(base, [row("dense")], (), seeds)
    for kind in kinds:
        runs += grid(base, [kind], levels, seeds)
    runs += grid(base, [row("dense", rewind=rewind, data_order=1) for rewind in REWINDS], (), seeds)
    for rewind in TICKET_REWINDS:
        if rewind not in (0.0, LATE):  # whose rounds are there
            runs += grid(base, [row("imp", rewind=rewind)], levels[: max(STABLE_AT)], seeds)
        ends = [imp_sparsity(level) for level in STABLE_AT]
        runs += grid(base, [row("imp", rewind=rewind, data_order=1)], ends, seeds)
    return sorted(runs, key=lambda run: run.seed)


def accuracy_over_density(results: Results) -> Figure | None:
    """Accuracy against density of IMP's kinds; the dense net as a line across.

    Kinds that stop halfway, there for their instability alone, are left to the table.
    """
    from regrow_lab.report import panels
    from regrow_lab.report.accuracy_axis import accuracy_axis

    found = [cell for cell in results.cells if cell.method == "imp" and cell.mean is not None]
    if not found:
        return None
    last = max(cell.sparsity for cell in found)
    whole = {cell.variant for cell in found if cell.sparsity == last}
    cells = [cell for cell in found if cell.variant in whole]
    figure, (axes,) = panels.side_by_side(1, width=6.5)
    for number, variant in enumerate(dict.fromkeys(cell.variant for cell in cells)):
        line = sorted((cell for cell in cells if cell.variant == variant), key=lambda cell: cell.sparsity)
        panels.line(axes, [1 - cell.sparsity for cell in line], line, number, variant_in_words(variant))
    accuracy_axis(axes, [cell for cell in results.cells if cell.is_dense or cell in found])
    panels.log_axis(axes, (1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01), lambda density: f"{100 * density:g} %")
    axes.invert_xaxis()
    axes.set_xlabel("weights left")
    return panels.finished(figure, [axes])


def instability_figure(results: Results) -> Figure | None:
    """Largest test error on the line less the mean of its ends, against the rewind step: a line a net."""
    from regrow_lab.report import panels

    found: dict[float, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in results.runs:
        if run.result and run.result.get("line"):
            found[run.config["sparsity"]][run.config["rewind"]].append(run.result["line"]["above_mean"])
    if not found:
        return None
    figure, (axes,) = panels.side_by_side(1, width=6.0)
    for number, (sparsity, points) in enumerate(sorted(found.items())):
        x = sorted(points)
        means = [statistics.fmean(points[rewind]) for rewind in x]
        spread = [statistics.stdev(points[rewind]) if len(points[rewind]) > 1 else 0.0 for rewind in x]
        label = "dense" if not sparsity else f"IMP, S = {sparsity:.3g}"
        colour, marker = panels.COLOURS[number % len(panels.COLOURS)], panels.MARKERS[number % len(panels.MARKERS)]
        percent = [100 * rewind for rewind in x]
        axes.errorbar(percent, means, spread, color=colour, marker=marker, ms=5, lw=1.4, capsize=2, label=label)
    axes.axhline(0, color="#999999", lw=0.8)
    axes.set_xlabel("rewind step, percent of the training")
    return panels.finished(figure, [axes], y="instability: rise of the test error on the line [points]")


def instability_table(results: Results) -> Grid:
    """Both definitions of the instability for each net and rewind step, in points of test error."""
    found: dict[tuple[float, float], list[tuple[float, float]]] = defaultdict(list)
    for run in results.runs:
        if run.result and (line := run.result.get("line")):
            where = (run.config["sparsity"], run.config["rewind"])
            found[where].append((line["above_mean"], line["above_worst"]))
    rows = []
    for (sparsity, rewind), values in sorted(found.items()):
        texts = [
            f"{statistics.fmean(each):.2f}" + (f" ± {statistics.stdev(each):.2f}" if len(each) > 1 else "")
            for each in zip(*values, strict=True)
        ]
        net = "dense" if not sparsity else f"IMP, S = {sparsity:.3g}"
        rows.append((net, f"{100 * rewind:g} %", str(len(values)), *texts))
    head = ("net", "rewind step", "n", "above the mean of the ends", "above the worse end")
    notes = ("Largest test error on the line between two trainings that part at the rewind step, in points.",)
    return Grid("Instability against the rewind step", head, tuple(rows), notes)


TICKETS = Study(
    name="tickets",
    about="iterative pruning: rewinding, fine-tuning, controls; instability against the rewind step",
    runs=_runs,
    cost=(
        "20 rounds × 5 kinds, and for the instability 7 dense nets and 10 rounds × 3 more rewind steps, a seed. "
        "Small: a second a run on digits. Paper (WRN-22-2 on CIFAR-10, 12 rounds): 108 runs of some 2 hours on a "
        "GTX 1080. A round needs the one before it."
    ),
    expected=(
        "on digits with LeNet-300-100: rewinding stays within a percent of the dense net down to a density of "
        "some 5 %; shuffled and re-initialised masks fall off earlier. Instability falls towards 0 as the rewind "
        "step grows."
    ),
    report=StudyReport(
        tables=(instability_table,),
        figures=(
            Picture("tickets", "Iterative pruning and its controls", accuracy_over_density),
            Picture("instability", "Instability against the rewind step", instability_figure),
        ),
        usual_figures=False,
    ),
    claims={
        BEYOND: {
            "a lottery ticket (pruning's mask) is above static": above(versus(keys("lottery"), keys("static", *BOTH))),
            "an IMP ticket is above its re-initialised masks": above(
                versus(keys("imp", variant="rewind=0.0"), keys("imp", variant="rewind=0.0, start=reinitialized"))
            ),
            "a ticket rewound late is no worse than one rewound to step 0": no_worse(
                versus(keys("imp", variant="rewind=0.05"), keys("imp", variant="rewind=0.0"))
            ),
            "a ticket rewound to step 0 is no worse than pruning that is trained on": no_worse(
                versus(keys("imp", variant="rewind=0.0"), keys("imp", variant="rewind=0.0, start=trained"))
            ),
            "an IMP ticket is above its shuffled masks": above(
                versus(keys("imp", variant="rewind=0.0"), keys("imp", variant="rewind=0.0, start=shuffled"))
            ),
        },
    },
)
