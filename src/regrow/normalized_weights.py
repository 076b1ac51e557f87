"""Weights whose module divides each row by its norm: a row without an alive weight would be 0 / 0."""

import copy
import warnings
from collections.abc import Iterator
from contextlib import suppress

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm


def norm_dim(model: nn.Module, name: str, transposed: bool = False) -> int | None:
    """The dimension of a weight whose slices are divided each by its norm; None where no slice is.

    Known are torch's parametrizations and modules with a forward of their own (whatever they do: they are tried), the
    older ``weight_norm``, and the DoRA of Hugging Face's peft.

    Args:
        model: the module that holds the weight.
        name: of the parameter.
        transposed: whether the weight is (in, out).
    """
    path, _, last = name.rpartition(".")
    owner = model.get_submodule(path)
    if isinstance(owner, ParametrizationList):
        return _tried(owner, last)
    for hook in owner._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and last == f"{hook.name}_v":
            return hook.dim if hook.dim is not None and hook.dim >= 0 else None
    if not type(owner).forward.__module__.startswith("torch."):
        return _tried(owner, last)
    outside, _, place = path.rpartition(".")
    if place == "base_layer" and getattr(model.get_submodule(outside), "lora_magnitude_vector", None):
        return int(transposed)
    return None


@torch.no_grad()
def _tried(owner: nn.Module, name: str) -> int | None:
    """The dimension of which a slice of zeros makes what is computed not finite, tried on a copy.

    None too where the copy cannot be made or run: only its own forward says what a module wants.
    """
    if owner.get_parameter(name).is_meta:
        return None
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        tried = copy.deepcopy(owner)
        weight = tried.get_parameter(name)
        values = weight.detach().clone()
        for inputs in _inputs(owner, weight):
            with suppress(Exception):
                if not _is_finite(tried, inputs):
                    continue
                for dim in range(weight.dim()):
                    weight.copy_(values).select(dim, 0).zero_()
                    if not _is_finite(tried, inputs):
                        return dim
                return None
    return None


def _inputs(owner: nn.Module, weight: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Inputs that a module with such a weight may take: none of a parametrization, else vectors or images."""
    if isinstance(owner, ParametrizationList):
        yield ()
        return
    kernel = weight.shape[2:]
    for features in dict.fromkeys((weight.shape[1], weight.shape[0])):
        groups = getattr(owner, "groups", 1)
        shape = (2, features * (groups if isinstance(groups, int) else 1), *(4 * size + 4 for size in kernel))
        yield (torch.randn(shape, dtype=weight.dtype, device=weight.device),)


def _is_finite(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    output = type(module).forward(module, *inputs)  # hooks are left out
    return not isinstance(output, Tensor) or bool(output.isfinite().all())


def covers(alive: Tensor, dim: int) -> bool:
    """Whether every slice along a dimension has an alive entry.

    >>> alive = torch.tensor([[True, False], [False, False]])
    >>> covers(alive, 0), covers(alive[:1], 0)
    (False, True)
    """
    return bool(alive.movedim(dim, 0).flatten(1).any(dim=1).all())


def spare(scores: Tensor, among: Tensor, dim: int | None) -> Tensor:
    """The scores with infinity for the best candidate of each slice along a dimension; of None they stay as they are.

    >>> spare(torch.tensor([[3.0, 4.0], [1.0, 2.0]]), torch.tensor([[True, True], [True, False]]), 0).tolist()
    [[3.0, inf], [inf, 2.0]]
    """
    if dim is None:
        return scores
    values = scores.float().nan_to_num(nan=-torch.inf).masked_fill(~among, -torch.inf).movedim(dim, 0)
    best = torch.zeros(values.shape, dtype=torch.bool, device=values.device).flatten(1)
    best.scatter_(1, values.flatten(1).argmax(dim=1, keepdim=True), True)
    return scores.masked_fill(best.view(values.shape).movedim(0, dim) & among, torch.inf)
