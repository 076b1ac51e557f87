"""All or nothing: what an attach that fails has written is taken back, wherever it failed."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.compaction.compact_weight import resize
from regrow.storage import optimizers
from regrow.storage.distributed import piece


class Undo:
    """A model and its optimizers as they are now: memory of weights and state, gradients, modules, hooks.

    Nothing is copied: attaching gives a weight that becomes compact other memory, and leaves the old as it was. Only
    what is about to be overwritten in place must be kept, with :meth:`keep`.

    Args:
        model: its modules' classes and attributes.
        weights: the parameters that may be written to.
        holders: the optimizers that hold them.
    """

    def __init__(self, model: nn.Module, weights: Iterable[nn.Parameter], holders: Iterable[Optimizer]) -> None:
        holders, weights = list(holders), list(weights)
        state = [
            part
            for optimizer in holders
            for weight in weights
            for value in optimizers.state_of(optimizer, weight).values()
            if isinstance(value, Tensor)
            for part in _parts(value)
        ]
        self._memory = [(tensor, tensor.detach()) for tensor in (*weights, *state)]
        self._weights = [(weight, weight.grad, weight.requires_grad, _hooks(weight)) for weight in weights]
        self._modules = [(module, type(module), dict(module.__dict__)) for module in model.modules()]
        tables = (table for optimizer in holders for table in vars(optimizer).values() if isinstance(table, dict))
        self._tables = [(table, dict(table)) for table in tables]
        self._copies: list[tuple[Tensor, Tensor]] = []

    def keep(self) -> None:
        """Copies what still has its memory and may be zeroed in part."""
        self._copies = [(old, old.clone()) for tensor, old in self._memory if _same_memory(tensor, old)]

    def __call__(self) -> None:
        """Brings everything back."""
        for old, copy in self._copies:
            old.copy_(copy)
        for module, kind, attributes in self._modules:
            if type(module) is not kind:
                module.__class__ = kind
            for name in module.__dict__.keys() - attributes.keys():
                del module.__dict__[name]
            module.__dict__.update(attributes)
        for weight, *_ in self._weights:
            weight.grad = None
        for tensor, old in self._memory:
            if not _same_memory(tensor, old):
                resize(tensor, old)
        for weight, gradient, wanted, hooks in self._weights:
            weight.grad = gradient
            weight.requires_grad_(wanted)
            table = weight._post_accumulate_grad_hooks
            if table is not None:
                table.clear()
                table.update(hooks)
        for table, entries in self._tables:
            table.clear()
            table.update(entries)


@contextmanager
def all_or_nothing(undo: Undo, *others: Callable[[], None]) -> Iterator[None]:
    """Undoes what the block has written if it raises anything, and what ``others`` undo."""
    try:
        yield
    except BaseException:
        undo()
        for other in others:
            other()
        raise


def _parts(value: Tensor) -> list[Tensor]:
    """The tensors that a state is made of: itself, or what a quantised one keeps its codes in."""
    flatten = getattr(value, "__tensor_flatten__", None)
    if flatten is None or not optimizers.is_quantised(value):
        return [value]
    return [getattr(value, name) for name in flatten()[0]]


def _same_memory(tensor: Tensor, old: Tensor) -> bool:
    return tensor.shape == old.shape and piece(tensor).data_ptr() == piece(old).data_ptr()


def _hooks(weight: nn.Parameter) -> dict[Any, Any]:
    # torch has no public way to list them; a handle that an interrupt kept from being stored removes none.
    return dict(weight._post_accumulate_grad_hooks or {})
