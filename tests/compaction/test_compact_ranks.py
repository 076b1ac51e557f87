"""Compact storage on two ranks (DDP over gloo, wrapped after attaching): the masks of one rank with the whole batch."""

import gc
import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from nets import batch, mlp, sgd
from ranks import launch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import regrow
from regrow.compaction.capture.region import SWITCH
from regrow.compaction.timings import layer_timings
from regrow.engine import native
from regrow.storage.distributed import Ranks, mean_over_ranks

RECIPES = {
    "static": regrow.static(sparsity=0.8),
    "set": regrow.set_(sparsity=0.8, total_steps=40, every=3),
    "rigl": regrow.rigl(sparsity=0.8, total_steps=40, every=3),
}


Found = dict[str, torch.Tensor]


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


class Around(nn.Module):
    """A model inside a larger one, as trainers have it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(2, 2)
        self.head.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


def run(name: str, rank: int, world: int, wrap=DistributedDataParallel, seed: int = 0) -> Found:
    model = mlp(seed=seed).double()
    optimizer = sgd(model)
    record = RECIPES[name] if name in RECIPES else RECIPES["rigl"]
    sparsifier = regrow.attach(model, optimizer, record, storage="compact", strict=True)
    wrapped = wrap(model) if world > 1 else model
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


def worker(rank: int, world: int, folder: Path) -> None:
    os.environ[SWITCH] = "torch"
    torch.save({name: run(name, rank, 2) for name in (*RECIPES, *LOOPS)}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, torch.Tensor]]]:
    folder = tmp_path_factory.mktemp("ranks")
    launch(worker, 2, folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", [*RECIPES, *LOOPS])
def test_two_ranks_agree_with_each_other_and_with_one(ranks, name: str) -> None:
    alone = run(name, 0, 1)
    for key, value in alone.items():
        assert torch.equal(ranks[0][name][key], ranks[1][name][key])
        torch.testing.assert_close(ranks[0][name][key], value, rtol=1e-9, atol=1e-12)


def some_of_them(rank: int, world: int, folder: Path) -> None:
    """Two ranks share a model by a group of their own, the third has another model and fewer steps."""
    os.environ[SWITCH] = "torch"
    pair = torch.distributed.new_group([0, 1])

    def wrap(model: nn.Module) -> nn.Module:
        return DistributedDataParallel(Around(model) if rank < 2 else model, process_group=pair)

    found = run("rigl", rank, 2, wrap) if rank < 2 else run("rigl", 0, 1, seed=5)
    torch.save(found, folder / f"{rank}.pt")


def test_a_group_of_ranks_averages_among_itself_and_another_model_alone(tmp_path: Path) -> None:
    launch(some_of_them, 3, tmp_path)
    one, other, third = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(3))
    for key, value in run("rigl", 0, 1).items():
        assert torch.equal(one[key], other[key])
        torch.testing.assert_close(one[key], value, rtol=1e-9, atol=1e-12)
    for key, value in run("rigl", 0, 1, seed=5).items():
        assert torch.equal(third[key], value), "a model of its own does not see the others"


def models_of_their_own(rank: int, world: int, folder: Path) -> None:
    """Each rank searches among models, and one has been wrapped and let go before."""
    os.environ[SWITCH] = "torch"
    spare = DistributedDataParallel(mlp(seed=1))
    for number in range(1 + rank):
        torch.save(run("rigl", 0, 1, seed=10 * rank + number), folder / f"{rank}-{number}.pt")
    assert Ranks.of(spare.module) is not None


def test_models_that_ranks_do_not_share_never_meet(tmp_path: Path) -> None:
    launch(models_of_their_own, 2, tmp_path)
    for rank, number in ((0, 0), (1, 0), (1, 1)):
        found = torch.load(tmp_path / f"{rank}-{number}.pt", weights_only=True)
        for key, value in run("rigl", 0, 1, seed=10 * rank + number).items():
            assert torch.equal(found[key], value)


def averaged_loop(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int) -> None:
    """A loop that averages the gradients itself."""
    for step in range(8):
        inputs, targets = (part.chunk(2)[rank] for part in batch(step))
        nn.functional.cross_entropy(model(inputs.double()), targets).backward()
        for parameter in model.parameters():
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= 2
        optimizer.step()
        optimizer.zero_grad()


def averaged_by_hand(rank: int, world: int, folder: Path) -> None:
    os.environ[SWITCH] = "torch"
    for storage in ("dense", "compact"):
        model = mlp(seed=0).double()
        optimizer = sgd(model)
        sparsifier = regrow.attach(model, optimizer, RECIPES["rigl"], storage=storage, strict=True)
        if storage == "compact":
            with pytest.raises(ValueError, match=r"not from an all_reduce of your own.*storage='dense'"):
                averaged_loop(model, optimizer, rank)
            assert sparsifier.num_updates == 0
        else:
            averaged_loop(model, optimizer, rank)
            torch.save(sparsifier.masks, folder / f"{rank}.pt")


def test_gradients_that_a_loop_averages_itself_are_right_in_dense_storage_and_noticed_in_compact(
    tmp_path: Path,
) -> None:
    launch(averaged_by_hand, 2, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert all(torch.equal(mask, other[name]) for name, mask in one.items())


def wrapped_later(rank: int, world: int, folder: Path) -> None:
    """Masks that differ are found out although nobody shared the model when it was attached to."""
    os.environ[SWITCH] = "torch"
    for storage in ("dense", "compact"):
        for name in ("static", "rigl"):
            model = mlp()
            optimizer = sgd(model)
            sparsifier = regrow.attach(model, optimizer, RECIPES[name], seed=rank, storage=storage)
            wrapped = DistributedDataParallel(model)
            before = {key: value.clone() for key, value in model.state_dict().items()}
            inputs, targets = batch(0)
            nn.functional.cross_entropy(wrapped(inputs), targets).backward()
            with pytest.raises(ValueError, match=r"the ranks were given the seeds \[0, 1\]"):
                optimizer.step()
            assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
            sparsifier.detach()
    (folder / f"{rank}").touch()


def test_a_model_that_is_wrapped_later_is_asked_for_its_ranks_at_the_first_step(tmp_path: Path) -> None:
    launch(wrapped_later, 2, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def two_groups(rank: int, world: int, folder: Path) -> None:
    model = mlp()
    everyone, pair = DistributedDataParallel(model), torch.distributed.new_group([0, 1])
    assert Ranks.of(model) == Ranks((everyone.process_group,))
    again = DistributedDataParallel(model, process_group=pair)
    assert Ranks.of(model) is None
    with pytest.raises(ValueError, match="2 DistributedDataParallel over different process groups"):
        mean_over_ranks(model)
    del everyone
    gc.collect()
    assert Ranks.of(model) == Ranks((again.process_group,))


def test_two_wrappers_over_different_groups_have_no_one_mean(tmp_path: Path) -> None:
    launch(two_groups, 2, tmp_path)


def decisions(rank: int, world: int, folder: Path) -> None:
    """Ratios that differ; the second rank asks for more of them."""
    layer_timings.ratios_of = lambda probe: (float(rank + 1),) * len(layer_timings.DENSITIES)
    linear, convolution = nn.Linear(64, 64), nn.Conv2d(16, 16, 3)
    found = [layer_timings.speedup({}, linear, 4096, 0.1)]
    if rank == 1:
        found.append(layer_timings.speedup({}, convolution, 2304, 0.1))
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.barrier()  # the first rank keeps the store


@pytest.mark.skipif(not native.available(), reason="the engine is not built")
def test_all_ranks_decide_by_the_ratios_of_the_first_that_asked_and_none_waits_for_who_does_not_ask(
    tmp_path: Path,
) -> None:
    launch(decisions, 2, tmp_path)
    one, other = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert one[0] == other[0]
    assert other[1] == 2.0
