"""Layers that share one algorithm: when their next update is due, and what of them is saved."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from regrow.algorithm import Algorithm
from regrow.parts.patterns import unstructured
from regrow.parts.scores import Need
from regrow.storage import optimizers
from regrow.storage.distributed import is_cut, whole
from regrow.storage.masked_layer import StoredLayer
from regrow.tied_weights import identity, overlapping, places_of_parameters
from regrow.training import saved_state


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


Standing = tuple[Mapping[str, Any], str, object]
"""A module's own table of children or parameters, a name in it, and what stands there."""

Place = tuple[Mapping[str, Any], str, object, int]
"""The same of what stood there, and at which address it lay."""


def places(layers: Mapping[str, StoredLayer], model: nn.Module) -> list[Place]:
    """The model's weights and the modules that lead to those of these layers, each where it stands in the model."""
    # fully_shard puts whole weights in the place of its pieces for a while.
    ways = [_way(model, name, layer.parameter) for name, layer in layers.items() if not is_cut(layer.parameter)]
    weights: list[Standing] = [
        (module._parameters, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None and not is_lazy(parameter) and parameter.dim() >= 2 and not is_cut(parameter)
    ]
    found = {(id(table), name): (table, name, held) for table, name, held in chain(*ways, weights)}
    return [(table, name, held, _address(held)) for table, name, held in found.values()]


def _address(held: object) -> int:
    return held.data_ptr() if isinstance(held, nn.Parameter) and not held.is_meta else 0


def _way(model: nn.Module, name: str, parameter: nn.Parameter) -> list[Standing]:
    """From the model to a weight; nothing where it does not stand at its name (a parametrization holds it)."""
    *path, last = name.split(".")
    module, way = model, list[Standing]()
    for part in path:
        child = module._modules.get(part)
        if child is None:
            return []
        way.append((module._modules, part, child))
        module = child
    return [*way, (module._parameters, last, parameter)] if module._parameters.get(last) is parameter else []


def have_moved(known: Iterable[Place]) -> bool:
    """Whether something else stands in one of the places, or what stands there lies in other memory."""
    return any(table.get(name) is not held or _address(held) != address for table, name, held, address in known)


def ties(layers: Mapping[str, StoredLayer], model: nn.Module) -> dict[str, int]:
    """In how many places of the model the weight of each layer stands."""
    number = Counter(identity(parameter) for parameter in places_of_parameters(model).values())
    return {name: number[identity(layer.parameter)] for name, layer in layers.items()}


def second_places(layers: Mapping[str, StoredLayer], model: nn.Module) -> dict[str, str]:
    """Where else in the model the weight of a layer stands as another parameter: place → name of the layer."""
    names = {identity(layer.parameter): name for name, layer in layers.items()}
    found = {place: (weight, names.get(identity(weight))) for place, weight in places_of_parameters(model).items()}
    return {place: name for place, (weight, name) in found.items() if name and weight is not layers[name].parameter}


def check_ties(layers: Mapping[str, StoredLayer], model: nn.Module, before: Mapping[str, int]) -> None:
    """Refuses weights that have come to share memory with another since they were attached to with a RuntimeError."""
    weights = places_of_parameters(model)
    names = {identity(layer.parameter): name for name, layer in layers.items()}
    pairs = [pair for pair in overlapping(weights) if any(identity(weights[each]) in names for each in pair)]
    for name, number in ties(layers, model).items():
        here = [place for place, weight in weights.items() if identity(weight) == identity(layers[name].parameter)]
        if number > before[name]:
            pairs.append((here[0], here[-1]))
    for one, other in pairs:
        raise RuntimeError(
            f"'{one}' and '{other}' have come to share memory since the sparsifier was attached, and one mask cannot "
            "fit both: call detach(), tie the modules by one parameter, and attach to the model as it is then"
        )


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
