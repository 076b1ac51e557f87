"""A weight of which only the alive entries exist: their values, and where in the dense weight they stand."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from regrow.compaction.dense_gradient import DenseGradient
from regrow.compaction.positions import Positions
from regrow.engine.selection import overlap, positions


def indices_of(mask: Tensor) -> Tensor:
    """Flat positions of the alive weights in row-major order, ascending: int32 where that suffices, else int64.

    >>> indices_of(torch.tensor([[True, False], [True, True]])).tolist()
    [0, 2, 3]
    """
    return positions(mask)


def gather(dense: Tensor, indices: Tensor) -> Tensor:
    """The entries of a dense tensor at flat positions: any shape → (nnz,)."""
    return dense.reshape(-1).index_select(0, indices)


def scatter(values: Tensor, indices: Tensor, shape: tuple[int, ...], fill: float = 0.0) -> Tensor:
    """The dense tensor with ``values`` at flat positions and ``fill`` elsewhere: (nnz,) → ``shape``.

    Raises:
        ValueError: ``values`` have another shape; somebody wrote to a compact weight as if it were dense.
    """
    if values.shape != indices.shape:
        raise ValueError(
            f"a compact weight of {len(indices):,} alive values holds a tensor of shape {tuple(values.shape)}: dense "
            "weights are loaded by load_state_dict, which knows their places"
        )
    dense = values.new_full((math.prod(shape),), fill)
    dense[indices.long()] = values
    return dense.view(shape)


@dataclass(frozen=True)
class Move:
    """From one pattern to another: which entries of the old stay, and which of the new they become."""

    stays: Tensor
    known: Tensor

    @classmethod
    def between(cls, old: Tensor, new: Tensor) -> "Move":
        """From flat positions to others, both ascending.

        >>> Move.between(torch.tensor([0, 2]), torch.tensor([0, 1]))(torch.tensor([5.0, 7.0])).tolist()
        [5.0, 0.0]
        """
        return cls(*overlap(old, new))

    def __call__(self, entries: Tensor, initial: float = 0.0) -> Tensor:
        """One number for each alive weight before → one for each after; ``initial`` for the newborn."""
        return entries.new_full((len(self.known),), initial).masked_scatter_(
            self.known, entries.masked_select(self.stays)
        )


def resize(tensor: Tensor, content: Tensor) -> None:
    """Gives a tensor, a parameter included, other content of any size; it stays the same object.

    A backward pass whose forward came before finds out, as of any write in place.
    """
    # Autograd remembers a parameter's size as long as some graph that used it is alive (a loss that the loop has not
    # yet overwritten); a change of dtype makes it forget.
    if tensor.requires_grad and tensor.shape != content.shape:
        tensor.data = torch.empty(0, dtype=torch.float64 if tensor.dtype != torch.float64 else torch.float32)
    tensor.data = content
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)  # which .data does not do by itself


def own_weight(module: nn.Module) -> nn.Parameter:
    """The parameter that a layer's weight is.

    Raises:
        RuntimeError: something computes the weight from other parameters.
    """
    weight = module._parameters.get("weight")
    if weight is None:
        raise RuntimeError(
            f"the weight of a {type(module).__name__} is computed from other parameters now (spectral_norm, "
            "weight_norm, prune, …), and compact storage has only a list of its alive values: take that off again, "
            "call detach(), and attach with storage='dense'"
        )
    return weight


class Keeper(Protocol):
    """A sparsifier's layer, whose optimizer state has one number an alive weight too."""

    def make_room(self, alive: Tensor) -> None:
        """Has the pattern take in the True entries of a mask, and moves everything."""

    def state(self) -> Iterable[tuple[Tensor, float]]:
        """What has one number an alive weight beside the values, with its initial value."""


@dataclass(eq=False)
class CompactWeight:
    """The alive entries of one weight.

    Attributes:
        values: the model's own parameter, its data of shape (nnz,).
        positions: of the alive weights in the dense one.
        version: grows with every change of the pattern, so that kernels know when to rebuild what they derived from it.
        dense_gradient: what the coming backward passes keep of it; None where it is not wanted.
        keeper: what a sparsifier keeps it by; None where it is free, as a copy is.
    """

    values: nn.Parameter
    positions: Positions
    version: int = 0
    dense_gradient: DenseGradient | None = None
    keeper: Keeper | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "keeper": None, "dense_gradient": None}

    @classmethod
    def from_dense(cls, parameter: nn.Parameter, mask: Tensor, state: Iterable[Tensor] = ()) -> "CompactWeight":
        """Cuts a parameter, its gradient and its optimizer state down to the alive entries, in place."""
        indices = indices_of(mask)
        weight = cls(parameter, Positions.of(indices, tuple(parameter.shape)))
        gradient, parameter.grad = parameter.grad, None
        for tensor in (parameter, *state):
            resize(tensor, gather(tensor.detach(), indices))
        if gradient is not None:
            parameter.grad = gather(gradient, indices)
        return weight

    def to_dense(self, state: Iterable[tuple[Tensor, float]] = ()) -> nn.Parameter:
        """Gives the parameter, its gradient and its state (with initial values) their dense shape, in place."""
        parameter = self.values
        gradient, parameter.grad = parameter.grad, None
        for tensor, initial in ((parameter, 0.0), *state):
            resize(tensor, self.dense(tensor.detach(), initial))
        if gradient is not None:
            parameter.grad = self.dense(gradient)
        return parameter

    @property
    def num_alive(self) -> int:
        """Alive weights."""
        return len(self.positions)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the dense weight."""
        return self.positions.shape

    @property
    def indices(self) -> Tensor:
        """(nnz,) ascending flat row-major positions, made anew at each call."""
        return self.positions.indices

    @property
    def mask(self) -> Tensor:
        """Bool tensor of the dense shape, True where alive; made anew at each call."""
        return self.dense(torch.ones(self.num_alive, dtype=torch.bool))

    def dense(self, entries: Tensor, fill: float = 0.0) -> Tensor:
        """One number an alive weight as a tensor of the dense shape."""
        return scatter(entries, self.indices, self.shape, fill)

    def set_mask(self, mask: Tensor, state: Iterable[tuple[Tensor, float]] = ()) -> None:
        """Another pattern: kept entries of values, gradient and state move with it, the newborn start afresh.

        Args:
            mask: bool, of the dense shape.
            state: tensor and initial value of what has one number an alive weight; resized in place.
        """
        new = indices_of(mask)
        move = Move.between(self.indices, new)
        gradient, self.values.grad = self.values.grad, None
        for tensor, initial in ((self.values, 0.0), *state):
            resize(tensor, move(tensor.detach(), initial))
        if gradient is not None:
            self.values.grad = move(gradient)
        if self.dense_gradient is not None:
            self.dense_gradient.move(move)
        self.positions = Positions.of(new, self.shape)
        self.version += 1

    def load(self, dense: Tensor) -> Tensor:
        """The alive entries of a dense weight that is being loaded, by a pattern that holds all that is not 0 in it.

        A free weight keeps its pattern as long as that does, and takes that of what is loaded else.
        """
        dense = dense.detach().to(self.values)
        if self.keeper is not None:
            self.keeper.make_room(dense != 0)
        elif bool(((dense != 0) & ~self.mask).any()):
            self.set_mask(dense != 0)
        return gather(dense, self.indices)


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: CompactWeight) -> Tensor:
        ctx.weight, ctx.indices = weight, weight.indices
        ctx.save_for_backward(values)  # so that autograd notices another pattern
        return scatter(values.detach(), ctx.indices, weight.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        weight: CompactWeight = ctx.weight
        ctx.saved_tensors  # noqa: B018  # raises where they are not what they were
        own = gather(gradients[0], ctx.indices)
        if weight.dense_gradient is not None:
            weight.dense_gradient.add(gradients[0].contiguous(), own)
        return own, None


def dense_weight(values: Tensor, weight: CompactWeight) -> Tensor:
    """The dense weight for torch's own operations; of its gradient only that of the alive entries is kept.

    Args:
        values: the layer's parameter at the moment.
        weight: where its entries stand.
    """
    apply: Any = _Scatter.apply  # torch has no types for it
    dense: Tensor = apply(values, weight)
    return dense
