"""Copies of an attached model (a deepcopy, averages of its weights) get its masks."""

from collections.abc import Mapping

import torch
from torch import nn

from regrow.storage.stored_layer import StoredLayer
from regrow.tied_weights import places_of_parameters
from regrow.training.membership import second_places


@torch.no_grad()
def mask_copy(layers: Mapping[str, StoredLayer], model: nn.Module, copied: nn.Module) -> None:
    """Zeroes the dead weights of a copy, found by parameter name.

    Args:
        layers: the attached weights by name.
        model: that they belong to.
        copied: a copy of it.

    Raises:
        ValueError: the copy lacks a layer, or has it in another shape; nothing is written then.
    """
    parameters = dict(copied.named_parameters())
    for name, layer in layers.items():
        if layer.find_copy(copied) is None:
            found = tuple(parameters[name].shape) if name in parameters else "no such parameter"
            raise ValueError(
                f"the copy does not fit: '{name}' of shape {layer.layer.shape} was expected, found {found}; "
                "pass a copy of the attached model"
            )
    for layer in layers.values():
        layer.mask_copy(copied)
    weights = places_of_parameters(copied)
    for place, name in second_places(layers, model).items():
        if place in weights:  # torch copies two parameters over the same memory apart
            weights[place].masked_fill_(~layers[name].mask, 0)
