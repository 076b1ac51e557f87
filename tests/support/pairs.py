"""A model with masked weights beside the same with compact ones."""

import copy

import torch
from torch import nn

from regrow.compaction.capture import graph_forward
from regrow.compaction.compact_modules import make_compact, obstacle


def pair(model: nn.Module, density: float = 0.4) -> tuple[nn.Module, nn.Module]:
    """A model with masked weights, and the same with compact ones."""
    torch.manual_seed(0)
    masks = {}
    for name, module in model.named_modules():
        if obstacle(module) is None:
            masks[name] = torch.rand(module.weight.shape) < density
            masks[name].flatten()[0] = True
            module.weight.data.mul_(masks[name])
    dense = copy.deepcopy(model)
    for name, mask in masks.items():
        make_compact(model.get_submodule(name), mask)
    graph_forward.install(model)
    return dense, model
