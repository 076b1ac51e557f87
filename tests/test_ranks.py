"""Two ranks (DDP over gloo): the same masks on both, and those of one rank with the whole batch."""

import socket
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from nets import batch, mlp, sgd
from torch import nn

import regrow

STEPS, EVERY = 14, 3
RECIPES = {
    "static": regrow.static(sparsity=0.8),
    "set": regrow.set_(sparsity=0.8, total_steps=40, every=EVERY),
    "rigl": regrow.rigl(sparsity=0.8, total_steps=40, every=EVERY),
    "snfs": regrow.snfs(sparsity=0.8, total_steps=40, every=EVERY),
    "rigl-sg": regrow.rigl_sg(sparsity=0.8, total_steps=40, every=EVERY),
    "rigl-sm": regrow.rigl_sm(sparsity=0.8, total_steps=40, every=EVERY),
    "pruning": regrow.gradual_pruning(sparsity=0.8, total_steps=40, every=EVERY, start=3),
    "snip": regrow.snip(sparsity=0.8),
}


def run(record: regrow.Algorithm, rank: int, world: int, wrap) -> dict[str, torch.Tensor]:
    model = mlp(seed=0).double()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, record)
    wrapped = wrap(model)
    for step in range(STEPS):
        inputs, targets = (part.chunk(world)[rank] for part in batch(step))
        nn.functional.cross_entropy(wrapped(inputs.double()), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = {f"weight {name}": model.get_parameter(name).detach() for name in sparsifier.masks}
    return {f"mask {name}": mask for name, mask in sparsifier.masks.items()} | weights


def worker(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    found = {name: run(record, rank, world, nn.parallel.DistributedDataParallel) for name, record in RECIPES.items()}
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.spawn(worker, args=(2, port, str(folder)), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", RECIPES)
def test_masks_and_weights_are_bit_identical_on_both_ranks(ranks, name) -> None:
    one, two = ranks[0][name], ranks[1][name]
    assert one.keys() == two.keys()
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.parametrize("name", RECIPES)
def test_half_batches_on_two_ranks_give_the_masks_of_the_whole_batch_on_one(ranks, name) -> None:
    alone = run(RECIPES[name], 0, 1, lambda model: model)
    for key, value in alone.items():
        if key.startswith("mask"):
            assert torch.equal(ranks[0][name][key], value)
        else:
            torch.testing.assert_close(ranks[0][name][key], value, rtol=1e-9, atol=1e-12)
