"""Compact storage on two ranks (DDP over gloo, wrapped after attaching): the masks of one rank with the whole batch."""

import os
import socket
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


def run(record: regrow.Algorithm, rank: int, world: int) -> dict[str, torch.Tensor]:
    model = mlp(seed=0).double()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, record, storage="compact", strict=True)
    wrapped = nn.parallel.DistributedDataParallel(model) if world > 1 else model
    for step in range(14):
        inputs, targets = (part.chunk(world)[rank] for part in batch(step))
        nn.functional.cross_entropy(wrapped(inputs.double()), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {f"mask {name}": mask for name, mask in sparsifier.masks.items()} | dict(model.state_dict())


def worker(rank: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ[SWITCH] = "torch"
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.save({name: run(record, rank, 2) for name, record in RECIPES.items()}, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", RECIPES)
def test_two_ranks_agree_with_each_other_and_with_one(ranks, name: str) -> None:
    alone = run(RECIPES[name], 0, 1)
    for key, value in alone.items():
        assert torch.equal(ranks[0][name][key], ranks[1][name][key])
        torch.testing.assert_close(ranks[0][name][key], value, rtol=1e-9, atol=1e-12)
