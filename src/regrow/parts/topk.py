"""The largest scores: of one layer exactly, and under one threshold over many with one at a time in memory."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from regrow.engine import selection
from regrow.parts.scores import Evidence

FEW = 0.25  # share of candidates below which they are gathered first
LONG, SAMPLE = 2**16, 2**14
DIGITS = 2**16


def select(scores: Tensor, count: int, among: Tensor) -> Tensor:
    """Mask of the ``count`` candidates with the largest scores; on ties the lower index is taken.

    Args:
        scores: any shape; NaN counts as the smallest.
        count: how many, at most the number of candidates.
        among: bool mask of the candidates, same shape.

    >>> select(torch.tensor([3.0, 9.0, 3.0, 3.0]), 2, torch.tensor([True, False, True, True])).tolist()
    [True, False, True, False]
    """
    if count == 0:
        return torch.zeros_like(among)
    found = selection.select(scores, count, among)
    if found is not None:
        return found
    if int(among.count_nonzero()) < among.numel() * FEW:
        # The alive of a sparse net: what follows passes over the candidates alone.
        places = among.flatten().nonzero().squeeze(1)
        candidates = scores.flatten()[places]
        best = places[select(candidates, count, torch.ones_like(candidates, dtype=torch.bool))]
        chosen = torch.zeros(among.numel(), dtype=torch.bool, device=among.device).index_fill_(0, best, True)
        return chosen.view(among.shape)
    values = scores.float() if scores.dtype in (torch.float16, torch.bfloat16) else scores
    values = values.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf).masked_fill_(~among, -math.inf)
    threshold = _nth_largest(values.flatten(), count)
    above, ties = (values > threshold) & among, (values == threshold) & among
    missing = count - above.count_nonzero()
    if ties.count_nonzero() > missing:
        ties &= (ties.flatten().cumsum(0) <= missing).view(among.shape)
    return above | ties


def _nth_largest(values: Tensor, count: int) -> Tensor:
    """The ``count``-th largest of a list, as a tensor without dimensions.

    Of a long list a sample says between which bounds it lies; only what is between them is then searched, which takes a
    third of the time. Where the sample was wrong, everything is.
    """
    size = values.numel()
    if size > LONG:
        sample = values[:: size // SAMPLE]
        rank = count * sample.numel() / size
        slack = 4 * math.sqrt(rank) + 8
        low_rank, high_rank = math.ceil(rank + slack), math.floor(rank - slack)
        low = sample.kthvalue(max(1, sample.numel() - low_rank + 1)).values
        high = sample.kthvalue(min(sample.numel(), sample.numel() - high_rank + 1)).values
        larger = values > high
        between = values.masked_select((values >= low) & ~larger)
        rest = count - int(larger.count_nonzero())
        if 1 <= rest <= between.numel():
            return between.kthvalue(between.numel() - rest + 1).values
    return values.kthvalue(size - count + 1).values


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
