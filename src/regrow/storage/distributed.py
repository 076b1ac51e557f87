"""Weights that several ranks share as pieces (DTensors, which FSDP2's ``fully_shard`` and tensor parallelism make).

Every rank must call :func:`whole` for the same tensors in the same order; an ordinary tensor passes through untouched.
"""

import gc
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, cast

import torch
from torch import Tensor, nn

from regrow.checksummed_files import digest_of
from regrow.parts.scores import Evidence
from regrow.storage.mask_bits import pack


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


PATIENCE = timedelta(minutes=2)


@dataclass(frozen=True)
class Ranks:
    """Those that train one model together: they must hold the same masks, bit for bit.

    Args:
        groups: their process groups, one for each dimension of the mesh that they form.
    """

    groups: tuple[Any, ...]

    @classmethod
    def of(cls, model: nn.Module) -> "Ranks | None":
        """Those that train a model at the moment; None where one alone does, or several sets, as far as it shows.

        It shows where parameters are cut, or where a DistributedDataParallel around the model, or around more, holds
        them. That may be made after the model was attached to.
        """
        for parameter in model.parameters():
            if is_cut(parameter):
                return cls(tuple(cast(Any, parameter).device_mesh.get_all_groups()))
        groups = _groups_of(model)
        return cls((groups[0],)) if len(groups) == 1 else None

    def number(self) -> int:
        """How many they are."""
        return math.prod(torch.distributed.get_world_size(group) for group in self.groups)

    def everywhere(self, value: bool) -> bool:
        """Whether it is so on every rank, all of which must call this."""
        return all(self._gather(value))

    def check_seed(self, seed: int) -> None:
        """Refuses seeds that differ. Raises ValueError on every rank, with the seeds of all."""
        seeds = self._gather(seed)
        if len(set(seeds)) > 1:
            raise ValueError(
                f"the ranks were given the seeds {seeds}: pass the same seed= on all, or their masks differ"
            )

    def check_masks(self, masks: Mapping[str, Tensor]) -> None:
        """Refuses masks that differ; every rank holds them whole. Raises ValueError on every rank, naming a layer."""
        found = self._gather({name: digest_of({name: pack(mask)}) for name, mask in masks.items()})
        for name in masks:
            if len({digests.get(name) for digests in found}) > 1:
                raise ValueError(
                    f"the ranks have different masks for '{name}': give all of them the same masks, scores of the same "
                    "batches, and the same state"
                )

    def _gather(self, value: Any) -> list[Any]:
        values = [value]
        for group in self.groups:
            self._meet(group)
            found: list[Any] = [None] * torch.distributed.get_world_size(group)
            torch.distributed.all_gather_object(found, values, group)
            values = [one for part in found for one in part]
        return values

    def _meet(self, group: Any) -> None:
        """Waits for the others, for so long only, where torch can say who has not come."""
        if torch.distributed.get_backend(group) != "gloo":
            return
        try:
            torch.distributed.monitored_barrier(group, timeout=PATIENCE)
        except RuntimeError as error:
            raise RuntimeError(
                f"not all ranks came to compare what they have within {PATIENCE.seconds} s: attach, load_state_dict "
                f"and iterative_pruning are for every rank to call ({str(error).splitlines()[0]})"
            ) from error


def mean_over_ranks(model: nn.Module) -> Callable[[Tensor], object]:
    """What makes a tensor its mean over the ranks that average this model's gradients, in place.

    Raises:
        ValueError: parts of the model are averaged over different ranks.
    """
    groups = _groups_of(model)
    if len(groups) > 1:
        raise ValueError(
            f"{len(groups)} DistributedDataParallel over different process groups hold weights of this model, and a "
            "dense gradient has one mean: delete the one that is not used, or attach with storage='dense'"
        )

    def average(tensor: Tensor) -> None:
        for group in groups:
            torch.distributed.all_reduce(tensor, group=group)
            tensor /= torch.distributed.get_world_size(group)

    return average


def _groups_of(model: nn.Module) -> list[Any]:
    """Process groups over which gradients of the model are averaged: nothing on a model says so, but wrappers know."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return []
    weights, kind = {id(parameter) for parameter in model.parameters()}, nn.parallel.DistributedDataParallel
    # By type: isinstance would ask every proxy that there is.
    wrappers = [found for found in gc.get_objects() if issubclass(type(found), kind)]
    held = [each for each in wrappers if any(id(parameter) in weights for parameter in each.parameters())]
    return list({id(each.process_group): each.process_group for each in held}.values())


class GatheredEvidence(Evidence):
    """Evidence of cut tensors: each is put together when a score looks at it, and not kept."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        return whole(value) if isinstance(value, Tensor) else value


def evidence_for(weight: Tensor) -> type[Evidence]:
    """The kind of evidence that shows every tensor whole."""
    return GatheredEvidence if is_cut(weight) else Evidence
