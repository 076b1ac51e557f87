"""Weights whose module divides each row by its norm: a row without an alive weight would be 0 / 0."""

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList
from torch.nn.utils.weight_norm import WeightNorm


def norm_dim(model: nn.Module, name: str, transposed: bool = False) -> int | None:
    """The dimension of a weight whose slices are divided each by its norm; None where no slice is.

    Known are torch's parametrizations (whatever they do: they are tried), its older ``weight_norm``, and the DoRA of
    Hugging Face's peft.

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
    outside, _, place = path.rpartition(".")
    if place == "base_layer" and getattr(model.get_submodule(outside), "lora_magnitude_vector", None):
        return int(transposed)
    return None


@torch.no_grad()
def _tried(parametrized: ParametrizationList, name: str) -> int | None:
    """The dimension of which a slice of zeros makes what is computed not finite, tried on a copy."""
    if getattr(parametrized, name).is_meta:
        return None
    tried = copy.deepcopy(parametrized)
    weight = getattr(tried, name)
    values = weight.detach().clone()
    with torch.random.fork_rng(devices=[]):
        if not _is_finite(tried):
            return None
        for dim in range(weight.dim()):
            weight.copy_(values).select(dim, 0).zero_()
            if not _is_finite(tried):
                return dim
    return None


def _is_finite(parametrized: ParametrizationList) -> bool:
    return bool(parametrized().isfinite().all())


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
