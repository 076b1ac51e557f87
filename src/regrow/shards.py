"""Weights that several ranks share as pieces (DTensors, which FSDP2's ``fully_shard`` and tensor parallelism make).

Every rank must call :func:`whole` for the same tensors in the same order; an ordinary tensor passes through untouched.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn

from regrow.scores import Evidence


def is_cut(tensor: Tensor) -> bool:
    """Whether this rank holds a piece only."""
    return hasattr(tensor, "full_tensor")  # no isinstance: importing DTensor takes longer than the library itself


def whole(tensor: Tensor) -> Tensor:
    """The tensor put together from the pieces of all ranks, the same on each."""
    return cast(Tensor, cast(Any, tensor).full_tensor()) if is_cut(tensor) else tensor


def piece(tensor: Tensor) -> Tensor:
    """This rank's piece, sharing memory with the tensor."""
    return cast(Tensor, cast(Any, tensor).to_local()) if is_cut(tensor) else tensor


def cut_like(tensor: Tensor, reference: Tensor) -> Tensor:
    """This rank's piece of a tensor that every rank holds whole, cut as ``reference`` is; no rank talks to another."""
    if not is_cut(reference):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    assert isinstance(reference, DTensor)
    everywhere = [Replicate()] * reference.device_mesh.ndim
    known = DTensor.from_local(tensor, reference.device_mesh, everywhere, run_check=False)
    return known.redistribute(placements=reference.placements).clone()  # a piece would keep the whole alive


def check_same_seed(model: nn.Module, seed: int) -> None:
    """Refuses seeds that differ among the ranks of a model that several train: their masks would differ.

    Raises:
        ValueError: on every rank, with the seeds of all.
    """
    group = None
    if isinstance(model, nn.parallel.DistributedDataParallel):
        group = model.process_group
    elif not any(is_cut(parameter) for parameter in model.parameters()):
        return
    seeds = [0] * torch.distributed.get_world_size(group)
    torch.distributed.all_gather_object(seeds, seed, group)
    if len(set(seeds)) > 1:
        raise ValueError(f"the ranks were given the seeds {seeds}: pass the same seed= on all, or their masks differ")


class GatheredEvidence(Evidence):
    """Evidence of cut tensors: each is put together when a score looks at it, and not kept."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return whole(value) if isinstance(value, Tensor) else value


def evidence_for(weight: Tensor) -> type[Evidence]:
    """The kind of evidence that shows every tensor whole."""
    return GatheredEvidence if is_cut(weight) else Evidence
