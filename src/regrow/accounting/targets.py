"""Other ways to say how sparse: SET's epsilon, a FLOP budget, and a distribution that minds FLOPs.

A distribution is a family of counts with one parameter, so a budget of either kind is some global sparsity of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from regrow.accounting.flops import Flops
from regrow.layers import Layer
from regrow.parts.distributions import Distribution, PerLayer, Sharing, as_distribution, dimension_ratio, in_proportion


def er_sparsity(layers: Mapping[str, Layer], epsilon: float) -> float:
    """The global sparsity at which :func:`regrow.er` gives each layer epsilon · (in + out) weights, SET's own form.

    s_l = 1 − epsilon · (in + out) / (in · out), and a layer that would pass its size is dense. Kernel dimensions
    multiply the count, not the density.

    Args:
        layers: as :func:`regrow.find_layers` gives them.
        epsilon: alive weights for each input and output of a linear layer, such as 20.

    Raises:
        ValueError: epsilon is not positive.

    Mocanu et al. 2018, equation 1.

    >>> layers = {"a": Layer("a", (300, 64)), "b": Layer("b", (10, 300))}
    >>> sparsity = er_sparsity(layers, 4)
    >>> from regrow.parts.distributions import er
    >>> er(layers, sparsity)
    {'a': 1456, 'b': 1240}
    """
    if not epsilon > 0:
        raise ValueError(f"epsilon is {epsilon}; expected a positive number, such as 20")
    densities = {name: min(1.0, epsilon * dimension_ratio(layer.shape[:2])) for name, layer in layers.items()}
    alive = sum(max(1, round(densities[name] * layer.size)) for name, layer in layers.items())
    return 1 - alive / sum(layer.size for layer in layers.values())


@dataclass(frozen=True)
class FlopAware:
    """Density of a layer ∝ its ERK value / (FLOPs per weight)^power; made by :func:`flop_aware`."""

    flops: Mapping[str, int]
    power: float

    def __call__(self, layers: Mapping[str, Layer], sparsity: float) -> dict[str, int]:
        missing = [name for name in layers if self.flops.get(name, 0) <= 0]
        if missing:
            raise ValueError(f"no FLOPs are counted for layer '{missing[0]}': leave it out with exclude=")
        raw = {
            name: dimension_ratio(layer.shape) / (self.flops[name] / layer.size) ** self.power
            for name, layer in layers.items()
        }
        return in_proportion(layers, sparsity, raw)


def flop_aware(flops: Flops, *, power: float = 0.5) -> Distribution:
    """A distribution that spends weights where they cost few FLOPs: density ∝ ERK value / (FLOPs per weight)^power.

    Layers that would pass density 1 become dense and the rest is solved again, as in :func:`regrow.erk`, which this is
    with power 0. For a FLOP budget take the sparsity from :func:`sparsity_at_flops`.

    Args:
        flops: of the dense model, from ``count_flops(model, example_input)``.
        power: 0 or more; the larger, the fewer weights in layers that use each of theirs often.

    Raises:
        ValueError: power is negative; a layer has no FLOPs (when the distribution is used).

    Ours: Sundar & Dwaraknath 2021, section 7, leave distributions for a FLOP budget open.
    """
    if not power >= 0:
        raise ValueError(f"power is {power}; expected 0 (ERK) or more")
    return FlopAware({name: layer.dense for name, layer in flops.layers.items()}, power)


def sparsity_at_flops(distribution: Sharing, layers: Mapping[str, Layer], flops: Flops, share: float) -> float:
    """The lowest global sparsity at which a distribution's net costs at most ``share`` of the dense FLOPs.

    With k_l the alive weights that the distribution gives at that sparsity: Σ_l f_l · k_l / N_l ≤ share · f_d. What is
    not sparsified counts in full. One more weight would pass the budget (up to the rounding of k_l).

    Args:
        distribution: :func:`regrow.uniform`, :func:`regrow.erk`, :func:`flop_aware`, …, or a dict glob → sparsity. A
            sparsity that it refuses is taken to be too high for it.
        layers: those that are sparsified, as :func:`regrow.find_layers` gives them.
        flops: of the dense model, from ``count_flops(model, example_input)``.
        share: f_s / f_d, in (0, 1].

    Raises:
        ValueError: the share is outside its range, or under what the fewest weights cost that the distribution gives.
    """
    if not 0 < share <= 1:
        raise ValueError(f"share is {share}; expected f_s / f_d in (0, 1], such as 0.2")
    size = sum(layer.size for layer in layers.values())
    fixed = sum(layer.dense for name, layer in flops.layers.items() if name not in layers)
    costs = {name: flops.layers[name].dense / layer.size for name, layer in layers.items() if name in flops.layers}

    shared = as_distribution(distribution)

    def cost(alive: int) -> float:
        counts = shared(layers, 1 - alive / size)
        return fixed + sum(price * counts[name] for name, price in costs.items())

    def is_refused(alive: int) -> bool:
        try:
            shared(layers, 1 - alive / size)
        except ValueError:
            return True
        return False

    def is_within(alive: int) -> bool:
        return is_refused(alive) or cost(alive) <= budget

    # Half a FLOP of room: the prices are floats, the budget may be a whole number of weights.
    budget = share * flops.dense + 0.5
    fewest, most = shared.bounds(layers) if isinstance(shared, PerLayer) else (len(layers), size)
    if cost(most) <= budget:
        return 1 - most / size
    if is_within(fewest):
        # Of the two the one is within the budget or refused, the other is neither.
        while most - fewest > 1:
            middle = (fewest + most) // 2
            fewest, most = (middle, most) if is_within(middle) else (fewest, middle)
        if not is_refused(fewest):
            return 1 - fewest / size
    least = cost(most if is_refused(fewest) else fewest) / flops.dense
    raise ValueError(
        f"share {share} is less than the net costs with the fewest weights that the distribution gives, {least:.6g}: "
        "ask for more, or sparsify more layers"
    )
