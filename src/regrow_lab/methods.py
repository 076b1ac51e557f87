"""From a method's name in a configuration to the library's record and the net it trains: the one mapping of the lab."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

import regrow
from regrow_lab.config import RunConfig
from regrow_lab.models import find_model

Counts = Callable[[Mapping[str, regrow.Layer], float], dict[str, int]]
Recipe = Callable[[RunConfig, int, regrow.Flops], regrow.Algorithm | None]

DISTRIBUTIONS: dict[str, Callable[[regrow.Flops], Counts]] = {
    "uniform": lambda flops: regrow.uniform,
    "er": lambda flops: regrow.er,
    "erk": lambda flops: regrow.erk,
    "flop-aware": regrow.flop_aware,
}
"""Name -> the distribution for a net of such FLOPs."""


def _none(config: RunConfig, total_steps: int, flops: regrow.Flops) -> None:
    return None


def _static(config: RunConfig, total_steps: int, flops: regrow.Flops) -> regrow.Algorithm:
    return regrow.static(sparsity=config.sparsity, distribution=DISTRIBUTIONS[str(config.distribution)](flops))


def _given_masks(config: RunConfig, total_steps: int, flops: regrow.Flops) -> regrow.Algorithm:
    # What costs the same as the masks that the run will be given: they are static.
    return regrow.static(sparsity=config.sparsity, distribution=regrow.uniform)


def _dynamic(recipe: Callable[..., regrow.Algorithm]) -> Recipe:
    def build(config: RunConfig, total_steps: int, flops: regrow.Flops) -> regrow.Algorithm:
        return recipe(
            sparsity=config.sparsity,
            total_steps=total_steps,
            every=config.every,
            drop_fraction=config.drop_fraction,
            distribution=DISTRIBUTIONS[str(config.distribution)](flops),
            stop=int(config.stop * total_steps),
        )

    return build


def _pruning(config: RunConfig, total_steps: int, flops: regrow.Flops) -> regrow.Algorithm:
    return regrow.gradual_pruning(
        sparsity=config.sparsity,
        total_steps=total_steps,
        every=config.every,
        start=int(config.pruning_start * total_steps),
        stop=int(config.stop * total_steps),
    )


def _snip(config: RunConfig, total_steps: int, flops: regrow.Flops) -> regrow.Algorithm:
    return regrow.snip(sparsity=config.sparsity)


RECIPES: dict[str, Recipe] = {
    "dense": _none,
    "small-dense": _none,  # changes the widths of the net, see net_of
    "static": _static,
    "snip": _snip,
    "grasp": _given_masks,
    "obd": _given_masks,
    "lottery": _given_masks,
    "imp": _given_masks,
    "set": _dynamic(regrow.set_),
    "rigl": _dynamic(regrow.rigl),
    "rigl-struct": _dynamic(regrow.rigl_struct),
    "snfs": _dynamic(regrow.snfs),
    "rigl-sg": _dynamic(regrow.rigl_sg),
    "rigl-sm": _dynamic(regrow.rigl_sm),
    "pruning": _pruning,
}


def algorithm_of(config: RunConfig, total_steps: int, flops: regrow.Flops) -> regrow.Algorithm | None:
    """The algorithm of a run of `total_steps` optimizer steps, all multiples included; None where nothing is masked.

    `flops` are of the dense net, for distributions that mind them. Where the run is given its masks (grasp, obd,
    lottery, imp), the algorithm is a static one of the same cost; see `regrow_lab.run.starting_point`.

    Raises ValueError for values that the recipe refuses, such as a pruning that starts after it stops.
    """
    return RECIPES[config.method](config, total_steps, flops)


def net_of(config: RunConfig, **arguments: Any) -> nn.Module:
    """The net of a run, freshly initialised from torch's generator: for small-dense a narrow one, else the dense one.

    `arguments` are the builder's own, such as `num_classes`.

    Raises ValueError for a name that is no model, and a sparsity that no narrow net reaches.
    """
    build = find_model(config.model)
    if config.method != "small-dense":
        return build(**arguments)
    solved = regrow.small_dense(lambda multiplier: build(multiplier=multiplier, **arguments), config.sparsity)
    return build(multiplier=solved.multiplier, **arguments)
