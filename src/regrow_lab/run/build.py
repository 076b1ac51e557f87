"""From a configuration to what a run trains: data, net and algorithm, of the lab or of somebody's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

import regrow
from regrow_lab.config import RunConfig
from regrow_lab.data import AnyData, check_there, load_data
from regrow_lab.data.batches import Parts
from regrow_lab.methods import METHODS, imported, is_import, method_of
from regrow_lab.models import WITH_DROPOUT, Builder, find_model, fit
from regrow_lab.run import own

Counts = Callable[[Mapping[str, regrow.Layer], float], dict[str, int]]

DISTRIBUTIONS: dict[str, Callable[[regrow.Flops], Counts]] = {
    "uniform": lambda flops: regrow.uniform,
    "er": lambda flops: regrow.er,
    "erk": lambda flops: regrow.erk,
    "flop-aware": regrow.flop_aware,
}
"""Name -> the distribution for a net of such FLOPs."""


def data_of(config: RunConfig, device: torch.device) -> AnyData:
    """The data of a run, on `device`. Raises ValueError as `load_data` and `own.load` do."""
    if not is_import(config.data):
        return load_data(config.data, device, config.image_size)
    if config.image_size:
        raise ValueError(f"image_size is for folders of images, given {config.image_size} for data {config.data}")
    return own.load(config.data, device)


def check(config: RunConfig) -> None:
    """Raise ValueError if the files of the data are not where they must lie, or what is somebody's own is wrong.

    Of a run that the lab knows all of, no file is read.
    """
    if not any(map(is_import, (config.model, config.data, config.method))):
        return check_there(config.data, config.image_size)
    if not is_import(config.data):
        check_there(config.data, config.image_size)
    data = data_of(config, torch.device("cpu")).parts(config)
    _, flops = dense_net_of(config, data)
    steps = config.total_epochs * -(-len(data.train) // config.batch_size)
    algorithm_of(config, steps, flops)
    return None


def arguments_of(config: RunConfig, data: Parts) -> dict[str, Any]:
    """The keywords of the builder that make a net fit the data.

    Raises ValueError if a net of the lab cannot take them.
    """
    shape, classes = tuple(data.example.shape[1:]), {"num_classes": data.num_classes}
    if is_import(config.model):
        return {**classes, "input_shape": shape}
    fitted = {**classes, **fit(config.model, shape, text=data.is_text, data=config.data)}
    return fitted | ({"dropout": config.dropout} if config.model.startswith(WITH_DROPOUT) else {})


def builder_of(model: str) -> Builder:
    """The function that builds a net from keywords. Raises ValueError for a name that is no model."""
    return partial(_own_net, model) if is_import(model) else find_model(model)


def _own_net(model: str, **arguments: Any) -> nn.Module:
    more = {"input_shape": arguments.pop("input_shape")}
    if "multiplier" in arguments and "multiplier" not in own.asked_for(imported(model), arguments, {}):
        raise ValueError(f"a small dense net is a narrower one: have {model} take a multiplier of its widths")
    net: nn.Module = own.call("model", model, nn.Module, arguments, more)
    return net


def dense_net_of(config: RunConfig, data: Parts) -> tuple[nn.Module, regrow.Flops]:
    """The dense net of a run and its FLOPs for a sample, to be looked at: on the meta device if it is of the lab.

    Raises ValueError if the net does not take such samples, or does not give each class a number.
    """
    arguments = arguments_of(config, data)
    if not is_import(config.model):
        with torch.device("meta"):
            net = find_model(config.model)(**arguments)
        return net, regrow.count_flops(net, data.example)
    net, example = builder_of(config.model)(**arguments), data.example.cpu()
    given = f"model {config.model}, for inputs {tuple(example.shape)} of {example.dtype} of data {config.data},"
    try:
        with torch.no_grad():
            outputs = net.eval()(example)
        counted = regrow.count_flops(net, example)
    except Exception as error:
        raise ValueError(f"{given} fails with {own.described(error)}") from error
    expected = (*(example.shape[:2] if data.is_text else example.shape[:1]), data.num_classes)
    if not isinstance(outputs, torch.Tensor) or outputs.shape != expected:
        found = tuple(outputs.shape) if isinstance(outputs, torch.Tensor) else f"a {type(outputs).__name__}"
        raise ValueError(f"{given} returns {found}, expected {expected}: a number for each of the classes")
    return net, counted


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
    more = {"start": int(config.pruning_start * total_steps)}
    if config.distribution is not None:
        offered["distribution"] = DISTRIBUTIONS[config.distribution](flops)
    if config.method in METHODS:
        function = imported(recipe)
        made: regrow.Algorithm = function(**own.asked_for(function, offered, more))
        return made
    if config.distribution is not None and "distribution" not in own.asked_for(imported(recipe), offered, more):
        raise ValueError(f"method {recipe} takes no distribution, given {config.distribution!r}: leave it out")
    found: regrow.Algorithm = own.call("method", recipe, regrow.Algorithm, offered, more)
    return found


def net_of(config: RunConfig, **arguments: Any) -> nn.Module:
    """The net of a run, freshly initialised from torch's generator: a narrow one where the method asks for that.

    `arguments` are the builder's own, such as `num_classes`.

    Raises ValueError for a name that is no model, and a sparsity that no narrow net reaches.
    """
    build = builder_of(config.model)
    if not method_of(config.method).narrow:
        return build(**arguments)
    solved = regrow.small_dense(lambda multiplier: build(multiplier=multiplier, **arguments), config.sparsity)
    return build(multiplier=solved.multiplier, **arguments)
