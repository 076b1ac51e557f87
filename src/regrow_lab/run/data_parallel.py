"""One run on several processes that torchrun has started: each takes its part of a batch, gradients are averaged.

Every rank holds the whole net and makes the same topology updates; the first alone writes. The batches are those of the
run on one process, so what comes out is the same up to the order of summation, but for batch norm (statistics of a
rank's own part) and dropout (randomness of its own).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from regrow_lab.store.folders import LostError

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others: the first may have to evaluate, or to wait for a disk."""
Batch = tuple[Tensor, Tensor]


@contextmanager
def together() -> Iterator[None]:
    """While it lasts, an error by which a rank notices that another is gone is a LostError; others stay themselves."""
    try:
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, through autograd too; each begins with the place in its sources.
        if not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
            raise
        reason = re.sub(r"^\[[^]]*\] *", "", str(error).strip().splitlines()[0])
        own = os.environ.get("RANK", "0")
        raise LostError(
            f"rank {own} stopped, as another is gone or cannot be reached ({reason}); "
            "the same command goes on from the last checkpoint"
        ) from error


@together()
def begin(device: str) -> str:
    """Join the other ranks if torchrun started this process; returns the device of this rank.

    cuda becomes cuda:N for the N-th process of a machine, with NCCL; ranks on a CPU talk over gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 or "RANK" not in os.environ:
        return device
    if device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=PATIENCE)
    return device


def end() -> None:
    """Leave the other ranks."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """Number of this process among those of the run, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def replicated(model: nn.Module, device: torch.device) -> nn.Module:
    """The net whose backward pass averages gradients over the ranks; `model` itself on one."""
    if world() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def part_of(batch: Batch) -> Batch:
    """This rank's part of a batch; the whole of one that has fewer samples than there are ranks."""
    inputs, labels = batch
    if world() == 1 or len(labels) < world():
        return batch
    return inputs.tensor_split(world())[rank()], labels.tensor_split(world())[rank()]


def smallest_part(samples: int) -> int:
    """Samples that the rank with the fewest has of a batch."""
    return samples if samples < world() else samples // world()


def weight_of(part: Batch, batch: Batch) -> float:
    """What the mean loss of a part counts, so that the average over ranks is the mean over the batch."""
    if world() == 1 or len(batch[1]) < world():
        return 1.0
    return len(part[1]) * world() / len(batch[1])


def mean(loss: Tensor) -> Tensor:
    """The average over the ranks."""
    if world() > 1:
        dist.all_reduce(loss)
        loss /= world()
    return loss


def reseed(seed: int, step: int) -> None:
    """Give each rank its own randomness at each step, as a checkpoint holds that of the first alone."""
    if world() > 1:
        digest = hashlib.blake2b(f"rank/{seed}/{step}/{rank()}".encode(), digest_size=8).digest()
        torch.manual_seed(int.from_bytes(digest) >> 1)


def told(number: int) -> int:
    """The number that the first rank gives, on every rank."""
    if world() == 1:
        return number
    shared = [number]
    dist.broadcast_object_list(shared)
    return shared[0]


def check_masks(masks: Mapping[str, Tensor]) -> None:
    """Raise RuntimeError if the ranks do not hold the same masks, bit for bit."""
    if world() == 1:
        return
    digest = hashlib.sha256()
    for name in sorted(masks):
        digest.update(name.encode() + masks[name].cpu().contiguous().numpy().tobytes())
    found: list[str | None] = [None] * world()
    dist.all_gather_object(found, digest.hexdigest())
    if len(set(found)) > 1:
        raise RuntimeError(f"the ranks hold different masks: {found}")
