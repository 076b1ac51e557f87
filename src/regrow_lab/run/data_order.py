"""The order of the training samples: a function of the configuration and the epoch, so it needs no state."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from regrow_lab.config import RunConfig


def order_of(config: RunConfig, epoch: int, samples: int, batches: int, total_steps: int) -> Tensor:
    """The order of the samples in an epoch of a run; another one from the step on at which it leaves the seed's own.

    Args:
        config: the run.
        epoch: from 0.
        samples: in an epoch.
        batches: in an epoch.
        total_steps: of the run.
    """
    order = data_order(config.seed, epoch, samples)
    if not config.data_order:
        return order
    steps = rewind_step(config, total_steps) - epoch * batches
    same, rest = order.tensor_split([min(max(steps, 0) * config.batch_size, samples)])
    return torch.cat([same, rest[data_order(f"{config.seed} order {config.data_order}", epoch, len(rest))]])


def rewind_step(config: RunConfig, total_steps: int) -> int:
    """The step that the share `rewind` names: one that the run takes, so that what begins there does begin."""
    return min(round(config.rewind * total_steps), total_steps - 1)


def data_order(seed: int | str, epoch: int, samples: int) -> Tensor:
    """A permutation that depends on seed and epoch alone."""
    key = hashlib.blake2b(f"data order/{seed}/{epoch}".encode(), digest_size=4).digest()
    return torch.randperm(samples, generator=torch.Generator().manual_seed(int.from_bytes(key)))
