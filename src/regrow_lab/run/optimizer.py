"""The optimizer of a run."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from regrow_lab.config import RunConfig


def optimizer_of(config: RunConfig, model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer that the configuration names, over all parameters of `model`."""
    groups = parameter_groups(model, config.weight_decay)
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=config.learning_rate, momentum=config.momentum, nesterov=config.nesterov, fused=True
        )
    adam = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return adam(groups, lr=config.learning_rate, fused=True)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices and kernels with weight decay; biases and normalisation weights (1-D) without."""
    parameters = list(model.parameters())
    return [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    ]


def state_after_a_step(optimizer: torch.optim.Optimizer) -> dict[int, dict[str, Any]]:
    """What an optimizer keeps of each parameter from its first step on: names, shapes and kinds, without memory."""
    parts: dict[str, Any] = {"fused": False, "foreach": False}  # those kernels are not for tensors without memory
    groups = [
        {**group, **parts, "params": [torch.zeros_like(parameter, device="meta") for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    imitation = type(optimizer)(groups)  # type: ignore[call-arg]  # each class has its defaults
    for group in groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    imitation.step()
    state: dict[int, dict[str, Any]] = imitation.state_dict()["state"]
    return state
