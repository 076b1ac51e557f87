"""The sparsified weights of one attached model, in their groups, as they are kept at the moment."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from regrow.parts.scores import Need
from regrow.storage.distributed import whole
from regrow.storage.stored_layer import Storage, StoredLayer, on_gradient
from regrow.training.layer_group import Group
from regrow.training.loading import begins_anew, is_sparse, refusal


class AttachedLayers:
    """What is done to all layers at once.

    Attributes:
        groups: the layers that share an algorithm each.
        weight_steps: weight steps taken so far.
        strict: check every invariant at each step.
    """

    def __init__(self, groups: Sequence[Group], storage: Storage, strict: bool) -> None:
        self.groups, self.strict, self.weight_steps = list(groups), strict, 0
        self._storage = storage
        self._handles = list[RemovableHandle]()

    def by_name(self) -> dict[str, StoredLayer]:
        """Parameter name → layer."""
        return {name: layer for group in self.groups for name, layer in group.layers.items()}

    def parameters(self) -> list[nn.Parameter]:
        """The weights."""
        return [layer.parameter for layer in self.by_name().values()]

    def place(self) -> None:
        """Keeps each layer as its present density asks for."""
        for group in self.groups:
            group.layers = {name: self._storage.place(layer) for name, layer in group.layers.items()}

    def expect_gradients(self) -> None:
        """Says to each layer whether the coming gradient is wanted for dead weights too."""
        for group in self.groups:
            wanted = group.wants_dense_gradient(self.weight_steps)
            for layer in group.layers.values():
                layer.expect_dense_gradient(wanted)

    def accumulate(self, dense: bool) -> None:
        """Brings the own momenta up to date, those of dense gradients or those that stand in for an optimizer's."""
        for group in self.groups:
            if (Need.DENSE_MOMENTUM in group.algorithm.needs) == dense:
                for layer in group.layers.values():
                    layer.accumulate_momentum()

    def zero_dead(self, names: Sequence[str] | None = None) -> None:
        """Dead weights to 0, and their optimizer state to the value that the optimizer starts it with.

        Args:
            names: of the layers; None for all.
        """
        layers = self.by_name()
        chosen = list(layers.values()) if names is None else [layers[name] for name in names]
        pairs = [pair for layer in chosen for pair in layer.masked_tensors()]
        if pairs:
            torch._foreach_mul_([tensor for tensor, _ in pairs], [bits for _, bits in pairs])
        for layer in chosen:
            layer.settle()

    # What something else did

    def listen_to_gradients(self) -> Iterator[RemovableHandle]:
        """Checks each layer when its gradient has come, where ``strict`` asks for it."""
        if self.strict:
            for name, layer in self.by_name().items():
                yield on_gradient(layer.parameter, partial(self._check_layer, name))

    def listen_to_loads(self, optimizer: Optimizer) -> None:
        """Has a load of an optimizer's state noticed; one without hooks shows that of another."""
        with suppress(AttributeError):
            self._handles.append(optimizer.register_load_state_dict_post_hook(self.were_loaded))

    def stop_listening(self) -> None:
        """Takes those hooks off."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def were_loaded(self, *_: Any) -> None:
        """Somebody loaded optimizer state, perhaps weights: what lies outside the masks waits for the step."""
        for layer in self.by_name().values():
            layer.was_loaded()

    @torch.no_grad()
    def refuse_strays(self) -> None:
        """Refuses to zero what something else wrote to dead places; nothing is looked at where nobody wrote."""
        suspects = {name: layer for name, layer in self.by_name().items() if layer.suspect}
        found = {name: layer.strays() for name, layer in suspects.items()}
        strays = {name: what for name, what in found.items() if what is not None}
        if strays:
            raise refusal(strays)
        if suspects and not self.weight_steps:
            self._refuse_to_begin_anew(suspects)
        if suspects:
            self.zero_dead()

    def _refuse_to_begin_anew(self, suspects: Mapping[str, StoredLayer]) -> None:
        """Refuses a loaded sparse net of which a method that begins dense would know nothing."""
        methods = {name: group.algorithm for group in self.groups for name in group.layers}
        sparse = {}
        for name, layer in suspects.items():
            weight = layer.parameter.detach()
            if methods[name].initial is None and layer.alive.everything and is_sparse(weight):
                sparse[name] = methods[name].name, int(whole((weight == 0).sum())), layer.layer.size
        if sparse:
            raise begins_anew(sparse)

    def check(self) -> None:
        """What ``strict=True`` asks for."""
        if self.strict:
            for name in self.by_name():
                self._check_layer(name)

    @torch.no_grad()
    def _check_layer(self, name: str, *_: Tensor) -> None:
        self.by_name()[name].check(self.weight_steps)
