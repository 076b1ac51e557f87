"""Masks as bits: eight weights a byte, in files and between ranks."""

import math
from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def pack(mask: Tensor) -> Tensor:
    """A bool tensor as bytes, eight weights each, lowest bit first.

    >>> pack(torch.tensor([True, False, False, True, False, False, False, False, True])).tolist()
    [9, 1]
    """
    bits = torch.nn.functional.pad(mask.flatten().view(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return reduce(torch.bitwise_or, (bits * powers).unbind(1))


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack`."""
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(1) & powers) != 0
    return bits.flatten()[: math.prod(shape)].reshape(tuple(shape))
