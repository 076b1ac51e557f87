"""What a weight is worth: one number a weight, from what the score declares it needs.

The declaration decides which gradients are kept dense, what the sparsifier must remember, and the FLOPs of training.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Flag, auto

import torch
from torch import Tensor

from regrow.layers import Layer


class Need(Flag):
    """What a score looks at, beyond the weights themselves."""

    NOTHING = 0
    GRADIENT = auto()
    """The dense gradient of the optimizer step at which the topology is updated."""
    MOMENTUM = auto()
    """The momentum of alive weights: the optimizer's own, else one that the sparsifier keeps."""
    DENSE_MOMENTUM = auto()
    """A momentum of dense gradients, so the dense gradient at every step."""


@dataclass(frozen=True)
class Evidence:
    """All that is known of one layer at an update; every tensor has the shape of the weight.

    Attributes:
        layer: name and shape.
        alive: bool mask.
        weight: values, exactly 0 where dead.
        gradient: dense gradient of the whole optimizer step, where a score needs it.
        momentum: sparse or dense momentum, as the scores need it.
        seed: what :data:`random` draws from, besides the layer's name and the step.
        step: weight steps taken so far.
    """

    layer: Layer
    alive: Tensor
    weight: Tensor
    gradient: Tensor | None
    momentum: Tensor | None
    seed: int
    step: int


@dataclass(frozen=True)
class Score:
    """A named measure of every weight of a layer: evidence → tensor of the weight's shape, larger = worth more."""

    name: str
    measure: Callable[[Evidence], Tensor]
    needs: Need = Need.NOTHING

    def __call__(self, evidence: Evidence) -> Tensor:
        return self.measure(evidence)


def uniform_numbers(shape: tuple[int, ...], *, seed: int, step: int, name: str) -> Tensor:
    """Numbers in [0, 1) on the CPU, a function of (seed, step, layer name) alone: equal on all ranks and devices."""
    key = hashlib.blake2b(f"{seed}/{step}/{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little") >> 1)
    return torch.rand(shape, generator=generator)


def _magnitude(evidence: Evidence) -> Tensor:
    return evidence.weight.abs()


def _random(evidence: Evidence) -> Tensor:
    numbers = uniform_numbers(evidence.layer.shape, seed=evidence.seed, step=evidence.step, name=evidence.layer.name)
    return numbers.to(evidence.weight.device)


def _gradient(evidence: Evidence) -> Tensor:
    assert evidence.gradient is not None
    return evidence.gradient.abs()


def _momentum(evidence: Evidence) -> Tensor:
    assert evidence.momentum is not None
    return evidence.momentum.abs()


def _sensitivity(evidence: Evidence) -> Tensor:
    assert evidence.gradient is not None
    return (evidence.gradient * evidence.weight).abs()


magnitude = Score("|weight|", _magnitude)
"""|w|: what SET, RigL, SNFS and pruning drop by."""
random = Score("random", _random)
"""Uniform numbers that are a function of seed, layer name and step, the same on all ranks."""
gradient_magnitude = Score("|gradient|", _gradient, Need.GRADIENT)
"""|dense gradient| of the whole optimizer step: what RigL grows by."""
momentum_magnitude = Score("|momentum|", _momentum, Need.MOMENTUM)
"""|momentum| of alive weights: what RigL-SM redistributes by."""
dense_momentum_magnitude = Score("|dense momentum|", _momentum, Need.DENSE_MOMENTUM)
"""|momentum of dense gradients|: what SNFS grows and redistributes by."""
connection_sensitivity = Score("|gradient · weight|", _sensitivity, Need.GRADIENT)
"""|gradient · weight|: what SNIP prunes by. Lee, Ajanthan & Torr 2019, section 4.1."""


@dataclass(frozen=True, eq=False)
class GivenMasks:
    """1 where a mask that the user brings is alive, 0 elsewhere: tickets and masks of earlier runs."""

    masks: Mapping[str, Tensor]

    def __call__(self, evidence: Evidence) -> Tensor:
        return self.masks[evidence.layer.name].to(evidence.weight.device, torch.float32)
