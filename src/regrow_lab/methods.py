"""From a method's name in a configuration to the library's record and the net it trains: the one mapping of the lab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

import regrow
from regrow_lab.config import RunConfig
from regrow_lab.models import find_model

DISTRIBUTIONS = {"uniform": regrow.uniform, "er": regrow.er, "erk": regrow.erk}


def _none(config: RunConfig, total_steps: int) -> None:
    return None


def _static(config: RunConfig, total_steps: int) -> regrow.Algorithm:
    return regrow.static(sparsity=config.sparsity, distribution=DISTRIBUTIONS[str(config.distribution)])


def _dynamic(recipe: Callable[..., regrow.Algorithm]) -> Callable[[RunConfig, int], regrow.Algorithm]:
    def build(config: RunConfig, total_steps: int) -> regrow.Algorithm:
        return recipe(
            sparsity=config.sparsity,
            total_steps=total_steps,
            every=config.every,
            drop_fraction=config.drop_fraction,
            distribution=DISTRIBUTIONS[str(config.distribution)],
            stop=int(config.stop * total_steps),
        )

    return build


def _pruning(config: RunConfig, total_steps: int) -> regrow.Algorithm:
    return regrow.gradual_pruning(
        sparsity=config.sparsity,
        total_steps=total_steps,
        every=config.every,
        start=int(config.pruning_start * total_steps),
        stop=int(config.stop * total_steps),
    )


def _snip(config: RunConfig, total_steps: int) -> regrow.Algorithm:
    return regrow.snip(sparsity=config.sparsity)


RECIPES: dict[str, Callable[[RunConfig, int], regrow.Algorithm | None]] = {
    "dense": _none,
    "small-dense": _none,  # changes the widths of the net, see net_of
    "static": _static,
    "snip": _snip,
    "set": _dynamic(regrow.set_),
    "rigl": _dynamic(regrow.rigl),
    "snfs": _dynamic(regrow.snfs),
    "rigl-sg": _dynamic(regrow.rigl_sg),
    "rigl-sm": _dynamic(regrow.rigl_sm),
    "pruning": _pruning,
}


def algorithm_of(config: RunConfig, total_steps: int) -> regrow.Algorithm | None:
    """The algorithm of a run of `total_steps` optimizer steps, all multiples included; None where nothing is masked.

    Raises ValueError for values that the recipe refuses, such as a pruning that starts after it stops.
    """
    return RECIPES[config.method](config, total_steps)


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
