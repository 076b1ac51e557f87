"""Two and four ranks (DDP over gloo): the same masks on all, and those of one rank with the whole batch."""

from pathlib import Path

import pytest
import torch
from nets import batch, mlp, sgd
from ranks import RECIPES, launch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import regrow

STEPS, WORLDS = 14, (2, 4)
Result = dict[str, Tensor]


def buckets(model: nn.Module) -> DistributedDataParallel:
    """Gradients are views into the buffers that the ranks sum up, and the graph is known to stay the same."""
    return DistributedDataParallel(model, gradient_as_bucket_view=True, static_graph=True)


SHAPES = {"plain": (DistributedDataParallel, 1), "no_sync": (DistributedDataParallel, 2), "buckets": (buckets, 1)}


def run(record: regrow.Algorithm, rank: int, world: int, wrap, micro_batches: int = 1) -> Result:
    """Trains on this rank's part of every batch; all but the last micro-batch of a step stay on their rank."""
    model = mlp(seed=0).double()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, record, strict=True)
    wrapped = wrap(model)
    for step in range(STEPS):
        inputs, targets = batch(step)
        parts = [part.chunk(world)[rank].chunk(micro_batches) for part in (inputs.double(), targets)]
        for number, (x, y) in enumerate(zip(*parts, strict=True), start=1):
            if number < micro_batches:
                with wrapped.no_sync():
                    (nn.functional.cross_entropy(wrapped(x), y) / micro_batches).backward()
            else:
                (nn.functional.cross_entropy(wrapped(x), y) / micro_batches).backward()
        optimizer.step()
        optimizer.zero_grad()
    weights = {f"weight {name}": model.get_parameter(name).detach() for name in sparsifier.masks}
    return {f"mask {name}": mask for name, mask in sparsifier.masks.items()} | weights


def every_recipe(rank: int, world: int, folder: Path) -> None:
    found = {
        f"{shape} {name}": run(record, rank, world, wrap, micro_batches)
        for shape, (wrap, micro_batches) in SHAPES.items()
        for name, record in RECIPES.items()
    }
    torch.save(found, folder / f"{rank}-of-{world}.pt")


@pytest.fixture(scope="module", params=WORLDS, ids=lambda world: f"{world} ranks")
def ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Result]]:
    folder, world = tmp_path_factory.mktemp("ranks"), request.param
    launch(every_recipe, world, folder)
    return [torch.load(folder / f"{rank}-of-{world}.pt", weights_only=True) for rank in range(world)]


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_and_weights_are_bit_identical_on_all_ranks(ranks, shape, name) -> None:
    first, *others = [rank[f"{shape} {name}"] for rank in ranks]
    for other in others:
        assert first.keys() == other.keys()
        assert all(torch.equal(value, other[key]) for key, value in first.items())


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_parts_of_a_batch_on_many_ranks_give_the_masks_of_the_whole_batch_on_one(ranks, shape, name) -> None:
    for key, value in run(RECIPES[name], 0, 1, lambda model: model).items():
        found = ranks[0][f"{shape} {name}"][key]
        if key.startswith("mask"):
            assert torch.equal(found, value)
        else:
            torch.testing.assert_close(found, value, rtol=1e-9, atol=1e-12)


def seeds_of_their_own(rank: int, world: int, folder: Path) -> None:
    model = mlp(seed=0)
    with pytest.raises(ValueError, match=r"the ranks were given the seeds \[0, 1\]: pass the same"):
        regrow.attach(DistributedDataParallel(model), sgd(model), RECIPES["set"], seed=rank)
    regrow.attach(DistributedDataParallel(model), sgd(model), RECIPES["set"], seed=7)
    (folder / f"{rank}").touch()


def masks_of_their_own(rank: int, world: int, folder: Path) -> None:
    model = buckets(mlp())
    shapes = {name: layer.shape for name, layer in regrow.find_layers(model).items()}
    one = {name: torch.ones(shape, dtype=torch.bool) for name, shape in shapes.items()}
    one["2.weight"][0, rank] = False
    with pytest.raises(ValueError, match=r"the ranks have different masks for '2\.weight'"):
        regrow.attach(model, sgd(model), regrow.from_masks(one))
    sparsifier = regrow.attach(model, sgd(model), RECIPES["set"], strict=True)
    other = mlp()
    state = regrow.attach(other, sgd(other), RECIPES["set"], seed=rank).state_dict()
    before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    with pytest.raises(ValueError, match=r"the ranks have different masks for '0\.weight'"):
        sparsifier.load_state_dict(state)
    assert all(torch.equal(mask, before[name]) for name, mask in sparsifier.masks.items())


def test_masks_that_differ_among_the_ranks_are_refused(tmp_path: Path) -> None:
    launch(masks_of_their_own, 2, tmp_path)


def test_seeds_that_differ_among_the_ranks_are_refused(tmp_path: Path) -> None:
    launch(seeds_of_their_own, 2, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]


def ticket_steps(wrapped: nn.Module, model: nn.Module, rank: int, folder: Path | None, last: int) -> list[Result]:
    """The weights of each level up to ``last``, and the generator after it; dropout differs among the ranks."""
    optimizer, found = sgd(model), []
    torch.manual_seed(100 + rank)

    def train(first: int, last: int) -> None:
        for step in range(first, last):
            inputs, targets = (part.chunk(2)[rank] for part in batch(step))
            nn.functional.cross_entropy(wrapped(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()

    for ticket in regrow.iterative_pruning(wrapped, optimizer, train, total_steps=6, levels=2, rewind=2, folder=folder):
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        found.append(weights | {"generator": torch.get_rng_state()})
        if ticket.level == last:
            break
    return found


def tickets(rank: int, world: int, folder: Path) -> None:
    def run(folder: Path | None, last: int = 2) -> list[Result]:
        model = nn.Sequential(*mlp(seed=0), nn.Dropout(0.3))
        return ticket_steps(DistributedDataParallel(model), model, rank, folder, last)

    undisturbed = run(None)
    run(folder / "levels", last=0)
    torch.distributed.barrier()
    if rank == 1:  # stopped between the two files of a level
        (folder / "levels" / "level-00-rank-1.pt").unlink()
    resumed = run(folder / "levels")
    for one, other in zip(undisturbed, resumed, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in one.items())
    torch.save(resumed[-1]["generator"], folder / f"generator-{rank}.pt")


def test_tickets_of_two_ranks_go_on_from_a_folder_as_if_undisturbed(tmp_path: Path) -> None:
    launch(tickets, 2, tmp_path)
    one, other = (torch.load(tmp_path / f"generator-{rank}.pt", weights_only=True) for rank in range(2))
    assert not torch.equal(one, other)
    names = [f"{stage}-rank-{rank}.pt" for stage in ("level-00", "level-01", "level-02", "start") for rank in range(2)]
    assert sorted(path.name for path in (tmp_path / "levels").iterdir()) == names
