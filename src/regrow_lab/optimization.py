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
