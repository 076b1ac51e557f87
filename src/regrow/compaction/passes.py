"""What a plan is given of a layer, and what its forward and backward passes leave: records without the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regrow.compaction.borders import NormTensors


@dataclass(frozen=True)
class SparseWeight:
    """A layer's dense shape (out, in) or (out, in, kernel height, kernel width) and its alive positions.

    Args:
        shape: of the dense weight.
        indices: 1-D, int32 or int64: flat row-major positions of the alive weights, ascending.
    """

    shape: tuple[int, ...]
    indices: Tensor


@dataclass
class Saved:
    """One forward pass, for its backward."""

    run: Any
    generation: int
    values: Sequence[Tensor]
    biases: Sequence[Tensor]
    norm_tensors: Sequence[NormTensors]
    input_shapes: tuple[torch.Size, ...]
    input_dtypes: tuple[torch.dtype, ...]
    output_shapes: tuple[torch.Size, ...]

    def __post_init__(self) -> None:
        self._sizes = self._sizes_now()

    def _sizes_now(self) -> list[int]:
        of_norms = [tensor for tensors in self.norm_tensors for tensor in tensors if tensor is not None]
        return [tensor.numel() for tensor in (*self.values, *self.biases, *of_norms)]

    @property
    def resized(self) -> bool:
        """Whether a tensor of weights has another size than it had, so that C++ must not have its address."""
        return self._sizes_now() != self._sizes

    @property
    def bytes(self) -> int:
        """Memory that the pass holds."""
        return int(self.run.bytes)


@dataclass
class Gradients:
    """Gradients in the order of their tensors; None where an input's was not wanted or a norm has no such tensor."""

    inputs: list[Tensor | None]
    values: list[Tensor]
    biases: list[Tensor]
    norm_weights: list[Tensor | None]
    norm_biases: list[Tensor | None]
