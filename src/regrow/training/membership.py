"""Whether model and optimizer still hold the weights that were attached to, each in memory of its own."""

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from regrow.storage import optimizers
from regrow.storage.distributed import is_cut
from regrow.storage.stored_layer import StoredLayer
from regrow.tied_weights import identity, overlapping, places_of_parameters

Standing = tuple[Mapping[str, Any], str, object]
"""A module's own table of children or parameters, a name in it, and what stands there."""

Place = tuple[Mapping[str, Any], str, object, int]
"""The same of what stood there, and at which address it lay."""


class Membership:
    """What stood where in the model when it was attached to.

    Args:
        layers: the attached weights by name.
        model: that holds them.
    """

    def __init__(self, layers: Mapping[str, StoredLayer], model: nn.Module) -> None:
        self._model = model
        self._places, self._ties = _places(layers, model), _ties(layers, model)
        self._without_gradient = set[str]()

    def has_moved(self) -> bool:
        """Whether something else stands in one of the places, or what stands there lies in other memory."""
        return _have_moved(self._places)

    def is_doubtful(self, layers: Mapping[str, StoredLayer]) -> bool:
        """Whether something gives reason to look: a place has changed, or a weight has lost its gradient."""
        without = {name for name, layer in layers.items() if layer.parameter.grad is None}
        lost, self._without_gradient = without - self._without_gradient, without
        return bool(lost) or self.has_moved()

    def check(self, layers: Mapping[str, StoredLayer], optimizer: Optimizer) -> None:
        """Refuses to go on beside a model that has other weights now with a RuntimeError."""
        _check_held(layers, self._model, optimizer)
        _check_ties(layers, self._model, self._ties)
        if self.has_moved():
            self._places = _places(layers, self._model)


def _places(layers: Mapping[str, StoredLayer], model: nn.Module) -> list[Place]:
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


def _have_moved(known: Iterable[Place]) -> bool:
    """Whether something else stands in one of the places, or what stands there lies in other memory."""
    return any(table.get(name) is not held or _address(held) != address for table, name, held, address in known)


def _ties(layers: Mapping[str, StoredLayer], model: nn.Module) -> dict[str, int]:
    """In how many places of the model the weight of each layer stands."""
    number = Counter(identity(parameter) for parameter in places_of_parameters(model).values())
    return {name: number[identity(layer.parameter)] for name, layer in layers.items()}


def second_places(layers: Mapping[str, StoredLayer], model: nn.Module) -> dict[str, str]:
    """Where else in the model the weight of a layer stands as another parameter: place → name of the layer."""
    names = {identity(layer.parameter): name for name, layer in layers.items()}
    found = {place: (weight, names.get(identity(weight))) for place, weight in places_of_parameters(model).items()}
    return {place: name for place, (weight, name) in found.items() if name and weight is not layers[name].parameter}


def _check_ties(layers: Mapping[str, StoredLayer], model: nn.Module, before: Mapping[str, int]) -> None:
    """Refuses weights that have come to share memory with another since they were attached to with a RuntimeError."""
    weights = places_of_parameters(model)
    names = {identity(layer.parameter): name for name, layer in layers.items()}
    pairs = [pair for pair in overlapping(weights) if any(identity(weights[each]) in names for each in pair)]
    for name, number in _ties(layers, model).items():
        here = [place for place, weight in weights.items() if identity(weight) == identity(layers[name].parameter)]
        if number > before[name]:
            pairs.append((here[0], here[-1]))
    for one, other in pairs:
        raise RuntimeError(
            f"'{one}' and '{other}' have come to share memory since the sparsifier was attached, and one mask cannot "
            "fit both: call detach(), tie the modules by one parameter, and attach to the model as it is then"
        )


def _check_held(layers: Mapping[str, StoredLayer], model: nn.Module, optimizer: Optimizer) -> None:
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
