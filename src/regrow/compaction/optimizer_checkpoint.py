"""Optimizer checkpoints of a compact model in the ordinary dense shapes, so that either storage loads the other's."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from regrow.compaction.compacted_layer import CompactedLayer
from regrow.storage import optimizers


def register(optimizer: Optimizer, layers: Mapping[str, CompactedLayer]) -> list[RemovableHandle]:
    """Hooks ``state_dict`` and ``load_state_dict`` of an optimizer.

    Args:
        optimizer: one that steps layers' values.
        layers: the compact ones; a live view.
    """

    def saved(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state = dict(state_dict["state"])
        for number, layer in _numbered(optimizer, layers):
            named = {key: (value, start) for key, value, start in optimizers.named_state(optimizer, layer.parameter)}
            if number in state:
                dense = {key: layer.weight.dense(value, start) for key, (value, start) in named.items()}
                state[number] = {**state[number], **dense}
        return {**state_dict, "state": state}

    def loading(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
        state = dict(state_dict["state"])
        for number, layer in _numbered(optimizer, layers):
            if number in state:
                state[number] = layer.load_state(state[number], optimizer)
        return {**state_dict, "state": state}

    return [
        optimizer.register_state_dict_post_hook(saved),
        optimizer.register_load_state_dict_pre_hook(loading),
    ]


def _numbered(optimizer: Optimizer, layers: Mapping[str, CompactedLayer]) -> Iterator[tuple[int, CompactedLayer]]:
    """The layers with their parameters' numbers in the optimizer's state_dict."""
    numbers = {id(parameter): number for number, parameter in enumerate(optimizers.parameters(optimizer))}
    for layer in layers.values():
        if id(layer.parameter) in numbers:  # another optimizer need not hold all
            yield numbers[id(layer.parameter)], layer
