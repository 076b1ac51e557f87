"""What the studies share: the settings of the two scales, rows × sparsities × seeds, the report's questions and slips.

The report is Sundar & Dwaraknath 2021, "Reproducibility Report: Rigging the Lottery".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from regrow_lab.config import RunConfig
from regrow_lab.report.paper import Net
from regrow_lab.studies.record import SCALES

Fields = Mapping[str, Any]

BOTH = ("uniform", "erk")

CIFAR_10: Fields = {
    "model": "wrn-22-2",
    "data": "cifar10",
    "epochs": 250,
    "batch_size": 128,
    "learning_rate": 0.1,
    "nesterov": True,
    "weight_decay": 5e-4,
    "schedule": "step",
    "decay_steps": 30_000,
    "augmentation": "crop-flip",
    "validation": 5_000,
    "every": 100,
    "stop": 65_918.5 / 88_000,  # the report's T_end; the half makes sure of the rounding
    "pruning_start": 700.5 / 88_000,
}
CIFAR_100: Fields = {
    **CIFAR_10,
    "model": "resnet50-cifar",
    "data": "cifar100",
    "weight_decay": 1e-4,
    "decay_steps": 20_000,
    "warmup_steps": 1_760,
    "label_smoothing": 0.1,
}
SMALL: Mapping[str, Fields] = {
    "digits": {},
    "digits-images": {"model": "wrn-10-1", "data": "digits-images", "epochs": 25, "dropout": 0.0},
    "cifar10-jpeg": {
        "model": "wrn-10-1",
        "data": "cifar10-jpeg",
        "epochs": 25,
        "batch_size": 128,
        "learning_rate": 0.2,
        "nesterov": True,
        "schedule": "one-cycle",
        "augmentation": "crop-flip",
        "precision": "bf16",
        "dropout": 0.0,
        "every": 100,
    },
}
"""Data set -> what is trained on it at the small scale."""

WRN = Net("wrn-22-2", "cifar10", (9.45e8, 3.15e8))
RESNET = Net("resnet50-cifar", "cifar100", (7.77e9, 2.59e9))
"""What the report's tables are about."""
BEST_METHOD = "1. Does RigL outperform SET and SNFS, and match pruning?"
TUNING = "2. Is RigL sensitive to its two hyperparameters, or to the learning rate?"
DENSITIES = "3. How does the sparsity distribution matter at fixed parameters, and at fixed FLOPs?"
REDISTRIBUTION = "4. Does redistribution help RigL, and does its final distribution serve as a start?"
BEYOND = "Beyond the four questions"
"""The report's questions."""
RIGL_AT_80 = "RigL (uniform, S = .8) is 92.6 in Tables 2 and 4 and 92.9 in Table 5 and the supplementary"
SLIPS_OF_THE_TEXT = (
    "Slips in the report's text, beside those marked ‡:",
    "",
    "- ER and ERK are written as s ∝ 1 − (…); it is the density that is proportional to (…).",
    "- The text gives ResNet-50 two 3×3 convolutions as its stem; its FLOPs (2.59e9) and the supplementary have one.",
    "- The text warms up for 2 epochs on CIFAR-100; the code does so for 1,760 steps, which are 5.",
    "- Wall times of the supplementary's Table 2 are FLOP ratios, not measurements.",
)


def setting(scale: str, data: str | None, paper: Fields, *, convolutions: bool = False) -> dict[str, Any]:
    """The fields that all runs of a study share.

    Args:
        scale: small or paper.
        data: name of a data set; None: digits, or the paper's.
        paper: the setting of the paper.
        convolutions: whether the study is about a net with convolutions; digits are then taken as images.

    At the small scale data that have no setting of their own take that of the digits.

    Raises ValueError for another scale.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}")
    if scale == "paper":
        return {**paper, **({} if data is None else {"data": data})}
    name = "digits" if data is None else data
    name = "digits-images" if convolutions and name == "digits" else name
    usual = SMALL["digits-images" if convolutions else "digits"]
    return {**SMALL.get({"cifar10": "cifar10-jpeg"}.get(name, name), usual), "data": name}


def grid(base: Fields, rows: Sequence[Fields], sparsities: Iterable[float], seeds: int) -> list[RunConfig]:
    """Every row at every sparsity and seed, seed by seed: a study that is stopped early has every row already."""
    return [
        RunConfig(**{**base, **row, "sparsity": 0.0 if row["method"] == "dense" else sparsity, "seed": seed})
        for seed in range(seeds)
        for row in rows
        for sparsity in ((0.0,) if row["method"] == "dense" else sparsities)
    ]


def row(method: str, distribution: str | None = None, multiplier: float = 1, **fields: Any) -> dict[str, Any]:
    """One row of a table, as fields of its runs."""
    return {"method": method, "distribution": distribution, "multiplier": multiplier, **fields}
