"""A table that a paper printed, as a study holds it: what ours is set beside."""

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
class Net:
    """What a printed table is about: model, data, and printed FLOPs of a dense training step and forward pass."""

    model: str
    data: str
    dense_flops: tuple[float, float]


@dataclass(frozen=True)
class Published:
    """A printed table: its name, the net it is about, and row label -> sparsity -> cell."""

    name: str
    net: Net
    rows: Mapping[str, Mapping[float, Value]]


ACCURACY = ("accuracy",)
WITH_STD = ("accuracy", "std")
FULL = ("accuracy", "std", "train", "test")
WALL = ("accuracy", "std", "wall")


def printed(
    name: str,
    net: Net,
    columns: tuple[str, ...],
    sparsities: tuple[float, ...],
    text: str,
    slips: Mapping[tuple[str, float], str] | None = None,
) -> Published:
    """The table of lines `label | cell | cell`, with a cell for each of `sparsities` (the dense net has one).

    Args:
        name: what the paper calls it.
        net: what it is about.
        columns: fields of `Value` that a cell holds, in their order.
        sparsities: of the cells of a line.
        text: the lines. A row is known by the label that `regrow_lab.report.summary` gives it.
        slips: (label, sparsity) -> what is wrong with the printed cell.
    """
    rows: dict[str, dict[float, Value]] = {}
    for line in text.strip().splitlines():
        label, *cells = (part.strip() for part in line.split("|"))
        at = (0.0,) if label == "Dense" else sparsities
        found = [dict(zip(columns, map(float, cell.split()), strict=False)) for cell in cells]
        rows[label] = {
            sparsity: Value(**values, slip=(slips or {}).get((label, sparsity), ""))
            for sparsity, values in zip(at, found, strict=True)
        }
    return Published(name, net, rows)
