"""Which tensors lie in the same memory: what is stored there is one weight, whatever objects stand for it."""

import math
from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class Memory:
    """Where the entries of a tensor are stored; two of these are equal where every entry has the same place.

    Attributes:
        space: what the addresses are of: a device, or one storage where there are no addresses (meta, fake tensors).
        start: of the first entry, in bytes.
        dtype: of the entries.
        shape: of the tensor.
        strides: in entries; 0 along a dimension of size 1, where it means nothing.
    """

    space: Hashable
    start: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> "Memory | None":
        """None where a tensor has no memory of its own (no entries, no shape yet, another layout)."""
        if is_lazy(tensor):
            return None
        tensor = tensor.detach()
        if hasattr(tensor, "to_local"):  # a piece of a DTensor
            tensor = tensor.to_local()
        if tensor.layout is not torch.strided or tensor.numel() == 0:
            return None
        try:
            space, start = _address(tensor)
        except (RuntimeError, NotImplementedError):  # a class that keeps its numbers in some other way
            return None
        shape = tuple(tensor.shape)
        strides = tuple(step if size > 1 else 0 for size, step in zip(shape, tensor.stride(), strict=True))
        return cls(space, start, tensor.dtype, shape, strides)

    @property
    def end(self) -> int:
        """One past the last byte."""
        last = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        return self.start + (last + 1) * self.dtype.itemsize

    def overlaps(self, other: "Memory") -> bool:
        """Whether a byte belongs to both; the columns of one matrix do not overlap, though they lie between each other.

        >>> matrix = torch.zeros(4, 6)
        >>> left, right = Memory.of(matrix[:, :3]), Memory.of(matrix[:, 3:])
        >>> left.overlaps(right), left.overlaps(Memory.of(matrix.t()))
        (False, True)
        """
        first, last = min(self.start, other.start), max(self.end, other.end)
        if self.space != other.space or last - first >= (self.end - self.start) + (other.end - other.start):
            return False
        unit = math.gcd(self.dtype.itemsize, other.dtype.itemsize, self.start - other.start)
        taken = torch.zeros((last - first) // unit, dtype=torch.bool)
        self._units_in(taken, first, unit).fill_(True)
        return bool(other._units_in(taken, first, unit).any())

    def _units_in(self, bits: Tensor, first: int, unit: int) -> Tensor:
        """The entries that belong to it, of a list with one entry for each ``unit`` bytes from ``first`` on."""
        parts = self.dtype.itemsize // unit
        shape = [size if step else 1 for size, step in zip(self.shape, self.strides, strict=True)]
        return bits.as_strided(
            [*shape, parts], [*(step * parts for step in self.strides), 1], (self.start - first) // unit
        )


def _address(tensor: Tensor) -> tuple[Hashable, int]:
    if type(tensor) is Tensor and not tensor.is_meta:
        return tensor.device, tensor.data_ptr()
    return (tensor.device, tensor.untyped_storage()._cdata), int(tensor.storage_offset()) * tensor.element_size()


def identity(tensor: Tensor) -> Hashable:
    """What is equal for two tensors that are one: the same entries at the same places, or the same object."""
    return Memory.of(tensor) or id(tensor)


def places_of_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Every place in a module that holds a parameter; a module that stands under several names has its first."""
    return {
        f"{path}.{name}" if path else name: parameter
        for path, module in model.named_modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    }


def overlapping(tensors: Mapping[Any, Tensor]) -> Iterator[tuple[Any, Any]]:
    """Keys of two different tensors that share memory, in pairs; those with equal :func:`identity` are one tensor."""
    known = {Memory.of(tensor): key for key, tensor in reversed(list(tensors.items()))}
    found = [(memory, key) for memory, key in known.items() if memory is not None]
    begun: list[tuple[Memory, Any]] = []
    for memory, key in sorted(found, key=lambda item: (str(item[0].space), item[0].start)):
        begun = [(other, name) for other, name in begun if other.space == memory.space and other.end > memory.start]
        yield from ((name, key) for other, name in begun if other.overlaps(memory))
        begun.append((memory, key))


def touch(some: Iterable[Tensor], others: Iterable[Tensor]) -> bool:
    """Whether a tensor of the one kind shares memory with one of the other."""
    one, two = list(some), list(others)
    if not {identity(tensor) for tensor in one}.isdisjoint(identity(tensor) for tensor in two):
        return True
    keyed = {(kind, number): tensor for kind, tensors in enumerate((one, two)) for number, tensor in enumerate(tensors)}
    return any(first[0] != second[0] for first, second in overlapping(keyed))
