"""Where the alive entries of a weight stand, in two bytes each where a row has at most 65,536 columns."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.engine import selection

MOST_COLUMNS = 2**16
OFFSET = 2**15  # torch pickles no unsigned 16-bit numbers


@dataclass(frozen=True, eq=False)
class Positions:
    """Ascending flat row-major positions in a matrix of (outputs, all else).

    Attributes:
        shape: of the dense weight.
        columns: (nnz,) int16, the column of each position less 32,768; or, in a wider matrix, the flat position, int64.
        starts: (rows + 1,) int64, where each row begins in ``columns``; None in a wider matrix.
    """

    shape: tuple[int, ...]
    columns: Tensor
    starts: Tensor | None

    @classmethod
    def of(cls, indices: Tensor, shape: tuple[int, ...]) -> "Positions":
        """From flat positions, ascending.

        >>> Positions.of(torch.tensor([1, 3, 5]), (2, 3)).indices.tolist()
        [1, 3, 5]
        """
        rows, width = shape[0], math.prod(shape[1:])
        if width > MOST_COLUMNS:
            return cls(shape, indices.long(), None)
        bounds = torch.arange(rows + 1, device=indices.device, dtype=indices.dtype) * width
        return cls(shape, (indices % width - OFFSET).to(torch.int16), torch.searchsorted(indices, bounds))

    @property
    def indices(self) -> Tensor:
        """Flat positions, made anew: int32 where that suffices, else int64."""
        dtype = torch.int32 if math.prod(self.shape) < 2**31 else torch.int64
        if self.starts is None:
            return self.columns.to(dtype)
        width = math.prod(self.shape[1:])
        found = selection.expand(self.columns, self.starts, width) if dtype == torch.int32 else None
        if found is not None:
            return found
        firsts = torch.arange(self.shape[0], dtype=dtype, device=self.columns.device) * width
        return firsts.repeat_interleave(self.starts.diff(), output_size=len(self)).add_(self.columns.to(dtype) + OFFSET)

    def __len__(self) -> int:
        return len(self.columns)

    @property
    def bytes(self) -> int:
        """Memory."""
        return sum(
            tensor.numel() * tensor.element_size() for tensor in (self.columns, self.starts) if tensor is not None
        )
