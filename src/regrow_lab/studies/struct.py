"""Table 2 of the supplementary: channels as the unit, with the wall time measured."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.studies.settings import BOTH, CIFAR_10, CIFAR_100, grid, row, setting

SPARSITIES = (0.9, 0.8)


def struct(seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
    """Small-dense, RigL and RigL-struct; the time of a step is measured beside the dense net's when a run has ended.

    RigL-struct's dead channels are cut out of the net before it is timed; RigL's net keeps its size.

    Cost: 11 runs a seed on each data set. Paper: WRN-22-2 on CIFAR-10 and ResNet-50 on CIFAR-100, some 2 and 6 hours a
    run on a GTX 1080. Small: WRN-10-1, some 10 s a run on digits as images, some ten minutes on CIFAR-10, on one core.

    Expected at the paper's scale, CIFAR-10, S = .9: small-dense 89.0, RigL 91.7, RigL-struct 87.0 (ERK 92.4 and 89.6).
    The report's wall times (.10x) are the FLOPs: measured ones are larger, as a narrow net does not use a machine well.
    Small, S = .9: small-dense 98.3, RigL 98.9, RigL-struct 96.3 (ERK 98.4 and 98.3), a step of it .68x and .80x.
    """
    rows = [row("dense"), row("small-dense")]
    rows += [row(method, name) for method in ("rigl", "rigl-struct") for name in BOTH]
    papers = (CIFAR_10, CIFAR_100) if scale == "paper" and data is None else (CIFAR_10,)
    bases = [{**setting(scale, data, paper, convolutions=True), "timed": True} for paper in papers]
    return [run for base in bases for run in grid(base, rows, SPARSITIES, seeds)]
