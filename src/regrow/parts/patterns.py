"""The unit that lives and dies (one weight, a block, a whole channel), and how many of them may live side by side."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from regrow.parts.topk import finite, select

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Pattern:
    """Cuts a weight into a grid of equal blocks (the last ones may be short); a block lives or dies as one.

    Blocks may be in groups of equal size, of which each has the same number alive (constant fan-in, N:M).

    Args:
        name: what a table calls it.
        block: weight shape → block shape, of as many dimensions.
        group: grid shape → the dimension along which the blocks of a group lie, and how many they are; None: all
            blocks of a weight are one group.
        alive: so many blocks of each group, whatever the sparsity; None: as many as the sparsity says.
    """

    name: str
    block: Callable[[Shape], Shape]
    group: Callable[[Shape], tuple[int, int]] | None = None
    alive: int | None = None

    @property
    def unit(self) -> str:
        """What is counted, in the plural: as the name, but of single weights these."""
        return "weights" if self.block is _single else self.name

    def feasible(self, count: int, grid: Shape) -> int:
        """The number of alive blocks nearest to a count that every group can have its equal share of, one at least.

        Raises:
            ValueError: the grid cannot be cut into such groups, or the pattern has another number than this.

        >>> constant_fan_in.feasible(10, (4, 8)), n_of_m(2, 4).feasible(16, (4, 8)), unstructured.feasible(10, (4, 8))
        (8, 16, 10)
        """
        if self.group is None:
            return count
        dimension, members = self.group(grid)
        if grid[dimension] % min(members, grid[dimension]) or math.prod(grid) % members:
            raise ValueError(f"{grid[dimension]} inputs are no groups of {members}")
        groups = math.prod(grid) // members
        if self.alive is None:
            return min(max(1, round(count / groups)), members) * groups
        if abs(self.alive * groups - count) > 1:
            raise ValueError(f"{self.name} has {self.alive * groups:,} alive, sparsity {1 - self.alive / members:g}")
        return self.alive * groups

    def choose(self, scores: Tensor, count: int, among: Tensor, budget: int, beside: Tensor | None = None) -> Tensor:
        """The ``count`` candidates with the largest scores that no group gets more of than its share of a budget.

        Fewer where the groups have no room for as many.

        Args:
            scores: of the grid's shape, as are the masks.
            count: how many.
            among: bool mask of the candidates.
            budget: blocks that all groups shall have together.
            beside: bool mask of those that are chosen already, no candidates.

        >>> scores, everything = torch.tensor([[4.0, 3.0, 2.0], [1.0, 5.0, 0.0]]), torch.ones(2, 3, dtype=torch.bool)
        >>> constant_fan_in.choose(scores, 2, everything, budget=2).int().tolist()
        [[1, 0, 0], [0, 1, 0]]
        """
        if self.group is None:
            return select(scores, count, among)
        dimension, members = self.group(tuple(scores.shape))
        moved = scores.movedim(dimension, -1).shape

        def grouped(values: Tensor) -> Tensor:
            return values.movedim(dimension, -1).reshape(-1, members)

        values, candidates = finite(grouped(scores)), grouped(among)
        room = torch.full((len(values), 1), budget // len(values), device=values.device)
        if beside is not None:
            room -= grouped(beside).sum(dim=1, keepdim=True)
        order = values.argsort(dim=1, descending=True, stable=True)
        best_first = candidates.gather(1, order)
        fits = torch.zeros_like(candidates).scatter_(1, order, best_first & (best_first.cumsum(1) <= room))
        chosen = select(values, min(count, int(fits.count_nonzero())), fits)
        return chosen.reshape(moved).movedim(-1, dimension)

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


def _row(grid: Shape) -> tuple[int, int]:
    return len(grid) - 1, math.prod(grid[1:])


@dataclass(frozen=True)
class _Run:
    length: int

    def __call__(self, grid: Shape) -> tuple[int, int]:
        return 1, self.length


unstructured = Pattern("unstructured", _single)
"""Single weights, anywhere in a layer."""
channels = Pattern("channels", _channel)
"""Whole output channels of a convolution, or rows of a linear layer."""
constant_fan_in = Pattern("constant fan-in", _single, group=_row)
"""As many alive weights in each row: of each output of a linear layer, each filter of a convolution.

Lasby et al. 2024 (SRigL), section 3. A layer has the number of its distribution, rounded to a multiple of its rows.
"""


def n_of_m(n: int, m: int) -> Pattern:
    """``n`` alive of each ``m`` neighbouring inputs, 2:4 for instance: sparsity 1 − n/m in every layer.

    Zhou et al. 2021, "Learning N:M fine-grained structured sparse neural networks from scratch", section 3.

    Raises:
        ValueError: not 1 <= n < m.

    >>> n_of_m(2, 4).name
    '2:4'
    """
    if not 1 <= n < m:
        raise ValueError(f"{n}:{m} is no pattern; expected n alive of each m weights, 1 <= n < m, such as 2 and 4")
    return Pattern(f"{n}:{m}", _single, group=_Run(m), alive=n)


def output_blocks(height: int) -> Pattern:
    """Blocks of ``height`` neighbouring outputs that share an input (4 is what the compact kernels like).

    >>> output_blocks(4).grid((10, 3, 3, 3))
    (3, 3, 3, 3)
    """
    if height < 1:
        raise ValueError(f"block height is {height}; expected a positive number of outputs")
    return Pattern(f"{height}x1 blocks", _OutputBlock(height))
