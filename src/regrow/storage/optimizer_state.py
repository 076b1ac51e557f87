"""What an optimizer keeps beside one number a weight, and why that cannot be kept in step with the masks."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.storage import optimizers
from regrow.storage.distributed import piece


@dataclass(frozen=True)
class Held:
    """A sparsified weight that an optimizer holds: the parameter as it is now, and the shape of the dense weight."""

    name: str
    parameter: nn.Parameter
    shape: tuple[int, ...]

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Those that a tensor with one entry a weight may have."""
        return tuple(self.parameter.shape), self.shape


def matrix_keys(optimizer: Optimizer, weights: Iterable[Held]) -> frozenset[str]:
    """Names of state that has a square weight's shape by chance only, as its preconditioners do.

    Such state is of another shape than the parameter where that is not square.
    """
    shapes = {id(held.parameter): held.shapes for held in weights}
    return frozenset(
        key
        for parameter in optimizers.parameters(optimizer)
        for key, value in optimizers.state_of(optimizer, parameter).items()
        if isinstance(value, Tensor)
        and value.numel() > 1
        and tuple(value.shape) not in (tuple(parameter.shape), *shapes.get(id(parameter), ()))
    )


def is_square(tensor: Tensor) -> bool:
    """Whether it is a square matrix."""
    return tensor.dim() == 2 and tensor.shape[0] == tensor.shape[1]


def obstacle(optimizer: Optimizer, weights: Sequence[Held], compact: bool) -> str:
    """Why state of an optimizer's cannot follow the masks, as a sentence that names it; empty where all of it can.

    Args:
        optimizer: one that steps some of the weights.
        weights: those that it steps.
        compact: whether the storage of the weights is compact.
    """
    name, matrices = type(optimizer).__name__, matrix_keys(optimizer, weights)
    for held in weights:
        for key, value in optimizers.state_of(optimizer, held.parameter).items():
            chance = key in matrices and is_square(value)
            found = "that is no number a weight" if compact and chance else _of_one_weight(value, held, compact)
            if found:
                return f"{name} keeps '{key}' of '{held.name}' {found}: {ELSEWHERE if compact else REMEDY}"
    for where, tensor in _beside(optimizer):
        found = _beside_weights(tensor, optimizer, weights, compact)
        if found:
            return f"{name} keeps {where}, {found}: {REMEDY}"
    return ""


REMEDY = "take an optimizer that keeps one number a weight in its .state, as those of torch.optim do"
OPAQUE = (type, str, bytes, int, float, complex, FunctionType, MethodType, BuiltinFunctionType, ModuleType, Optimizer)
"""What is not looked into: other optimizers are looked at by themselves."""
ELSEWHERE = "use storage='dense', or an elementwise optimizer (SGD, AdamW, …)"


def _of_one_weight(value: Any, held: Held, compact: bool) -> str:
    if not isinstance(value, Tensor):
        shapes = {tuple(each.shape) for each in _tensors(value) if each.numel() > 1}
        odd = bool(shapes) if compact else shapes == {tuple(held.parameter.shape)}
        return f"inside a {type(value).__name__}, where masks do not reach it" if odd else ""
    if value.numel() <= 1:
        return ""
    what = f"of shape {tuple(value.shape)} for a weight of shape {held.shape}"
    if tuple(value.shape) not in held.shapes:
        flattened = value.dim() == 1 and value.numel() == math.prod(held.shape)
        return f"{what}, which cannot be cut down to alive weights" if compact else what * flattened
    if not (value.is_floating_point() or value.is_complex()):
        return f"as {value.dtype}, codes or counts of which regrow does not know what stands for a dead weight"
    if optimizers.is_quantised(value):
        if compact:
            return f"as a {type(value).__name__}, which cannot be cut down to alive weights"
        try:
            value.dequantize()
        except (AttributeError, NotImplementedError, RuntimeError, TypeError):
            return f"as a {type(value).__name__}, whose numbers regrow cannot read"
    return ""


def _beside_weights(tensor: Tensor, optimizer: Optimizer, weights: Sequence[Held], compact: bool) -> str:
    """What is wrong with a tensor outside an optimizer's state; empty where it has no entry for each weight."""
    members = list(optimizers.parameters(optimizer))
    if tensor.numel() <= 1 or not (tensor.is_floating_point() or tensor.is_complex()):
        return ""
    if any(tensor is parameter or tensor is parameter.grad for parameter in members):
        return ""
    memory = {_address(each) for member in members for each in (member, member.grad) if each is not None}
    if not compact and _address(tensor) in memory:
        return ""
    for held in weights:
        if tuple(tensor.shape) in held.shapes:
            return f"of the shape of '{held.name}' and outside its .state, where masks do not reach it"
    dense = {id(held.parameter): math.prod(held.shape) for held in weights}
    for group in (members, *(group["params"] for group in optimizer.param_groups)):
        totals = {sum(each.numel() for each in group), sum(dense.get(id(each), each.numel()) for each in group)}
        if tensor.dim() == 1 and tensor.numel() in totals and any(id(each) in dense for each in group):
            return "as long as all of its weights together, where masks do not reach it"
    return ""


def _address(tensor: Tensor) -> int:
    memory = piece(tensor)
    return id(tensor) if optimizers.is_quantised(memory) else memory.untyped_storage().data_ptr()


def _beside(optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Tensors in attributes, groups and state that no parameter is the key of, each with where it is."""
    for key, value in vars(optimizer).items():
        if key not in ("state", "param_groups", "defaults"):
            yield from ((f"'{key}'", tensor) for tensor in _tensors(value))
    for group in optimizer.param_groups:
        for key, value in group.items():
            if key != "params":
                yield from ((f"'{key}' of a group", tensor) for tensor in _tensors(value))
    for key, value in getattr(optimizer, "state", {}).items():
        if not isinstance(key, Tensor):
            yield from ((f"'{key}' in .state", tensor) for tensor in _tensors(value))


def _tensors(value: Any, seen: set[int] | None = None, objects: int = 2) -> Iterator[Tensor]:
    """Every tensor and numpy array that a value holds, in containers and in so many objects within each other."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, OPAQUE):
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        yield value
    elif type(value).__module__ == "numpy":
        with suppress(TypeError):  # of objects, or a type that torch has not
            yield torch.as_tensor(value)
    elif isinstance(value, (nn.ParameterList, nn.ParameterDict)):
        yield from value.parameters()
    elif not isinstance(value, nn.Module):
        held = list(value.values()) if isinstance(value, Mapping) else value
        for each in list(held) if isinstance(held, (list, tuple, set, frozenset, deque)) else ():
            yield from _tensors(each, seen, objects)
        for each in _attributes(value) if objects else ():
            yield from _tensors(each, seen, objects - 1)


def _attributes(value: Any) -> Iterator[Any]:
    yield from list(getattr(value, "__dict__", {}).values())
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(value, name):
                yield getattr(value, name)
