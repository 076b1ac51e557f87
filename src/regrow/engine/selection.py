"""Top-k, positions and overlaps of whole weights in C++, for the time of a topology update; torch where there is none.

Each gives what torch's operations give, ties included.
"""

import torch
from torch import Tensor

from regrow.engine import native


def _fits(*tensors: Tensor) -> bool:
    return native.available() and all(
        type(tensor) is Tensor and tensor.is_cpu and tensor.is_contiguous() for tensor in tensors
    )


def select(scores: Tensor, count: int, among: Tensor) -> Tensor | None:
    """The mask that ``algorithm.select`` makes; None where torch must make it."""
    if scores.dtype != torch.float32 or among.dtype != torch.bool or scores.numel() >= 2**31:
        return None
    if among.numel() != scores.numel() or not _fits(scores, among):
        return None
    mask = torch.empty_like(among)
    native.extension().select(scores.data_ptr(), among.data_ptr(), scores.numel(), count, mask.data_ptr())
    return mask


def positions(mask: Tensor) -> Tensor:
    """Flat positions of the True entries of a mask, ascending: int32 where that suffices, else int64."""
    if mask.numel() >= 2**31:
        return mask.flatten().nonzero().flatten()
    if mask.dtype != torch.bool or not _fits(mask):
        return mask.flatten().nonzero().flatten().to(torch.int32)
    found = torch.empty(int(mask.count_nonzero()) + 1, dtype=torch.int32)
    return found[: native.extension().positions(mask.data_ptr(), mask.numel(), found.data_ptr())]


def expand(columns: Tensor, starts: Tensor, width: int) -> Tensor | None:
    """Flat positions in a matrix ``width`` wide, int32, from int16 columns less 32,768 and the beginnings of its rows.

    None where torch must make them.
    """
    if columns.dtype != torch.int16 or starts.dtype != torch.int64 or not _fits(columns, starts):
        return None
    found = torch.zeros(len(columns), dtype=torch.int32)
    native.extension().expand(
        columns.data_ptr(), len(columns), starts.data_ptr(), len(starts) - 1, width, found.data_ptr()
    )
    return found


def overlap(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Of two ascending lists of positions: which entries of each are in the other, as bool masks."""
    if first.dtype != torch.int32 or second.dtype != torch.int32 or not _fits(first, second):
        return torch.isin(first, second), torch.isin(second, first)
    stays, known = torch.empty(len(first), dtype=torch.bool), torch.empty(len(second), dtype=torch.bool)
    native.extension().overlap(
        first.data_ptr(), len(first), second.data_ptr(), len(second), stays.data_ptr(), known.data_ptr()
    )
    return stays, known
