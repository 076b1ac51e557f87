"""Figure 4 of the report: accuracy against FLOPs, by distribution; and RigL with all the FLOPs of dense training."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import TYPE_CHECKING

from regrow_lab.config import RunConfig
from regrow_lab.report.claims import above, no_worse
from regrow_lab.report.pairs import Cells, Finder, Pair, usable
from regrow_lab.report.study_report import Picture, Results, StudyReport
from regrow_lab.report.words import distribution_in_words
from regrow_lab.studies.record import Study
from regrow_lab.studies.settings import BEST_METHOD, CIFAR_10, CIFAR_100, DENSITIES, grid, row, setting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DISTRIBUTIONS = ("uniform", "erk", "flop-aware")
SHARES = (0.05, 0.1, 0.2, 0.35)
"""f_s / f_d that the distributions are compared at."""
SPARSITY_AT: Mapping[tuple[str, str], Mapping[str, tuple[float, ...]]] = {
    ("wrn-22-2", "cifar10"): {
        "uniform": (0.95267, 0.90253, 0.80225, 0.65184),
        "erk": (0.97164, 0.94305, 0.88452, 0.80115),
        "flop-aware": (0.95062, 0.90235, 0.80533, 0.65862),
    },
    ("resnet50-cifar", "cifar100"): {
        "uniform": (0.9513, 0.90123, 0.8011, 0.65089),
        "erk": (0.978, 0.95599, 0.91122, 0.82411),
        "flop-aware": (0.94333, 0.89515, 0.7988, 0.6538),
    },
    ("wrn-10-1", "cifar10"): {
        "uniform": (0.98417, 0.93231, 0.82879, 0.67341),
        "erk": (0.97117, 0.94227, 0.88257, 0.79226),
        "flop-aware": (0.94397, 0.89626, 0.80687, 0.66639),
    },
    ("wrn-10-1", "digits-images"): {
        "uniform": (0.96139, 0.91081, 0.80965, 0.65777),
        "erk": (0.97166, 0.94322, 0.87736, 0.78676),
        "flop-aware": (0.94529, 0.89809, 0.80609, 0.65382),
    },
}
"""(model, data) -> distribution -> sparsity at each of `SHARES`: `regrow.sparsity_at_flops`, to 1e-5."""
RATIO_AT: Mapping[tuple[str, str], Mapping[str, tuple[float, ...]]] = {
    ("wrn-22-2", "cifar10"): {"uniform": (0.1055, 0.2049), "erk": (0.1763, 0.3542)},
    ("resnet50-cifar", "cifar100"): {"uniform": (0.1042, 0.2037), "erk": (0.2273, 0.3872)},
    ("wrn-10-1", "cifar10"): {"uniform": (0.134, 0.2303), "erk": (0.173, 0.3386)},
    ("wrn-10-1", "digits-images"): {"uniform": (0.1247, 0.222), "erk": (0.1789, 0.3372)},
}
"""(model, data) -> distribution -> RigL's training FLOPs relative to dense training, at each of `SPARSITIES`."""
SPARSITIES = (0.9, 0.8)


def _runs(seeds: int, scale: str, data: str | None) -> list[RunConfig]:
    """RigL with uniform, ERK and FLOP-aware densities at equal FLOPs; then 1x, 2x, 3x and as long as dense FLOPs allow.

    At each share of the dense forward FLOPs the three distributions have the sparsity that meets it. At S = .9 and .8
    RigL is trained 1, 2, 3 and 1 / ratio times as long, ratio being its training FLOPs relative to dense training.
    """
    papers = (CIFAR_10, CIFAR_100) if scale == "paper" and data is None else (CIFAR_10,)
    return [run for paper in papers for run in _figure4(setting(scale, data, paper, convolutions=True), seeds)]


def _figure4(base: dict[str, object], seeds: int) -> list[RunConfig]:
    net = str(base["model"]), {"cifar10-jpeg": "cifar10"}.get(str(base["data"]), str(base["data"]))
    if net not in SPARSITY_AT:
        raise ValueError(f"figure4 has no sparsities for {net[0]} on {net[1]}: choose cifar10, cifar100 or digits")
    runs = grid(base, [row("dense")], (), seeds)
    for name in DISTRIBUTIONS:
        runs += grid(base, [row("rigl", name)], SPARSITY_AT[net][name], seeds)
    for name, ratios in RATIO_AT[net].items():
        for sparsity, ratio in zip(SPARSITIES, ratios, strict=True):
            rows = [row("rigl", name, multiplier) for multiplier in (1, 2, 3, round(1 / ratio, 2))]
            runs += grid(base, rows, (sparsity,), seeds)
    return sorted(runs, key=lambda run: run.seed)


RATIOS = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0)
"""That the FLOP axes show."""


def accuracy_over_flops(results: Results) -> Figure | None:
    """Accuracy against forward FLOPs by distribution; and against training FLOPs where training is longer.

    The colour is the distribution's in both.
    """
    from regrow_lab.report import panels
    from regrow_lab.report.accuracy_axis import accuracy_axis
    from regrow_lab.report.figures import DASHES

    cells = [cell for cell in results.cells if cell.method == "rigl" and cell.mean is not None and not cell.variant]
    if not cells:
        return None
    figure, all_axes = panels.side_by_side(2)
    names = list(dict.fromkeys(cell.distribution for cell in cells))
    stretched = dict.fromkeys((cell.distribution, cell.sparsity) for cell in cells if cell.multiplier != 1)
    once = [cell for cell in cells if (cell.distribution, cell.sparsity) not in stretched]
    for number, name in enumerate(names):
        line = sorted((cell for cell in once if cell.distribution == name), key=lambda cell: cell.test_ratio)
        aside = 1.015 ** (2 * number - len(names) + 1)  # so that deviations at the same FLOPs do not cover each other
        if line:
            at = [aside * cell.test_ratio for cell in line]
            panels.line(all_axes[0], at, line, number, distribution_in_words(name))
    all_axes[0].set_title("RigL at equal forward FLOPs")
    all_axes[0].set_xlabel("forward FLOPs, relative to dense")
    sparsities = sorted({sparsity for _, sparsity in stretched})
    for name, sparsity in stretched:
        line = [cell for cell in cells if (cell.distribution, cell.sparsity) == (name, sparsity)]
        line.sort(key=lambda cell: cell.multiplier)
        label = f"{distribution_in_words(name)}, S = {sparsity:g}"
        style = DASHES[sparsities.index(sparsity) % len(DASHES)]
        panels.line(all_axes[1], [cell.train_ratio for cell in line], line, names.index(name), label, style=style)
    all_axes[1].set_title("RigL, trained longer")
    all_axes[1].set_xlabel("training FLOPs, relative to dense")
    for axes in all_axes:
        panels.log_axis(axes, RATIOS, lambda ratio: f"{ratio:g}x")
        accuracy_axis(axes, [cell for cell in results.cells if cell.is_dense or cell in cells])
    return panels.finished(figure, all_axes)


def equal_flops(one: str, other: str) -> Finder:
    """RigL with one distribution against another whose forward FLOPs are within 2 %, whatever the sparsities."""

    def find(cells: Cells) -> Iterable[Pair]:
        once = [cell for cell in usable(cells) if cell.method == "rigl" and cell.multiplier == 1]
        for a, b in product(once, once):
            if (a.distribution, b.distribution) != (one, other) or (a.model, a.data) != (b.model, b.data):
                continue
            if a.variant == b.variant and abs(a.test_ratio / b.test_ratio - 1) <= 0.02 and a.sparsity != b.sparsity:
                yield Pair(f"f_s/f_d = {a.test_ratio:.2f}, {a.model} on {a.data}", a, b)

    return find


def same_training() -> Finder:
    """RigL that trained as long as makes its training FLOPs those of the dense net, within 5 %, against that net."""

    def find(cells: Cells) -> Iterable[Pair]:
        for a, b in product(usable(cells), usable(cells)):
            longer = a.method == "rigl" and a.multiplier > 1 and abs(a.train_ratio - 1) <= 0.05
            if longer and b.is_dense and (a.model, a.data) == (b.model, b.data):
                yield Pair(f"{a.label} against {b.label}, S = {a.sparsity:g}, {a.model} on {a.data}", a, b)

    return find


FIGURE4 = Study(
    name="figure4",
    about="uniform, ERK and FLOP-aware densities at equal FLOPs; RigL 1x, 2x, 3x and with all FLOPs of dense training",
    runs=_runs,
    cost=(
        "29 runs a seed, the longest 5 to 10 times as long as the others. Paper: WRN-22-2 on CIFAR-10 and "
        "ResNet-50 on CIFAR-100, some 2 and 6 hours for a run of single length on a GTX 1080. Small: WRN-10-1, "
        "some 10 s a run on digits as images, some ten minutes on CIFAR-10, on one core."
    ),
    expected=(
        "at equal FLOPs uniform is above ERK (the report's section 6.1), most at small shares; FLOP-aware is ours "
        "and open. Longer training helps up to and beyond the dense net's accuracy at S = .8. Small: the three "
        "distributions are within noise of each other, 97.9 to 98.6 at .05x and 99.0 to 99.1 at .35x; with all "
        "the FLOPs of the dense net (99.1) RigL ends at 99.0 to 99.5."
    ),
    report=StudyReport(
        figures=(Picture("equal_flops", "RigL against FLOPs by distribution", accuracy_over_flops),),
        usual_figures=False,
    ),
    other_images=True,
    claims={
        BEST_METHOD: {
            "RigL with all the FLOPs of dense training is no worse than the dense net (not in the report)": no_worse(
                same_training()
            ),
        },
        DENSITIES: {
            "at fixed FLOPs uniform is above ERK": above(equal_flops("uniform", "erk")),
            "at fixed FLOPs the FLOP-aware distribution is above uniform (ours)": above(
                equal_flops("flop-aware", "uniform")
            ),
            "at fixed FLOPs the FLOP-aware distribution is above ERK (ours)": above(equal_flops("flop-aware", "erk")),
        },
    },
)
