"""Compact storage on two ranks (DDP over gloo, wrapped after attaching): the masks of one rank with the whole batch."""

import os
import socket
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from nets import batch, mlp, sgd
from torch import nn

import regrow
from regrow.compaction.region import SWITCH

RECIPES = {
    "static": regrow.static(sparsity=0.8),
    "set": regrow.set_(sparsity=0.8, total_steps=40, every=3),
    "rigl": regrow.rigl(sparsity=0.8, total_steps=40, every=3),
}


def by_hand(model: nn.Module, losses: Callable[[int], torch.Tensor]) -> None:
    """A weighted sum of two passes, kept and put together."""
    found = []
    for part in range(2):
        model.zero_grad(set_to_none=part == 0)
        losses(part).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    for parameter, one, other in zip(model.parameters(), *found, strict=True):
        parameter.grad = one + 0.3 * other


def accumulated(model: nn.Module, losses: Callable[[int], torch.Tensor]) -> None:
    """Two micro-batches; DistributedDataParallel averages after each."""
    for part in range(2):
        losses(part).backward()


def in_the_end(model: nn.Module, losses: Callable[[int], torch.Tensor]) -> None:
    """Two micro-batches, averaged after the second."""
    with model.no_sync() if hasattr(model, "no_sync") else nullcontext():
        losses(0).backward()
    losses(1).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.5)


LOOPS = {loop.__name__: loop for loop in (accumulated, in_the_end, by_hand)}


def run(name: str, rank: int, world: int) -> dict[str, torch.Tensor]:
    model = mlp(seed=0).double()
    optimizer = sgd(model)
    record = RECIPES[name] if name in RECIPES else RECIPES["rigl"]
    sparsifier = regrow.attach(model, optimizer, record, storage="compact", strict=True)
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    for step in range(14):

        def loss(part: int, step: int = step) -> torch.Tensor:
            inputs, targets = (tensor.chunk(world)[rank] for tensor in batch(2 * step + part))
            return nn.functional.cross_entropy(wrapped(inputs.double()), targets)

        if name in LOOPS:
            LOOPS[name](wrapped, loss)
        else:
            loss(0).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {f"mask {name}": mask for name, mask in sparsifier.masks.items()} | dict(model.state_dict())


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ[SWITCH] = "torch"
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save({name: run(name, rank, 2) for name in (*RECIPES, *LOOPS)}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", [*RECIPES, *LOOPS])
def test_two_ranks_agree_with_each_other_and_with_one(ranks, name: str) -> None:
    alone = run(name, 0, 1)
    for key, value in alone.items():
        assert torch.equal(ranks[0][name][key], ranks[1][name][key])
        torch.testing.assert_close(ranks[0][name][key], value, rtol=1e-9, atol=1e-12)
