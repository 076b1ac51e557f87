"""How a global sparsity is shared among the layers, as an integer number of alive weights for each.

A distribution is a function ``(layers, sparsity) -> {layer name: alive weights}``; layers keep the model's order.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from regrow.arguments import real_number
from regrow.layers import Layer, select_layers

Distribution = Callable[[Mapping[str, Layer], float], dict[str, int]]
"""Layers and a global sparsity → number of alive weights of each layer."""
Sharing = Distribution | Mapping[str, float]
"""What a user may give for a distribution: one, or a map of glob → sparsity."""


def check_sparsity(sparsity: Any, what: str = "sparsity") -> float:
    """The sparsity as a float, refused outside [0, 1)."""
    expected = "a share of zeros in [0, 1), such as 0.9 for 90 %"
    share = real_number(sparsity, what, expected)
    if not 0 <= share < 1:
        raise ValueError(f"{what} is {sparsity}; expected {expected}")
    return share


def total_alive(layers: Mapping[str, Layer], sparsity: float) -> int:
    """The global budget (1 − S) · sum of N_l, refused where it is under one alive weight a layer."""
    size = sum(layer.size for layer in layers.values())
    alive = round((1 - check_sparsity(sparsity)) * size)
    if alive < len(layers):
        raise ValueError(
            f"sparsity {sparsity} leaves {alive} of {size} weights for {len(layers)} layers, and each needs one; "
            f"ask for at most {1 - len(layers) / size:.6g}, or leave layers out with exclude="
        )
    return alive


def _alive(layer: Layer, density: float) -> int:
    return min(layer.size, max(1, round(density * layer.size)))


def uniform(
    layers: Mapping[str, Layer], sparsity: float, *, first_layer: Literal["auto", "dense", "sparse"] = "auto"
) -> dict[str, int]:
    """Every layer the same sparsity: k_l = round((1 − S) · N_l). The report's "Random".

    Args:
        layers: the layers, in the model's order.
        sparsity: S, the share of zeros in each sparse layer.
        first_layer: "auto" keeps the model's first layer dense where it is among these and a convolution, as the report
            and Evci et al. 2020 do (the global sparsity is then a little under S); "dense" and "sparse" say it outright
            of the first of these (``functools.partial(uniform, first_layer="sparse")``).

    Raises:
        ValueError: S is outside [0, 1) or leaves less than one weight a layer.

    Sundar & Dwaraknath 2021, section 3.0.1.

    >>> uniform({"a": Layer("a", (10, 10)), "b": Layer("b", (5, 10))}, 0.9)
    {'a': 10, 'b': 5}
    """
    total_alive(layers, sparsity)
    first = next(iter(layers.values()))
    keeps_first = first_layer == "dense" or (first_layer == "auto" and first.is_stem)
    return {
        name: layer.size if layer is first and keeps_first else _alive(layer, 1 - sparsity)
        for name, layer in layers.items()
    }


def er(layers: Mapping[str, Layer], sparsity: float) -> dict[str, int]:
    """Erdős–Rényi: density of a layer ∝ (in + out) / (in · out), scaled to the global sparsity.

    Mocanu et al. 2018; kernel dimensions do not enter. Arguments and errors as for :func:`uniform`.
    """
    return in_proportion(layers, sparsity, {name: dimension_ratio(layer.shape[:2]) for name, layer in layers.items()})


def erk(layers: Mapping[str, Layer], sparsity: float) -> dict[str, int]:
    """Erdős–Rényi-Kernel: density of a layer ∝ (sum of all its dimensions) / (product of them).

    One multiplier meets the global sparsity; layers that it would lift past density 1 become dense, the largest raw
    value first, and the rest is solved again. Arguments and errors as for :func:`uniform`.

    Evci et al. 2020, section 3 (1).

    >>> erk({"a": Layer("a", (300, 64)), "b": Layer("b", (10, 300))}, 0.9)
    {'a': 1199, 'b': 1021}
    """
    return in_proportion(layers, sparsity, {name: dimension_ratio(layer.shape) for name, layer in layers.items()})


def dimension_ratio(shape: tuple[int, ...]) -> float:
    """(sum of the dimensions) / (product of them)."""
    product = 1
    for dimension in shape:
        product *= dimension
    return sum(shape) / product


def in_proportion(layers: Mapping[str, Layer], sparsity: float, raw: Mapping[str, float]) -> dict[str, int]:
    """Alive weights with density_l = min(1, epsilon · raw_l), epsilon such that they add up to the budget."""
    budget = total_alive(layers, sparsity)
    dense: set[str] = set()
    while True:
        free = [name for name in layers if name not in dense]
        if not free:
            break
        left = budget - sum(layers[name].size for name in dense)
        epsilon = left / sum(raw[name] * layers[name].size for name in free)
        largest = max(raw[name] for name in free)
        if epsilon * largest <= 1:
            break
        dense |= {name for name in free if raw[name] == largest}
    return {name: layer.size if name in dense else _alive(layer, epsilon * raw[name]) for name, layer in layers.items()}


@dataclass(frozen=True)
class PerLayer:
    """A user's own map of glob → sparsity; the layers it does not name share the rest of the budget uniformly.

    Raises:
        ValueError: a glob matches nothing, a sparsity is outside [0, 1), or the map cannot meet the global sparsity
            (it names every layer and adds up to something else, or leaves the others too much or too little).

    >>> PerLayer({"a": 0.5})({"a": Layer("a", (10, 10)), "b": Layer("b", (10, 30))}, 0.8)
    {'a': 50, 'b': 30}
    """

    sparsities: Mapping[str, float]

    def named(self, layers: Mapping[str, Layer]) -> dict[str, int]:
        """Alive weights of the layers that it names."""
        alive: dict[str, int] = {}
        for pattern, value in self.sparsities.items():
            density = 1 - check_sparsity(value, f"sparsity of '{pattern}'")
            alive |= {name: _alive(layer, density) for name, layer in select_layers(layers, pattern).items()}
        return alive

    def bounds(self, layers: Mapping[str, Layer]) -> tuple[int, int]:
        """The fewest and the most alive weights that it can give to all layers together."""
        alive = self.named(layers)
        others = [layer.size for name, layer in layers.items() if name not in alive]
        return sum(alive.values()) + len(others), sum(alive.values()) + sum(others)

    def __call__(self, layers: Mapping[str, Layer], sparsity: float) -> dict[str, int]:
        budget = total_alive(layers, sparsity)
        alive = self.named(layers)
        others = {name: layer for name, layer in layers.items() if name not in alive}
        left, size = budget - sum(alive.values()), sum(layer.size for layer in others.values())
        if size < left <= size + len(layers):
            left = size  # each count is rounded
        if (others and not len(others) <= left <= size) or (not others and abs(left) > len(layers)):
            reached = 1 - sum(alive.values()) / sum(layer.size for layer in layers.values())
            remedy = (
                f"leaves {left} alive weights for the {len(others)} other layers of {size} weights"
                if others
                else f"amounts to a global sparsity of {reached:.6g}: pass sparsity={reached:.6g}"
            )
            raise ValueError(f"the per-layer map cannot meet the global sparsity {sparsity}: it {remedy}")
        alive |= {name: _alive(layer, left / size) for name, layer in others.items()}
        return {name: alive[name] for name in layers}

    def on_the_way(self, layers: Mapping[str, Layer], sparsity: float, final: float) -> dict[str, int]:
        """Alive weights of a net that is so far on its way from dense: of all that shall go, sparsity / final has."""
        share = sparsity / final
        return {
            name: layers[name].size - round(share * (layers[name].size - k)) for name, k in self(layers, final).items()
        }


@dataclass(frozen=True)
class Convolutions:
    """Convolutions share the sparsity as ``distribution`` says; every other layer and transposed ones are dense."""

    distribution: Distribution

    def __call__(self, layers: Mapping[str, Layer], sparsity: float) -> dict[str, int]:
        convolutions = {
            name: layer for name, layer in layers.items() if layer.is_convolution and not layer.is_transposed
        }
        if not convolutions:
            raise ValueError(
                f"none of the layers {', '.join(layers)} is a convolution whose weight has its outputs first, and only "
                "these have channels to drop"
            )
        return {name: layer.size for name, layer in layers.items()} | self.distribution(convolutions, sparsity)


def as_distribution(sharing: Sharing) -> Distribution:
    """The distribution that a user means."""
    return PerLayer(sharing) if isinstance(sharing, Mapping) else sharing


@dataclass(frozen=True)
class CountsOf:
    """Alive weights of each layer as they are given, whatever the sparsity."""

    alive: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]

    def __call__(self, layers: Mapping[str, Layer], sparsity: float) -> dict[str, int]:
        for name, layer in layers.items():
            if name not in self.shapes or tuple(self.shapes[name]) != layer.shape:
                raise ValueError(
                    f"no mask of shape {layer.shape} is given for layer '{name}'; masks are given for "
                    f"{', '.join(self.alive)}: add it, or leave the layer out with exclude="
                )
            if not self.alive[name]:
                raise ValueError(
                    f"the mask of layer '{name}' has no alive weight, and each layer needs one: leave the layer out "
                    f"with exclude=['{name}'], or take it out of the model"
                )
        return {name: self.alive[name] for name in layers}
