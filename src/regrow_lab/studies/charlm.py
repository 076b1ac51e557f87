"""The character-level language model of the original paper, on tiny Shakespeare."""

from __future__ import annotations

from regrow_lab.config import RunConfig
from regrow_lab.studies.settings import SCALES, Fields, grid, row

TEXT: Fields = {
    "model": "char-gru",
    "data": "tinyshakespeare",
    "epochs": 100,
    "batch_size": 32,
    "sequence_length": 512,
    "optimizer": "adam",
    "momentum": 0.0,
    "learning_rate": 7e-4,
    "weight_decay": 5e-4,
    "schedule": "constant",
    "clip": 10.0,
    "every": 100,
    "drop_fraction": 0.1,
    "stop": 1.0,
}
SMALL: Fields = {**TEXT, "epochs": 3, "sequence_length": 64, "every": 50, "precision": "bf16"}
SPARSITY = 0.75


def charlm(seeds: int = 3, scale: str = "small", data: str | None = None) -> list[RunConfig]:
    """Bits a character of dense, static, SET, SNFS, RigL, RigL_2x and pruning at S = .75, uniform densities.

    Cost: 7 runs a seed, one twice as long. Paper (GRU of 512, 100 epochs of tiny Shakespeare): minutes a run on a GPU.
    Small (3 epochs of shorter windows, bf16): 4 to 5 minutes a run on one core of a 2026 Xeon, some 20 a seed on two;
    take --seeds 1 for a first look. Needs tinyshakespeare.txt in the data folder.

    Expected (the original gives a figure, no numbers, on another text): pruning the best of the sparse ones, then RigL;
    SET the worst of the dynamic ones. Small, bits a character: dense 2.46, pruning 2.50, RigL_2x 2.53; RigL, SNFS and
    SET 2.67 to 2.68, within noise; static 2.74.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}")
    base = {**(TEXT if scale == "paper" else SMALL), **({} if data is None else {"data": data})}
    rows = [row("dense"), row("pruning"), row("static", "uniform"), row("set", "uniform"), row("snfs", "uniform")]
    rows += [row("rigl", "uniform"), row("rigl", "uniform", 2)]
    return grid(base, rows, (SPARSITY,), seeds)
