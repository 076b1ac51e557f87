"""All of a training's state at one moment, to go back to as often as one likes."""

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import nn


class Stateful(Protocol):
    """Anything with a state to save: a model, an optimizer, a scheduler, a sparsifier, a data loader."""

    def state_dict(self) -> Any:
        """Its state."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Goes back to such a state."""


class Snapshot:
    """The states of some objects and of torch's random generators, copied when it is made; of modules their modes too.

    Gradients are none of it: they stay as they lie.

    >>> layer = torch.nn.Linear(2, 2)
    >>> before = Snapshot(layer)
    >>> _ = torch.nn.init.zeros_(layer.weight)
    >>> before.restore()
    >>> bool((layer.weight != 0).any())
    True

    Args:
        objects: what :meth:`restore` writes to, in this order; their device and shapes must not have changed by then.

    Raises:
        ValueError: an object has no ``state_dict`` and ``load_state_dict``, and is no ``torch.Generator`` either.
    """

    def __init__(self, *objects: Stateful | torch.Generator) -> None:
        for member in objects:
            if not isinstance(member, torch.Generator) and not _is_stateful(member):
                raise ValueError(
                    f"a {type(member).__name__} has no state to go back to; expected a torch.Generator, or what has "
                    "state_dict and load_state_dict: wrap it in a class with these two"
                )
        self.objects = objects
        self.state: dict[str, Any] = {
            "objects": [_state(member) for member in objects],
            "modes": [_modes(member) for member in objects],
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], *objects: Stateful | torch.Generator) -> "Snapshot":
        """The snapshot whose ``state`` was saved, for objects like those that it was taken of."""
        snapshot = cls()
        snapshot.objects, snapshot.state = objects, dict(state)
        return snapshot

    def restore(self) -> None:
        """Brings every object and generator back, bit for bit; the snapshot itself stays what it is."""
        modes = self.state.get("modes", [{}] * len(self.objects))  # older files have none
        for member, state, training in zip(self.objects, self.state["objects"], modes, strict=True):
            if isinstance(member, torch.Generator):
                member.set_state(state.cpu())
                continue
            # Optimizers go on to write into the tensors that they are given.
            member.load_state_dict(copy.deepcopy(state))
            for name, module in member.named_modules() if isinstance(member, nn.Module) else ():
                module.training = training.get(name, module.training)
        torch.set_rng_state(self.state["random"].cpu())
        if self.state["device_random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([state.cpu() for state in self.state["device_random"]])


def _is_stateful(member: object) -> bool:
    return callable(getattr(member, "state_dict", None)) and callable(getattr(member, "load_state_dict", None))


def _state(member: Stateful | torch.Generator) -> Any:
    return member.get_state() if isinstance(member, torch.Generator) else copy.deepcopy(member.state_dict())


def _modes(member: object) -> dict[str, bool]:
    """Which modules are in training mode, by name."""
    return {name: module.training for name, module in member.named_modules()} if isinstance(member, nn.Module) else {}
