"""What a topology update did, for whoever listens to :meth:`regrow.Sparsifier.on_update`."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.storage.mask_bits import pack

BITS = torch.tensor([value.bit_count() for value in range(256)])


@dataclass(frozen=True)
class LayerUpdate:
    """What an update did to one layer.

    Attributes:
        size: weights of the layer.
        before: how many were alive.
        dropped: how many of those are not any more.
        grown: how many have come to life.
        explored: share of the weights that have been alive at some time, R_s (Liu et al. 2021, In-Time
            Over-Parameterization, section 3).
    """

    size: int
    before: int
    dropped: int
    grown: int
    explored: float

    @property
    def alive(self) -> int:
        """How many are alive now."""
        return self.before - self.dropped + self.grown

    @property
    def overlap(self) -> float:
        """Share of those alive before that still are."""
        return 1 - self.dropped / self.before


@dataclass(frozen=True)
class Update:
    """A topology update.

    Attributes:
        weight_steps: weight steps taken so far.
        number: of updates so far, this one included.
        layers: parameter name → what changed, of the layers that took part.
    """

    weight_steps: int
    number: int
    layers: Mapping[str, LayerUpdate]

    @property
    def dropped(self) -> int:
        """Dropped weights of all layers."""
        return sum(layer.dropped for layer in self.layers.values())

    @property
    def grown(self) -> int:
        """Grown weights of all layers."""
        return sum(layer.grown for layer in self.layers.values())


class Explored:
    """Which weights have been alive at some time, a bit each.

    Args:
        masks: parameter name → bool mask at the start.
    """

    def __init__(self, masks: Mapping[str, Tensor]) -> None:
        self.bits = {name: pack(mask) for name, mask in masks.items()}

    def add(self, name: str, mask: Tensor) -> None:
        """These are alive now."""
        self.bits[name] |= pack(mask).to(self.bits[name].device)

    def number(self, name: str) -> int:
        """How many weights of a layer have been.

        >>> Explored({"fc.weight": torch.tensor([True, False, True])}).number("fc.weight")
        2
        """
        found = self.bits[name].flatten().long().bincount(minlength=len(BITS)).cpu()
        return int(found @ BITS)
