"""What a plan is given of a layer, and what its forward and backward passes leave: records without the engine."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from regrow.engine.tensor_checks import NormTensors


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

    def resized(self, values: Sequence[int], biases: Sequence[int], norms: Sequence[int]) -> bool:
        """Whether a tensor has not the size any more that it had, so that C++ must not have its address."""
        of_norms = [
            (tensor, size)
            for tensors, size in zip(self.norm_tensors, norms, strict=True)
            for tensor in tensors
            if tensor is not None
        ]
        known = [*zip(self.values, values, strict=True), *zip(self.biases, biases, strict=True), *of_norms]
        return any(tensor.numel() != size for tensor, size in known)

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
