"""A region of a network as a list of operations: what the graph cutter writes and the engine runs.

A program is in static single assignment: every operation makes one value, named by its position in ``operations``.
Values are activations of shape (batch, channels, height, width); a linear layer works on height = width = 1. What can
be fused is the engine's affair; the records only say what is computed.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Input:
    """The region's ``position``-th input tensor."""

    position: int
    channels: int
    height: int
    width: int


@dataclass(frozen=True)
class Convolution:
    """Cross-correlation with the sparse weight number ``weight`` (out, in, kernel height, kernel width), groups = 1."""

    source: int
    weight: int
    bias: int | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)


@dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation number ``norm``: batch statistics in training (running ones updated), else running ones."""

    source: int
    norm: int


@dataclass(frozen=True)
class Relu:
    """max(x, 0)."""

    source: int


@dataclass(frozen=True)
class Dropout:
    """Elements are zeroed with ``probability`` in training and the rest scaled by 1 / (1 - probability)."""

    source: int
    probability: float


@dataclass(frozen=True)
class Add:
    """Sum of two values of one shape."""

    left: int
    right: int


@dataclass(frozen=True)
class AveragePool:
    """Mean over windows, padding counted as torch does by default; ``kernel`` None: over the whole image."""

    source: int
    kernel: tuple[int, int] | None
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class MaxPool:
    """Maximum over windows; padding never wins."""

    source: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Flatten:
    """(batch, C, H, W) → (batch, C · H · W, 1, 1), in torch's order."""

    source: int


Operation = Input | Convolution | BatchNorm | Relu | Dropout | Add | AveragePool | MaxPool | Flatten


@dataclass(frozen=True)
class Program:
    """Operations in order, and the values that leave the region."""

    operations: tuple[Operation, ...]
    outputs: tuple[int, ...]


class Norm(Protocol):
    """What a batch normalisation of a program knows; torch's modules do."""

    weight: Tensor | None
    bias: Tensor | None
    running_mean: Tensor | None
    running_var: Tensor | None
    eps: float
    momentum: float | None
