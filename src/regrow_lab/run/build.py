"""From a configuration to what a run trains: the net and the algorithm, of the lab or imported by name."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

import regrow
from regrow_lab.config import RunConfig
from regrow_lab.methods import method_of
from regrow_lab.models import find_model

Counts = Callable[[Mapping[str, regrow.Layer], float], dict[str, int]]

DISTRIBUTIONS: dict[str, Callable[[regrow.Flops], Counts]] = {
    "uniform": lambda flops: regrow.uniform,
    "er": lambda flops: regrow.er,
    "erk": lambda flops: regrow.erk,
    "flop-aware": regrow.flop_aware,
}
"""Name -> the distribution for a net of such FLOPs."""


def imported(name: str) -> Any:
    """What an import string stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def given_masks(*, sparsity: float) -> regrow.Algorithm:
    """What costs the same as the masks that a run will be given: they are static."""
    return regrow.static(sparsity=sparsity, distribution=regrow.uniform)


def algorithm_of(config: RunConfig, total_steps: int, flops: regrow.Flops) -> regrow.Algorithm | None:
    """The algorithm of a run of `total_steps` optimizer steps, all multiples included; None where nothing is masked.

    `flops` are of the dense net, for distributions that mind them. Where the run is given its masks, the algorithm is
    a static one of the same cost; see `regrow_lab.run.starting_point`.

    Raises ValueError for values that the recipe refuses, such as a pruning that starts after it stops.
    """
    recipe = method_of(config.method).recipe
    if recipe is None:
        return None
    offered: dict[str, Any] = {
        "sparsity": config.sparsity,
        "total_steps": total_steps,
        "every": config.every,
        "drop_fraction": config.drop_fraction,
        "stop": int(config.stop * total_steps),
    }
    if config.distribution is not None:
        offered["distribution"] = DISTRIBUTIONS[config.distribution](flops)
    build = imported(recipe)
    parameters = inspect.signature(build).parameters
    if "start" in parameters:
        offered["start"] = int(config.pruning_start * total_steps)
    whole = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    made: regrow.Algorithm = build(**{name: offered[name] for name in offered if whole or name in parameters})
    return made


def net_of(config: RunConfig, **arguments: Any) -> nn.Module:
    """The net of a run, freshly initialised from torch's generator: a narrow one where the method asks for that.

    `arguments` are the builder's own, such as `num_classes`.

    Raises ValueError for a name that is no model, and a sparsity that no narrow net reaches.
    """
    build = find_model(config.model)
    if not method_of(config.method).narrow:
        return build(**arguments)
    solved = regrow.small_dense(lambda multiplier: build(multiplier=multiplier, **arguments), config.sparsity)
    return build(multiplier=solved.multiplier, **arguments)
