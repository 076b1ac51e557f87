"""Small-Dense, the control: a dense net whose widths are scaled down to the size of a sparse one."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from regrow.distributions import check_sparsity
from regrow.layers import find_layers

TOLERANCE = 0.1
BISECTIONS = 30


@dataclass(frozen=True)
class SmallDense:
    """A width multiplier, the weights of the net that it builds, and the alive weights of the sparse net it stands for."""

    multiplier: float
    num_weights: int
    target: int


def small_dense(build: Callable[[float], nn.Module], sparsity: float) -> SmallDense:
    """The width multiplier whose net comes closest to (1 − S) · N weights, N being those of the net at full width.

    Sparsifiable weights are counted on both sides, as :func:`regrow.find_layers` finds them. A bisection: the number
    of weights must not fall where the multiplier grows.

    Args:
        build: multiplier → net, each width floored, as in ``int(width * multiplier)``, and at least 1. It runs on the
            ``meta`` device, so it costs neither time nor memory and draws no random numbers.
        sparsity: S, share of zeros in the sparse net.

    Raises:
        ValueError: S is outside [0, 1), or the narrowest net is more than 10 % larger than asked.

    Section 3.0.1 of Sundar & Dwaraknath 2021, which took sqrt(1 − S) for the multiplier.

    >>> small_dense(lambda m: nn.Linear(100, max(1, int(300 * m))), sparsity=0.9)
    SmallDense(multiplier=0.1, num_weights=3000, target=3000)
    """
    check_sparsity(sparsity)

    def at(multiplier: float) -> SmallDense:
        with torch.device("meta"), torch.random.fork_rng(devices=()):
            net = build(multiplier)
        size = sum(layer.size for layer in find_layers(net).values())
        return SmallDense(multiplier, size, target)

    target = 0
    full = at(1.0)
    target = round((1 - sparsity) * full.num_weights)
    raise NotImplementedError
