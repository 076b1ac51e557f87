"""What the sparsifier asks of a weight that is kept sparse, however it is kept, and of a storage of such weights."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from regrow.layers import Layer
from regrow.parts.scores import Evidence


@dataclass(eq=False)
class AliveCount:
    """Alive weights of one layer, and their sum over the weight steps so far."""

    size: int
    number: int = 0
    weight_steps: int = 0
    _until: int = 0

    def advance(self, step: int) -> None:
        """Brings the sum up to weight step ``step``."""
        self.weight_steps += self.number * (step - self._until)
        self._until = step

    def change(self, number: int, step: int) -> None:
        """Another number of alive weights from weight step ``step`` on."""
        self.advance(step)
        self.number = number

    def restore(self, weight_steps: int, step: int) -> None:
        """Takes the sum from a saved state."""
        self.weight_steps, self._until = weight_steps, step

    @property
    def everything(self) -> bool:
        """Whether no weight is dead, so that there is nothing to mask."""
        return self.number == self.size

    @property
    def density(self) -> float:
        """Share of alive weights."""
        return self.number / self.size

    def mean_density(self, step: int) -> float:
        """Density averaged over the weight steps so far; the present one before the first."""
        self.advance(step)
        return self.weight_steps / (step * self.size) if step else self.density


class StoredLayer(Protocol):
    """One sparsified weight, however it is kept; every tensor that goes in or out has the shape of the dense weight."""

    layer: Layer
    parameter: nn.Parameter
    alive: AliveCount

    @property
    def mask(self) -> Tensor:
        """Bool, True where alive."""

    @property
    def momentum(self) -> Tensor | None:
        """A buffer of our own, where the recipe needs a momentum that the optimizer does not keep; else None."""

    def set_mask(self, mask: Tensor, step: int) -> None:
        """A new topology, from weight step ``step`` on."""

    def load_mask(self, mask: Tensor, step: int) -> None:
        """The same, but what is not 0 outside the mask stays: it may not have been loaded yet."""

    def load_momentum(self, momentum: Tensor) -> None:
        """Fills the own buffer from a saved state."""

    def expect_dense_gradient(self, wanted: bool) -> None:
        """Whether the gradient of the coming step is wanted for dead weights too."""

    def dense_gradient(self) -> Tensor | None:
        """The gradient of the whole optimizer step, of dead weights too; as it was expected."""

    def mask_gradient(self) -> None:
        """Zeroes the dead part of the gradient."""

    def lend_gradient(self) -> None:
        """Zeroes the dead part of the gradient for the step of another optimizer; kept where an update expects it."""

    def take_gradient_back(self) -> None:
        """Brings the dead part back after that step."""

    def accumulate_momentum(self) -> None:
        """m ← beta · m + g, in the own buffer; what is not finite counts as 0."""

    def masked_tensors(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Tensors that may hold something in dead places, each with the bytes to multiply it by."""

    @property
    def suspect(self) -> bool:
        """Whether something other than a step may have written to dead places since they were settled."""

    def strays(self) -> str | None:
        """What is not 0 outside the mask, in words; None where nothing is."""

    def was_loaded(self) -> None:
        """Somebody loaded the optimizer's state, perhaps the weight: what lies outside the mask waits for the step."""

    def settle(self) -> None:
        """Everything is as the mask says: what is written from now on is noticed."""

    def evidence(self, gradient: Tensor | None, seed: int, step: int) -> Evidence:
        """What the scores of an update may look at."""

    def check(self, weight_steps: int) -> None:
        """The invariants of ``strict=True``."""

    def find_copy(self, model: nn.Module) -> Tensor | None:
        """The same weight in a copy of the model, if there is one that :meth:`mask_copy` can mask."""

    def mask_copy(self, model: nn.Module) -> None:
        """Zeroes the dead weights of a copy."""

    def release(self) -> None:
        """Takes its hooks off the parameter."""


class Storage(Protocol):
    """Where the layers of one attached model are kept."""

    @property
    def name(self) -> str:
        """What ``attach(storage=...)`` calls it."""

    def check_optimizer(self, optimizer: Optimizer) -> None:
        """Refuses another optimizer that steps the weights, if this storage does not suit it, with a ValueError."""

    def take_in(self, optimizer: Optimizer) -> None:
        """Gives the state that such an optimizer has already the form of the weights."""

    def place(self, layer: StoredLayer) -> StoredLayer:
        """The layer as it shall be kept from now on, given its present mask."""

    def notes(self) -> Mapping[str, str]:
        """How each layer is kept and why, where there is something to say."""

    def remove(self) -> None:
        """Gives the model its dense weights back."""

    def state(self) -> Mapping[str, Any]:
        """What a run that goes on in another process needs to keep its layers alike; plain values."""

    def check(self, saved: Any) -> None:
        """Refuses what :meth:`state` cannot have given with a ValueError."""

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Takes up a state, of this storage or of another; :meth:`place` follows for every layer."""


def in_words(weights: int, alive: int, state: int) -> str | None:
    """What lies outside a mask.

    Args:
        weights: how many weights that are not 0, of ``alive`` such weights in the layer.
        state: how many entries of optimizer state, the most that one of its tensors has.
    """
    if weights:
        return f"{weights:,} of the {alive:,} weights that are not 0"
    return f"{state:,} entries of the loaded optimizer state" if state else None


def on_gradient(parameter: nn.Parameter, hook: Callable[[Tensor], None]) -> RemovableHandle:
    """Calls ``hook`` when a backward pass has brought the gradient; a frozen parameter is for when it is not any more.

    torch refuses such a hook on a tensor that needs no gradient at the moment, and keeps it on one that stops to.
    """
    wanted = parameter.requires_grad
    parameter.requires_grad_(True)
    try:
        handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(hook)
        return handle
    finally:
        parameter.requires_grad_(wanted)
