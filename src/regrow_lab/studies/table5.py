"""Table 5 and Figure 5 of the report: redistribution, and starting again from what it found."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.studies.settings import BOTH, CIFAR_10, CIFAR_100, grid, row, setting

SPARSITIES = (0.9, 0.8)


def table5(seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
    """RigL, RigL-SG, RigL-SM from both distributions; RigL from RigL-SM's final masks, and from its densities alone.

    The third group of Table 5 is RigL from the final masks of RigL-SM with the same seed; starting from the densities
    alone is ours, and tells whether the masks or the densities are at fault.

    Cost: 21 runs a seed on each data set. Paper: CIFAR-10 (WRN-22-2) and CIFAR-100 (ResNet-50), some 2 and 6 hours a
    run on a GTX 1080. Small: WRN-10-1, some 10 s a run on digits as images, some ten minutes on CIFAR-10, on one core.

    Expected at the paper's scale, CIFAR-10, S = .9: RigL 91.7, RigL-SG and RigL-SM 92.2 from uniform; 92.4, 92.1, 92.3
    from ERK; 90.3 and 90.2 re-initialised; FLOPs of both redistributions .28x. Small: the FLOPs rise as they do there,
    and all rows lie between 98.4 and 99.5 percent, re-initialised ones too: too easy to tell them apart.
    """
    rows = [row("dense")]
    rows += [row(method, name) for name in BOTH for method in ("rigl-sm", "rigl-sg", "rigl")]
    rows += [row("rigl", name, start="rigl-sm") for name in BOTH]
    rows += [row("rigl", name, start="rigl-sm-densities") for name in BOTH]
    papers = (CIFAR_10, CIFAR_100) if scale == "paper" and data is None else (CIFAR_10,)
    return [
        run for paper in papers for run in grid(setting(scale, data, paper, convolutions=True), rows, SPARSITIES, seeds)
    ]
