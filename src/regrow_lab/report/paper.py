"""What the reproducibility report printed: its Tables 1 to 5 and Table 2 of its supplementary, and the slips in them.

Sundar & Dwaraknath 2021, "Reproducibility Report: Rigging the Lottery". A row is known by the label that
`regrow_lab.report.summary` gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Value:
    """One printed cell: accuracy in percent with its deviation, FLOPs (or wall time) relative to the dense net's."""

    accuracy: float
    std: float | None = None
    train: float | None = None
    test: float | None = None
    wall: float | None = None
    slip: str = ""
    """What is wrong with it, where something is."""


@dataclass(frozen=True)
class Published:
    """A printed table: the net and the data it is about, and row label -> sparsity -> cell."""

    name: str
    model: str
    data: str
    rows: Mapping[str, Mapping[float, Value]]


def _table(name: str, model: str, data: str, columns: tuple[str, ...], text: str, *sparsities: float) -> Published:
    """Lines of `label | cell | cell`, a cell for each sparsity (the dense net has one); a cell holds `columns`."""
    rows: dict[str, dict[float, Value]] = {}
    for line in text.strip().splitlines():
        label, *cells = (part.strip() for part in line.split("|"))
        at = (0.0,) if label == "Dense" else sparsities
        found = [dict(zip(columns, map(float, cell.split()), strict=False)) for cell in cells]
        rows[label] = {
            sparsity: Value(**values, slip=SLIPS.get((name, label, sparsity), ""))
            for sparsity, values in zip(at, found, strict=True)
        }
    return Published(name, model, data, rows)


_LOTTERY = "train FLOPs of Lottery follow another pruning formula here than on CIFAR-10 (there: pruning + test)"
_RIGL = "RigL (uniform, S = .8) is 92.6 in Tables 2 and 4 and 92.9 in Table 5 and the supplementary"
SLIPS: Mapping[tuple[str, str, float], str] = {
    ("Table 2", "SNFS_2x", 0.8): "test FLOPs are printed as 0.98x: that is twice the 0.49x of one forward pass",
    ("Table 2", "Static_2x", 0.9): "the row repeats Static",
    ("Table 2", "Static_2x", 0.8): "the row repeats Static",
    ("Table 2", "SET_2x", 0.9): "one collapsed seed in three: the mean of 83.3 ± 15.33 says nothing of the others",
    ("Table 2", "RigL", 0.8): _RIGL,
    ("Table 4", "RigL", 0.8): _RIGL,
    ("Table 5, CIFAR-10", "RigL", 0.8): _RIGL,
    ("Supplementary Table 2, CIFAR-10", "RigL", 0.8): _RIGL,
    ("Table 3", "Lottery", 0.9): _LOTTERY,
    ("Table 3", "Lottery", 0.8): _LOTTERY,
}
"""(table, row, sparsity) -> what is wrong with the printed cell."""
SLIPS_OF_THE_TEXT = (
    "ER and ERK are written as s ∝ 1 − (…); it is the density that is proportional to (…).",
    "The text gives ResNet-50 two 3×3 convolutions as its stem; its FLOPs (2.59e9) and the supplementary have one.",
    "The text warms up for 2 epochs on CIFAR-100; the code does so for 1,760 steps, which are 5.",
    "Wall times of the supplementary's Table 2 are FLOP ratios, not measurements.",
)

ACCURACY = ("accuracy",)
WITH_STD = ("accuracy", "std")
FULL = ("accuracy", "std", "train", "test")
WALL = ("accuracy", "std", "wall")
WRN, RESNET = ("wrn-22-2", "cifar10"), ("resnet50-cifar", "cifar100")

TABLE_1 = _table(
    "Table 1",
    *WRN,
    ACCURACY,
    """
    Dense        | 94.6
    Static (ERK) | 91.6 | 93.2 | 94.3
    Pruning      | 93.2 | 93.6 | 94.3
    RigL (ERK)   | 93.2 | 93.8 | 94.4
    """,
    *(0.9, 0.8, 0.5),
)
TABLE_1_ORIGINAL = _table(
    "Table 1, original",
    *WRN,
    ACCURACY,
    """
    Dense        | 94.1
    Static (ERK) | 91.6 | 92.9 | 94.2
    Pruning      | 93.3 | 93.5 | 94.1
    RigL (ERK)   | 93.1 | 93.8 | 94.3
    """,
    *(0.9, 0.8, 0.5),
)
TABLE_2 = _table(
    "Table 2",
    *WRN,
    FULL,
    """
    Small Dense   | 89.0  0.35  0.11 0.11 | 91.0 0.07 0.20 0.20
    Static        | 89.1  0.17  0.10 0.10 | 91.2 0.16 0.20 0.20
    SET           | 91.3  0.47  0.10 0.10 | 92.7 0.28 0.20 0.20
    RigL          | 91.7  0.18  0.10 0.10 | 92.6 0.10 0.20 0.20
    SET (ERK)     | 92.2  0.04  0.17 0.17 | 92.9 0.16 0.35 0.35
    RigL (ERK)    | 92.4  0.06  0.17 0.17 | 93.1 0.09 0.35 0.35
    Static_2x     | 89.15 0.17  0.20 0.10 | 91.2 0.16 0.40 0.20
    Lottery       | 90.4  0.09  0.45 0.13 | 92.0 0.31 0.68 0.27
    SET_2x        | 83.3  15.33 0.20 0.10 | 93.0 0.22 0.41 0.20
    SNFS          | 92.4  0.43  0.51 0.27 | 92.7 0.20 0.66 0.49
    SNFS (ERK)    | 92.2  0.2   0.52 0.28 | 92.8 0.07 0.66 0.49
    SNFS_2x       | 92.3  0.33  1.02 0.27 | 93.2 0.14 1.32 0.98
    RigL_2x       | 92.3  0.25  0.20 0.10 | 93.0 0.21 0.41 0.20
    Pruning       | 92.6  0.08  0.32 0.13 | 93.2 0.27 0.41 0.27
    RigL_2x (ERK) | 92.7  0.37  0.34 0.17 | 93.3 0.09 0.70 0.35
    Dense         | 93.4  0.07
    """,
    *(0.9, 0.8),
)
TABLE_3 = _table(
    "Table 3",
    *RESNET,
    FULL,
    """
    Static        | 69.7 0.42 0.10 0.10 | 72.3 0.30 0.20 0.20
    Small Dense   | 70.8 0.22 0.11 0.11 | 72.6 0.93 0.20 0.20
    SET           | 71.4 0.35 0.10 0.10 | 73.4 0.45 0.20 0.20
    RigL          | 71.8 0.33 0.10 0.10 | 73.5 0.04 0.20 0.20
    Static (ERK)  | 71.5 0.18 0.22 0.22 | 73.2 0.39 0.38 0.38
    SET (ERK)     | 72.3 0.39 0.22 0.22 | 73.5 0.25 0.38 0.38
    RigL (ERK)    | 72.6 0.37 0.23 0.22 | 73.4 0.15 0.38 0.38
    SNFS          | 72.3 0.20 0.58 0.37 | 73.9 0.20 0.70 0.55
    SNFS (ERK)    | 73.0 0.33 0.59 0.38 | 73.9 0.27 0.69 0.54
    Pruning       | 73.1 0.32 0.36 0.11 | 73.8 0.23 0.45 0.25
    RigL_2x       | 73.1 0.71 0.20 0.10 | 74.0 0.24 0.41 0.20
    Lottery       | 73.6 0.32 0.62 0.11 | 74.2 0.41 0.81 0.25
    RigL_3x       | 73.7 0.16 0.30 0.10 | 74.2 0.23 0.61 0.20
    RigL_2x (ERK) | 73.6 0.05 0.46 0.22 | 74.4 0.10 0.76 0.38
    Dense         | 74.7 0.38
    """,
    *(0.9, 0.8),
)
TABLE_4 = _table(
    "Table 4",
    *WRN,
    WITH_STD,
    """
    RigL       | 91.7 0.18 | 92.6 0.10 | 93.3 0.07
    RigL (ERK) | 92.4 0.06 | 93.1 0.09 | 93.4 0.14
    """,
    *(0.9, 0.8, 0.5),
)
OPTIMAL: Mapping[tuple[str, float], tuple[float, int, float, float]] = {
    ("RigL", 0.9): (0.197, 50, 91.8, 0.17),
    ("RigL", 0.8): (0.448, 150, 92.8, 0.16),
    ("RigL", 0.5): (0.459, 550, 93.3, 0.18),
    ("RigL (ERK)", 0.9): (0.416, 200, 92.4, 0.23),
    ("RigL (ERK)", 0.8): (0.381, 950, 93.1, 0.21),
    ("RigL (ERK)", 0.5): (0.287, 500, 93.8, 0.06),
}
"""Table 4, its right half: (row, sparsity) -> tuned alpha, tuned dT, accuracy, deviation."""
TABLE_5_CIFAR_10 = _table(
    "Table 5, CIFAR-10",
    *WRN,
    FULL,
    """
    RigL                      | 91.7  0.18 0.10 0.10 | 92.9 0.10 0.20 0.20
    RigL-SG                   | 92.2  0.17 0.28 0.28 | 92.7 0.25 0.49 0.49
    RigL-SM                   | 92.2  0.20 0.28 0.28 | 92.9 0.21 0.50 0.49
    RigL (ERK)                | 92.4  0.06 0.17 0.17 | 93.1 0.09 0.35 0.35
    RigL-SG (ERK)             | 92.1  0.19 0.28 0.28 | 92.7 0.19 0.49 0.49
    RigL-SM (ERK)             | 92.27 0.01 0.28 0.28 | 93.0 0.13 0.50 0.49
    RigL (start=rigl-sm)      | 90.3  0.34 0.28 0.28 | 91.0 0.38 0.50 0.49
    RigL (ERK, start=rigl-sm) | 90.2  0.57 0.28 0.28 | 90.6 0.56 0.50 0.49
    """,
    *(0.9, 0.8),
)
TABLE_5_CIFAR_100 = _table(
    "Table 5, CIFAR-100",
    *RESNET,
    FULL,
    """
    RigL                      | 71.8 0.33 0.10 0.10 | 73.5 0.04 0.20 0.20
    RigL-SG                   | 72.3 0.12 0.36 0.35 | 73.7 0.15 0.53 0.53
    RigL-SM                   | 72.6 0.27 0.36 0.36 | 73.7 0.35 0.53 0.53
    RigL (ERK)                | 72.6 0.37 0.23 0.22 | 73.4 0.15 0.38 0.38
    RigL-SG (ERK)             | 73.0 0.13 0.37 0.36 | 74.2 0.26 0.53 0.53
    RigL-SM (ERK)             | 72.6 0.27 0.37 0.37 | 74.2 0.13 0.53 0.53
    RigL (start=rigl-sm)      | 67.6 0.28 0.36 0.36 | 68.9 0.65 0.53 0.53
    RigL (ERK, start=rigl-sm) | 67.8 0.73 0.37 0.37 | 68.9 0.47 0.53 0.53
    """,
    *(0.9, 0.8),
)
STRUCT_CIFAR_10 = _table(
    "Supplementary Table 2, CIFAR-10",
    *WRN,
    WALL,
    """
    Small Dense       | 89.0 0.35 0.11 | 91.0 0.07 0.20
    RigL              | 91.7 0.18 1.0  | 92.9 0.10 1.0
    RigL-struct       | 87.0 0.09 0.10 | 90.4 0.27 0.20
    RigL (ERK)        | 92.4 0.06 1.0  | 93.1 0.09 1.0
    RigL-struct (ERK) | 89.6 0.16 0.17 | 91.3 0.18 0.35
    """,
    *(0.9, 0.8),
)
STRUCT_CIFAR_100 = _table(
    "Supplementary Table 2, CIFAR-100",
    *RESNET,
    WALL,
    """
    Small Dense       | 70.8 0.22 0.11 | 72.6 0.93 0.20
    RigL              | 71.8 0.33 1.0  | 73.5 0.04 1.0
    RigL-struct       | 69.1 0.11 0.10 | 71.9 0.13 0.20
    RigL (ERK)        | 72.6 0.37 1.0  | 73.4 0.15 1.0
    RigL-struct (ERK) | 71.1 0.15 0.23 | 72.9 0.08 0.38
    """,
    *(0.9, 0.8),
)

OF_STUDY: Mapping[str, tuple[Published, ...]] = {
    "table1": (TABLE_1, TABLE_1_ORIGINAL),
    "table2": (TABLE_2,),
    "table3": (TABLE_3,),
    "table5": (TABLE_5_CIFAR_10, TABLE_5_CIFAR_100),
    "struct": (STRUCT_CIFAR_10, STRUCT_CIFAR_100),
}
"""Study -> the tables that it rebuilds."""
BESIDE = {**OF_STUDY, "cifar10": (TABLE_2,)}
"""Study -> the tables that it is set beside: those, and one of which it holds a part."""
TABLES = (*(table for tables in OF_STUDY.values() for table in tables), TABLE_4)
DENSE_FLOPS: Mapping[str, tuple[float, float]] = {"wrn-22-2": (9.45e8, 3.15e8), "resnet50-cifar": (7.77e9, 2.59e9)}
"""Model -> printed FLOPs of a training step and a forward pass of the dense net, a sample."""
