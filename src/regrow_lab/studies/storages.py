"""Compact storage beside masked dense weights: the same accuracy, in fp32 and bf16, in less time."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.studies.common import CIFAR_10, SMALL, grid, row, setting

SPARSITIES = (0.9, 0.95)
PRECISIONS = ("float32", "bf16")


def storages(seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
    """RigL (ERK) in compact storage and with masks, and the dense net, each in fp32 and in bf16; hours are a column.

    Cost: 10 runs a seed. Small: WRN-10-1, some 20 s a run on digits as images; on CIFAR-10 (JPEG), one core of a 2026
    Xeon, some 5 minutes a run in compact storage and 20 to 40 the others. Paper: WRN-22-2 for 30 epochs, on such a core
    some half an hour (bf16) or hour (fp32) compact, 3 and 5 hours dense or masked.

    Expected: at each sparsity the four ways of RigL within noise of each other; hours as the engine's measured ratios.
    """
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
