"""All of a training's state at one moment, to go back to as often as one likes."""

import copy
from collections.abc import Mapping
from typing import Any, Protocol

import torch


class Stateful(Protocol):
    """Anything with a state to save: a model, an optimizer, a scheduler, a sparsifier, a data loader."""

    def state_dict(self) -> Any:
        """Its state."""

    def load_state_dict(self, state_dict: Any, /) -> Any:
        """Goes back to such a state."""


class Snapshot:
    """The states of some objects and of torch's random generators, copied when it is made.

    >>> layer = torch.nn.Linear(2, 2)
    >>> before = Snapshot(layer)
    >>> _ = torch.nn.init.zeros_(layer.weight)
    >>> before.restore()
    >>> bool((layer.weight != 0).any())
    True

    Args:
        objects: what :meth:`restore` writes to, in this order; their device and shapes must not have changed by then.
    """

    def __init__(self, *objects: Stateful) -> None:
        self.objects = objects
        self.state: dict[str, Any] = {
            "objects": [copy.deepcopy(member.state_dict()) for member in objects],
            "random": torch.get_rng_state(),
            "device_random": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
        }

    @classmethod
    def of_state(cls, state: Mapping[str, Any], *objects: Stateful) -> "Snapshot":
        """The snapshot whose ``state`` was saved, for objects like those that it was taken of."""
        snapshot = cls()
        snapshot.objects, snapshot.state = objects, dict(state)
        return snapshot

    def restore(self) -> None:
        """Brings every object and generator back, bit for bit; the snapshot itself stays what it is."""
        for member, state in zip(self.objects, self.state["objects"], strict=True):
            # Optimizers go on to write into the tensors that they are given.
            member.load_state_dict(copy.deepcopy(state))
        torch.set_rng_state(self.state["random"].cpu())
        if self.state["device_random"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([state.cpu() for state in self.state["device_random"]])
