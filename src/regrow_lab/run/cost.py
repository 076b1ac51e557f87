"""FLOPs of a configuration without training it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

import regrow
from regrow.parts.distributions import total_alive
from regrow_lab.config import RunConfig
from regrow_lab.methods import is_import, method_of
from regrow_lab.models import example_input
from regrow_lab.run.build import algorithm_of, arguments_of, builder_of, data_of, dense_net_of, net_of


def account(config: RunConfig, total_steps: int) -> dict[str, Any]:
    """FLOPs of a forward pass and of a training step, per sample, as `flops --json` prints them.

    The sample is one that the net of the lab is made for; for somebody's own net, one of the data of the run.

    Densities that are known before training are exact. Where training decides them (global thresholds,
    redistribution), `estimated` is true: E[f_s] is the schedule's mean over the steps, with the initial distribution,
    or the same density in every layer where all weights start alive. Training counts the runs that a ticket comes from.

    Raises ValueError as the builder, the distribution and the recipe do.
    """
    if is_import(config.model):
        data = data_of(config, torch.device("cpu")).parts(config)
        dense_net_of(config, data)  # refuses what does not take the data
        example, arguments, device = data.example, arguments_of(config, data), "cpu"
    else:
        example, arguments, device = example_input(config.model), {}, "meta"
    with torch.device(device):
        net, dense_net = net_of(config, **arguments), builder_of(config.model)(**arguments)
    dense_counted = regrow.count_flops(dense_net, example)
    dense = dense_counted.dense
    algorithm = algorithm_of(config, total_steps, dense_counted)
    sparse = mean = float(regrow.count_flops(net, example).dense)
    if algorithm is not None:
        sparse, mean = _forward(algorithm, net, example, total_steps)
    train = regrow.train_flops(algorithm, mean, dense) if algorithm else 3 * sparse
    method = method_of(config.method)
    if config.prerequisite is not None and method.includes_prerequisite:
        train += account(config.prerequisite, total_steps)["train_flops"]
    return {
        "model": config.model,
        "method": config.method,
        "sparsity": config.sparsity,
        "distribution": config.distribution,
        "every": config.every,
        "dense_flops": dense,
        "sparse_flops": round(sparse),
        "mean_sparse_flops": mean,
        "train_flops": train,
        "test_ratio": sparse / dense,
        "train_ratio": train / (3 * dense),
        "estimated": method.given_masks
        or config.start is not None
        or (algorithm is not None and (algorithm.initial is None or algorithm.redistribute is not None)),
    }


def _forward(
    algorithm: regrow.Algorithm, net: torch.nn.Module, example: torch.Tensor, total_steps: int
) -> tuple[float, float]:
    """f_s at the end of training, and its mean over the steps."""
    layers, counted = regrow.find_layers(net), regrow.count_flops(net, example)

    def flops(counts: Mapping[str, int]) -> float:
        masked = sum(counted.layers[name].dense * (1 - counts[name] / layer.size) for name, layer in layers.items())
        return counted.dense - masked

    if algorithm.initial is not None:
        sparse = flops(regrow.plan(net, algorithm).num_alive)
        return sparse, sparse

    if algorithm.final_sparsity is not None:
        total_alive(layers, algorithm.final_sparsity)  # refuses what cannot be reached

    def at(sparsity: float) -> float:
        return flops({name: round((1 - sparsity) * layer.size) for name, layer in layers.items()})

    first = algorithm.when.following(0)
    assert first is not None
    interval = algorithm.when.interval or total_steps
    moments = [step for step in range(first, total_steps, interval) if algorithm.when(step)]
    ends = [*moments[1:], total_steps]
    pruned = [at(algorithm.sparsity_at(step)) for step in moments]
    mean = first * at(0.0) + sum(value * (end - step) for value, step, end in zip(pruned, moments, ends, strict=True))
    return pruned[-1], mean / total_steps


def in_words(counted: Mapping[str, Any]) -> str:
    """The numbers of `account` for a person."""
    how = "" if counted["distribution"] is None else f", {counted['distribution']}"
    what = f"{counted['model']}, {counted['method']}{how}, sparsity {counted['sparsity']:g}"
    train, train_ratio = round(counted["train_flops"]), counted["train_ratio"]
    lines = [
        what,
        f"  forward, dense    {counted['dense_flops']:>16,} FLOPs a sample",
        f"  forward, sparse   {counted['sparse_flops']:>16,} FLOPs a sample   {counted['test_ratio']:.4f} of dense",
        f"  training          {train:>16,} FLOPs a sample   {train_ratio:.4f} of dense",
    ]
    if counted["estimated"]:
        lines.append(f"  estimated: {counted['method']} decides its densities while it trains")
    return "\n".join(lines)
