"""One threshold over many layers, with the scores of one layer at a time in memory."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from regrow.scores import Evidence

DIGITS = 2**16


def finite(scores: Tensor) -> Tensor:
    """A copy as float32 without NaN, which counts as the smallest, and without -0.0."""
    return scores.float().nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf) + 0.0


def sortable(values: Tensor) -> Tensor:
    """Float32 numbers as integers in [0, 2^32) of the same order.

    >>> keys = sortable(torch.tensor([-1.0, 0.0, 2.0]))
    >>> bool((keys[1:] > keys[:-1]).all())
    True
    """
    bits = values.view(torch.int32)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).long() + 2**31


def counts_of_largest(
    count: int, keys_of: Callable[[Evidence], Tensor], evidence: Mapping[str, Evidence]
) -> dict[str, int]:
    """How many of the ``count`` largest keys lie in each layer; of equal ones those of earlier layers are taken.

    The last key taken is found digit by digit, so that no two layers need be in memory.

    Args:
        count: at most the number of keys.
        keys_of: evidence of a layer → its keys, integers in [0, 2^32), in one dimension.
        evidence: layer name → what is known of it.
    """
    left, prefix = count, 0
    for shift in (16, 0):
        histogram = torch.zeros(DIGITS, dtype=torch.int64)
        for known in evidence.values():
            keys = keys_of(known) >> shift
            digits = (keys % DIGITS)[keys // DIGITS == prefix]
            histogram += digits.bincount(minlength=DIGITS).cpu()
        from_the_top = histogram.flip(0).cumsum(0)
        place = int(torch.searchsorted(from_the_top, left))
        left -= int(from_the_top[place - 1]) if place else 0
        prefix = prefix * DIGITS + DIGITS - 1 - place
    counts = {}
    for name, known in evidence.items():
        keys = keys_of(known)
        ties = min(left, int((keys == prefix).sum()))
        left -= ties
        counts[name] = int((keys > prefix).sum()) + ties
    return counts
