"""Figure 4 of the report: accuracy against FLOPs, by distribution; and RigL with all the FLOPs of dense training."""

from __future__ import annotations

from collections.abc import Mapping

from regrow_lab.config import RunConfig
from regrow_lab.studies.settings import CIFAR_10, CIFAR_100, grid, row, setting

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


def figure4(seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
    """RigL with uniform, ERK and FLOP-aware densities at equal FLOPs; then 1x, 2x, 3x and as long as dense FLOPs allow.

    At each share of the dense forward FLOPs the three distributions have the sparsity that meets it. At S = .9 and .8
    RigL is trained 1, 2, 3 and 1 / ratio times as long, ratio being its training FLOPs relative to dense training.

    Cost: 29 runs a seed, the longest 5 to 10 times as long as the others. Paper: WRN-22-2 on CIFAR-10 and ResNet-50 on
    CIFAR-100, some 2 and 6 hours for a run of single length on a GTX 1080. Small: WRN-10-1, some 10 s a run on digits
    as images, some ten minutes on CIFAR-10, on one core.

    Expected: at equal FLOPs uniform is above ERK (the report's section 6.1), most at small shares; FLOP-aware is ours
    and open. Longer training helps up to and beyond the dense net's accuracy at S = .8. Small: the three distributions
    are within noise of each other, 97.9 to 98.6 at .05x and 99.0 to 99.1 at .35x; with all the FLOPs of the dense net
    (99.1) RigL ends at 99.0 to 99.5.
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
