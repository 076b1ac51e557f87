"""Layers that share one algorithm: when their next update is due, and what of them is saved."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from regrow.algorithm import Algorithm
from regrow.parts.patterns import unstructured
from regrow.parts.scores import Evidence, Need
from regrow.storage.distributed import whole
from regrow.storage.stored_layer import StoredLayer
from regrow.topology import updated_masks
from regrow.training import saved_state
from regrow.training.update_record import Explored, LayerUpdate


@dataclass(eq=False)
class Group:
    """Layers that share one algorithm, and the weight step at which their next update is due."""

    algorithm: Algorithm
    layers: dict[str, StoredLayer]
    next_update: int | None
    dense_gradients: dict[str, Tensor] = field(default_factory=dict)

    def is_due(self, weight_steps: int) -> bool:
        """Whether the coming call of ``optimizer.step()`` brings an update."""
        return self.next_update is not None and self.moment(weight_steps) >= self.next_update

    def moment(self, weight_steps: int) -> int:
        """The weight step an update at the coming call belongs to: it comes after the step, or in its place."""
        return weight_steps + 1 if self.algorithm.step_on_update else weight_steps

    def wants_dense_gradient(self, weight_steps: int) -> bool:
        """Whether the gradients of the coming step must not be masked as they arrive."""
        needs = self.algorithm.needs
        return Need.DENSE_MOMENTUM in needs or (Need.GRADIENT in needs and self.is_due(weight_steps))

    def keep_gradients(self) -> None:
        """Takes the dense gradients of an update; none of them where one is not finite."""
        gradients = {name: layer.dense_gradient() for name, layer in self.layers.items()}
        found = {name: gradient for name, gradient in gradients.items() if gradient is not None}
        if all(bool(whole(gradient).abs().amax().isfinite()) for gradient in found.values()):
            copies = self.algorithm.step_on_update
            self.dense_gradients = {n: gradient.clone() if copies else gradient for n, gradient in found.items()}

    @torch.no_grad()
    def update(self, weight_steps: int, seed: int, explored: Explored) -> dict[str, LayerUpdate] | None:
        """Gives the layers their new masks.

        Returns:
            What changed; None where the group must wait for a (finite) gradient.
        """
        moment, needs_gradient = self.moment(weight_steps), Need.GRADIENT in self.algorithm.needs
        gradients, self.dense_gradients = self.dense_gradients, {}
        frozen = {
            name
            for name, layer in self.layers.items()
            if not layer.parameter.requires_grad or (needs_gradient and name not in gradients)
        }
        if len(frozen) == len(self.layers):
            return None
        evidence = {name: layer.evidence(gradients.get(name), seed, moment) for name, layer in self.layers.items()}
        masks = updated_masks(self.algorithm, moment, evidence, frozen)
        for name, mask in masks.items():
            self.layers[name].set_mask(mask, moment)
            explored.add(name, mask)
        self.next_update = self.algorithm.when.following(moment + 1)
        return {
            name: _change(known, masks.get(name, known.alive), explored.number(name))
            for name, known in evidence.items()
            if name not in frozen
        }

    def state(self) -> dict[str, Any]:
        """What a saved state says of the group."""
        return {
            "algorithm": self.algorithm.name,
            "sparsity": self.algorithm.final_sparsity,
            "next_update": self.next_update,
            "layers": list(self.layers),
        }

    def check_sparsity(self, entry: Mapping[str, Any], masks: Mapping[str, Tensor]) -> None:
        """Refuses a saved group of another sparsity or distribution with a ValueError."""
        saved_state.check_sparsity(self.algorithm.name, entry, self.algorithm.final_sparsity)
        alive = {name: (self._units(masks[name]), self._units_of(layer)) for name, layer in self.layers.items()}
        if self.algorithm.keeps_each_number:
            for name, (found, expected) in alive.items():
                saved_state.check_number(f"'{name}'", found, expected, self.algorithm.pattern.unit)
        elif self.algorithm.keeps_its_number:
            found, expected = map(sum, zip(*alive.values(), strict=True))
            saved_state.check_number(self.algorithm.name, found, expected, self.algorithm.pattern.unit)

    def _units(self, mask: Tensor) -> int:
        return int(self.algorithm.pattern.units(mask).count_nonzero())

    def _units_of(self, layer: StoredLayer) -> int:
        # What is counted already needs no mask, which ranks that hold pieces of it would have to send each other.
        return layer.alive.number if self.algorithm.pattern == unstructured else self._units(whole(layer.mask))


def _change(known: Evidence, mask: Tensor, explored: int) -> LayerUpdate:
    before, alive = int(known.alive.count_nonzero()), int(mask.count_nonzero())
    kept = before if mask is known.alive else int((known.alive & mask).count_nonzero())
    return LayerUpdate(known.layer.size, before, before - kept, alive - kept, explored / known.layer.size)
