"""Sharing the weights that an update has freed among the layers."""

import math
from collections.abc import Sequence


def apportion(total: int, shares: Sequence[float], capacities: Sequence[int]) -> list[int]:
    """Integers x_l ∝ shares_l that sum to ``total`` exactly, each at most its capacity; overflow goes to the others.

    Args:
        total: units to hand out; at most the sum of the capacities.
        shares: a non-negative weight a layer; where none is positive (among those with room), room itself decides.
        capacities: the most that each layer can take.

    Dettmers & Zettlemoyer 2019, section 3.3 (momentum redistribution); remainders go to the largest fractions,
    on ties to the earlier layer.

    >>> apportion(10, [3.0, 1.0, 1.0], [4, 10, 10])
    [4, 3, 3]
    """
    assert 0 <= total <= sum(capacities), (total, capacities)
    given = [0] * len(shares)
    while True:
        left = total - sum(given)
        room = [capacity - have for capacity, have in zip(capacities, given, strict=True)]
        weights = [share if space else 0.0 for share, space in zip(shares, room, strict=True)]
        if sum(weights) <= 0:
            weights = [float(space) for space in room]
        if left == 0:
            return given
        ideal = [left * (weight / sum(weights)) for weight in weights]
        full = [layer for layer, space in enumerate(room) if space and ideal[layer] >= space]
        if not full:
            break
        for layer in full:
            given[layer] = capacities[layer]
    given = [have + math.floor(value) for have, value in zip(given, ideal, strict=True)]
    by_fraction = sorted(range(len(ideal)), key=lambda layer: math.floor(ideal[layer]) - ideal[layer])
    for layer in by_fraction[: total - sum(given)]:
        given[layer] += 1
    return given
