"""How long a run will take, from a few of its steps."""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
import time

import torch

from regrow_lab.config import RunConfig
from regrow_lab.data import AnyData, Dataset
from regrow_lab.data.sets import IMAGE_SETS
from regrow_lab.run.build import data_of
from regrow_lab.run.machine import device_named
from regrow_lab.run.training import Training

ENOUGH, MOST_STEPS = 1.0, 200
"""Seconds of steps after the first that are enough, and steps that are."""
FEW, SLOW = 8, 0.5
"""Where so few samples take so many seconds, a step takes them in proportion."""


class _EnoughError(Exception):
    """As many steps were timed as are needed."""


def noise_like(name: str, device: torch.device) -> Dataset | None:
    """Data of the sizes of a published set, all of it noise; None for data whose size nobody knows."""
    if name not in IMAGE_SETS:
        return None
    known = IMAGE_SETS[name]
    train, test = (
        (torch.randint(256, (size, *known.shape), dtype=torch.uint8, device=device), torch.arange(size, device=device))
        for size in known.size
    )
    classes = known.num_classes
    return Dataset(train[0], train[1] % classes, test[0], test[1] % classes, name, known.mean, known.std)


def seconds_of_a_step(run: RunConfig, device: str, *, noise: bool = False) -> tuple[float, int] | None:
    """Time of a training step of the dense net on one thread of this machine, and the steps of an epoch.

    `noise`: in place of data that are not there; None where that cannot be.

    Raises ValueError as training itself does.
    """
    where, threads = device_named(device), torch.get_num_threads()
    dense = dataclasses.replace(
        run, method="dense", sparsity=0.0, distribution=None, multiplier=1, start=None, rewind=0.0, data_order=0,
        storage="dense", timed=False,
    )  # fmt: skip
    data = noise_like(run.data, where) if noise else data_of(run, where)
    if data is None:
        return None
    few = min(FEW, run.batch_size)
    torch.set_num_threads(1)
    try:
        seconds, batches = _timed(dataclasses.replace(dense, batch_size=few), where, data)
        if seconds > SLOW:
            return seconds * run.batch_size / few, math.ceil(batches * few / run.batch_size)
        return _timed(dense, where, data)
    finally:
        torch.set_num_threads(threads)


def _timed(run: RunConfig, device: torch.device, data: AnyData) -> tuple[float, int]:
    moments: list[float] = []

    def stop_after_some() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        moments.append(time.perf_counter())
        if len(moments) > MOST_STEPS or (len(moments) > 2 and moments[-1] - moments[1] > ENOUGH):
            raise _EnoughError

    training = Training(run, device, data=data)
    try:
        while not training.done:
            training.run_epoch(stop_after_some)
    except _EnoughError:
        pass
    steps = [later - sooner for sooner, later in itertools.pairwise(moments)]
    return statistics.median(steps[1:] or steps), training.batches
