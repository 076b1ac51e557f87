"""Table 1 of the report: the reproduction beside the original authors' numbers, without a validation split."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.studies.settings import CIFAR_10, grid, row, setting

SPARSITIES = (0.9, 0.8, 0.5)


def table1(seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
    """Dense, static (ERK), pruning and RigL (ERK), trained on all 50,000 images of CIFAR-10: Table 1.

    Cost: 10 runs a seed. Paper (WRN-22-2, 250 epochs): some 2 hours a run on a GTX 1080. Small: a second a run on
    digits, some ten minutes a run with WRN-10-1 on CIFAR-10, on one core.

    Expected at the paper's scale, S = .9, .8, .5: dense 94.6; static 91.6, 93.2, 94.3; pruning 93.2, 93.6, 94.3;
    RigL 93.2, 93.8, 94.4. Small: pruning and RigL above static at S = .9, no difference to be seen at .5.
    """
    base = {**setting(scale, data, CIFAR_10), "validation": 0}
    if scale == "paper":  # the same steps as with the validation split, of 391 batches an epoch in place of 352
        base |= {field: base[field] * 352 / 391 for field in ("stop", "pruning_start")}
    rows = [row("dense"), row("static", "erk"), row("pruning"), row("rigl", "erk")]
    return grid(base, rows, SPARSITIES, seeds)
