"""Figure 3 of the report: learning rate against sparsity."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.studies.settings import BOTH, CIFAR_10, grid, row, setting

SPARSITIES = (0.9, 0.8, 0.5)
RATES = (0.1, 0.05, 0.01, 0.005)
UPDATES = ((0.3, 1), (0.4, 2), (0.4, 5), (0.5, 7.5))
"""alpha, and dT as a multiple of the setting's: (.3, 100), (.4, 200), (.4, 500), (.5, 750) at the paper's scale."""


def figure3(seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
    """RigL at four learning rates × four pairs (alpha, dT), S = .9, .8, .5, both distributions.

    Cost: 96 runs a seed. Paper (WRN-22-2, 250 epochs): some 2 hours a run on a GTX 1080. Small: a second a run on
    digits, some ten minutes a run with WRN-10-1 on CIFAR-10, on one core.

    Expected: learning rates .1 and .05 are the best or within the noise of it at every sparsity and distribution, .005
    is the worst; (alpha, dT) matters little.
    """
    base = setting(scale, data, CIFAR_10)
    every = base.get("every", RunConfig().every)
    rows = [
        row("rigl", name, learning_rate=rate, drop_fraction=alpha, every=int(every * stretch))
        for rate in RATES
        for alpha, stretch in UPDATES
        for name in BOTH
    ]
    return grid(base, rows, SPARSITIES, seeds)
