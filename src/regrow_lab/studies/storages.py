"""Compact storage beside masked dense weights: the same accuracy, in fp32 and bf16, in less time."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.studies.settings import CIFAR_10, SMALL, grid, row, setting

SPARSITIES = (0.9, 0.95)
PRECISIONS = ("float32", "bf16")


def storages(seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
    """RigL (ERK) in compact storage and with masks, and the dense net, each in fp32 and in bf16; hours are a column.

    Cost: 10 runs a seed. Small: WRN-10-1, 2 to 6 s a run on digits as images. By the time of a step on one core of a
    2026 Xeon: on CIFAR-10 (JPEG) 6 to 10 minutes a run in compact storage, 15 to 45 the others; paper (WRN-22-2, 30
    epochs) half an hour (bf16) or an hour (fp32) compact, 2 to 5 hours the others.

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
