"""The unit that lives and dies: one weight, a block of weights, a whole channel."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pattern:
    """Cuts a weight into a grid of equal blocks (the last ones may be short); a block lives or dies as one.

    Args:
        name: what a table calls it.
        block: weight shape → block shape, of as many dimensions.
    """

    name: str
    block: Callable[[Shape], Shape]

    @property
    def unit(self) -> str:
        """What is counted, in the plural: as the name, but unstructured masks are of weights."""
        return "weights" if self == unstructured else self.name

    def is_whole(self, shape: Shape) -> bool:
        """Whether a weight of this shape has no short block, so that all its blocks hold the same number of weights."""
        return not any(size % step for size, step in zip(shape, self.block(shape), strict=True))

    def grid(self, shape: Shape) -> Shape:
        """Number of blocks along each dimension of a weight."""
        return tuple(math.ceil(size / step) for size, step in zip(shape, self.block(shape), strict=True))

    def reduce(self, values: Tensor) -> Tensor:
        """Sum over each block: weight shape → grid shape."""
        block = self.block(tuple(values.shape))
        if set(block) == {1}:
            return values
        padded = torch.nn.functional.pad(values, self._padding(tuple(values.shape)))
        split = [part for pair in zip(self.grid(tuple(values.shape)), block, strict=True) for part in pair]
        return padded.reshape(split).sum(dim=tuple(range(1, len(split), 2)))

    def units(self, mask: Tensor) -> Tensor:
        """The blocks of a mask that are alive: weight shape → grid shape."""
        return mask if set(self.block(tuple(mask.shape))) == {1} else self.reduce(mask.float()) > 0

    def expand(self, units: Tensor, shape: Shape) -> Tensor:
        """A mask over blocks as a mask over weights: grid shape → weight shape."""
        for dimension, step in enumerate(self.block(shape)):
            if step > 1:
                units = units.repeat_interleave(step, dim=dimension)
        return units[tuple(slice(size) for size in shape)]

    def _padding(self, shape: Shape) -> list[int]:
        missing = [-size % step for size, step in zip(shape, self.block(shape), strict=True)]
        return [amount for gap in reversed(missing) for amount in (0, gap)]


def _single(shape: Shape) -> Shape:
    return (1,) * len(shape)


def _channel(shape: Shape) -> Shape:
    return (1, *shape[1:])


@dataclass(frozen=True)
class _OutputBlock:
    height: int

    def __call__(self, shape: Shape) -> Shape:
        return (self.height, *(1 for _ in shape[1:]))


unstructured = Pattern("unstructured", _single)
channels = Pattern("channels", _channel)


def output_blocks(height: int) -> Pattern:
    """Blocks of ``height`` neighbouring outputs that share an input (4 is what the compact kernels like).

    >>> output_blocks(4).grid((10, 3, 3, 3))
    (3, 3, 3, 3)
    """
    if height < 1:
        raise ValueError(f"block height is {height}; expected a positive number of outputs")
    return Pattern(f"{height}x1 blocks", _OutputBlock(height))
