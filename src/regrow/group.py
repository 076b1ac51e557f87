"""Layers that share one algorithm: when their next update is due, and what of them is saved."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow import optimizers, state
from regrow.algorithm import Algorithm
from regrow.patterns import unstructured
from regrow.scores import Need
from regrow.shards import is_cut, whole
from regrow.storage import StoredLayer


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
        state.check_sparsity(self.algorithm.name, entry, self.algorithm.final_sparsity)
        alive = {name: (self._units(masks[name]), self._units_of(layer)) for name, layer in self.layers.items()}
        if self.algorithm.keeps_each_number:
            for name, (found, expected) in alive.items():
                state.check_number(f"'{name}'", found, expected, self.algorithm.pattern.unit)
        elif self.algorithm.keeps_its_number:
            found, expected = map(sum, zip(*alive.values(), strict=True))
            state.check_number(self.algorithm.name, found, expected, self.algorithm.pattern.unit)

    def _units(self, mask: Tensor) -> int:
        return int(self.algorithm.pattern.units(mask).count_nonzero())

    def _units_of(self, layer: StoredLayer) -> int:
        # What is counted already needs no mask, which ranks that hold pieces of it would have to send each other.
        return layer.alive.number if self.algorithm.pattern == unstructured else self._units(whole(layer.mask))


Place = tuple[Mapping[str, Any], str, object]
"""A module's own table of children or parameters, a name in it, and what stood there."""


def places(layers: Mapping[str, StoredLayer], model: nn.Module) -> list[Place]:
    """The weights of these layers and the modules that lead to them, each where it stands in the model."""
    # fully_shard puts whole weights in the place of its pieces for a while.
    ways = [_way(model, name, layer.parameter) for name, layer in layers.items() if not is_cut(layer.parameter)]
    return list({(id(table), name): (table, name, held) for way in ways for table, name, held in way}.values())


def _way(model: nn.Module, name: str, parameter: nn.Parameter) -> list[Place]:
    """From the model to a weight; nothing where it does not stand at its name (a parametrization holds it)."""
    *path, last = name.split(".")
    module, way = model, list[Place]()
    for part in path:
        child = module._modules.get(part)
        if child is None:
            return []
        way.append((module._modules, part, child))
        module = child
    return [*way, (module._parameters, last, parameter)] if module._parameters.get(last) is parameter else []


def have_moved(known: Iterable[Place]) -> bool:
    """Whether something else stands in one of the places."""
    return any(table.get(name) is not held for table, name, held in known)


def check_membership(layers: Mapping[str, StoredLayer], model: nn.Module, optimizer: Optimizer) -> None:
    """Refuses layers whose weights the model or the optimizer does not hold any more with a RuntimeError."""
    held = {id(parameter) for parameter in optimizers.parameters(optimizer)}
    present = {id(parameter) for parameter in model.parameters()}
    for name, layer in layers.items():
        if not is_cut(layer.parameter) and id(layer.parameter) not in present:
            raise RuntimeError(
                f"'{name}' is not the weight any more that was attached to (a module was replaced, or weights were "
                "loaded with assign=True): call detach() and attach to the model as it is now"
            )
        if layer.parameter.requires_grad and id(layer.parameter) not in held:
            raise RuntimeError(
                f"the optimizer does not hold '{name}' any more: freeze it with requires_grad_(False), or call "
                "detach() and attach anew"
            )
