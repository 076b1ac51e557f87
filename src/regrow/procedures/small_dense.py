"""Small-Dense, the control: a dense net whose widths are scaled down to the size of a sparse one."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import ceil, floor

import torch
from torch import nn

from regrow.layers import find_layers
from regrow.parts.distributions import check_sparsity

PRECISION = 1e-6


@dataclass(frozen=True)
class SmallDense:
    """A width multiplier, the weights of the net it builds, and the alive weights of the sparse net it stands for."""

    multiplier: float
    num_weights: int
    target: int


def small_dense(build: Callable[[float], nn.Module], sparsity: float) -> SmallDense:
    """The width multiplier whose net comes closest to (1 − S) · N weights, N being those of the net at full width.

    Sparsifiable weights are counted on both sides, as :func:`regrow.find_layers` finds them. The number of weights
    must not fall where the multiplier grows; of all multipliers that build the same net, a short one is returned.

    Args:
        build: multiplier → net, each width rounded down but at least 1, as in ``max(1, int(width * multiplier))``.
            It runs some thirty times on the ``meta`` device, where weights take neither time nor memory.
        sparsity: S, share of zeros in the sparse net.

    Raises:
        ValueError: S is outside [0, 1), or the narrowest net is more than 10 % too large.

    Section 3.0.1 of Sundar & Dwaraknath 2021, which took sqrt(1 − S) as the multiplier.

    >>> small_dense(lambda multiplier: nn.Linear(100, max(1, int(300 * multiplier))), sparsity=0.9)
    SmallDense(multiplier=0.1, num_weights=3000, target=3000)
    """
    sparsity = check_sparsity(sparsity)

    @cache
    def num_weights(multiplier: float) -> int:
        with torch.device("meta"), torch.random.fork_rng(devices=()):
            model = build(multiplier)
        return sum(layer.size for layer in find_layers(model).values())

    target = round((1 - sparsity) * num_weights(1.0))
    narrow = wide = 1.0
    while num_weights(narrow) > target and narrow > PRECISION:
        narrow, wide = narrow / 2, narrow
    while wide - narrow > PRECISION:
        middle = (narrow + wide) / 2
        narrow, wide = (middle, wide) if num_weights(middle) <= target else (narrow, middle)
    closest = min((narrow, wide), key=lambda multiplier: abs(num_weights(multiplier) - target))
    size = num_weights(closest)
    if size > 1.1 * target:
        raise ValueError(
            f"sparsity {sparsity} leaves {target} weights, but the narrowest net that build makes has {size}: "
            "ask for a lower sparsity"
        )
    rounded = (up_or_down(closest * 10**n) / 10**n for n in range(1, 6) for up_or_down in (floor, ceil))
    short = (multiplier for multiplier in rounded if multiplier > 0 and num_weights(multiplier) == size)
    return SmallDense(next(short, closest), size, target)
