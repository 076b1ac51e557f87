"""FSDP2 (``fully_shard``): what DDP gives, from pieces; checkpoints that load on another number of ranks."""

from pathlib import Path

import pytest
import torch
from nets import batch, mlp, sgd
from ranks import RECIPES, launch
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow

pytestmark = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="the fully_shard of this torch does not run on CPUs"
)

STEPS, SAVED = 14, 7
OPTIMIZERS = {
    "sgd": sgd,
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), lr=0.01, initial_accumulator_value=0.1),
}
CASES = [(recipe, "sgd") for recipe in RECIPES] + [("rigl-sm", "adamw"), ("snfs", "adagrad")]
SAVED_CASES = [("snip", "sgd"), ("pruning", "sgd"), ("rigl-sm", "adamw"), ("snfs", "adagrad")]


def net(seed: int = 0) -> nn.Sequential:
    return mlp(seed).double()


def shard(model: nn.Sequential) -> nn.Sequential:
    """Every linear layer a unit of its own, as blocks of a large model would be."""
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    return fully_shard(model)


def steps(model: nn.Module, optimizer: Optimizer, rank: int, world: int, calls: range) -> None:
    for step in calls:
        inputs, targets = (part.chunk(world)[rank] for part in batch(step, (24, 12)))
        nn.functional.cross_entropy(model(inputs.double()), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 2.0)
        optimizer.step()
        optimizer.zero_grad()


def tensors(sparsifier: regrow.Sparsifier, optimizer: Optimizer) -> dict[str, Tensor]:
    """Masks, weights, biases and optimizer state, whole."""
    found = {f"mask {name}": mask for name, mask in sparsifier.masks.items()}
    for name, parameter in sparsifier.model.named_parameters():
        found[f"weight {name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                found[f"{key} {name}"] = value
    return {key: value.full_tensor() if hasattr(value, "full_tensor") else value for key, value in found.items()}


def everything(model: nn.Module, optimizer: Optimizer, sparsifier: regrow.Sparsifier) -> dict[str, object]:
    """What a checkpoint holds, in the form that ``torch.distributed.checkpoint`` wants."""
    from torch.distributed.checkpoint.state_dict import get_state_dict

    weights, state = get_state_dict(model, optimizer)
    return {"model": weights, "optimizer": state, "sparsifier": sparsifier.state_dict()}


def restore(checkpoint: Path, model: nn.Module, optimizer: Optimizer, sparsifier: regrow.Sparsifier) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import set_state_dict

    found = everything(model, optimizer, sparsifier)
    dcp.load(found, checkpoint_id=checkpoint)
    set_state_dict(model, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"])
    sparsifier.load_state_dict(found["sparsifier"])


def shards_and_replicas(rank: int, world: int, folder: Path) -> None:
    import torch.distributed.checkpoint as dcp

    found = {}
    for recipe, name in CASES:
        for kind, wrap in (("fsdp", shard), ("ddp", nn.parallel.DistributedDataParallel)):
            model = net()
            wrapped = wrap(model)
            optimizer = OPTIMIZERS[name](model)
            sparsifier = regrow.attach(model, optimizer, RECIPES[recipe], strict=True)
            steps(wrapped, optimizer, rank, world, range(SAVED))
            if kind == "fsdp" and (recipe, name) in SAVED_CASES:
                dcp.save(everything(model, optimizer, sparsifier), checkpoint_id=folder / f"{recipe}-{name}")
            steps(wrapped, optimizer, rank, world, range(SAVED, STEPS))
            if kind == "fsdp":
                mask = sparsifier.masks["0.weight"]
                assert type(mask).__name__ == "DTensor"
                assert mask.placements == model.get_parameter("0.weight").placements
                assert mask.to_local().shape == model.get_parameter("0.weight").to_local().shape
                assert mask.to_local().untyped_storage().nbytes() == mask.to_local().numel(), "a piece keeps no whole"
                check_copies(sparsifier)
            found[f"{kind} {recipe} {name}"] = tensors(sparsifier, optimizer)
    torch.save(found, folder / f"{rank}.pt")
    with torch.device("meta"):
        empty = net()
    shard(empty)
    with pytest.raises(ValueError, match="to_empty"):
        regrow.attach(empty, sgd(empty), RECIPES["rigl"])


def check_copies(sparsifier: regrow.Sparsifier) -> None:
    """Copies are masked, whole or cut."""
    for copy in (net(), shard(net())):
        sparsifier.apply_masks(copy)
        for name, mask in sparsifier.masks.items():
            weight, alive = copy.get_parameter(name).detach(), mask
            if not hasattr(weight, "to_local"):
                alive = mask.full_tensor()
            else:
                weight, alive = weight.to_local(), mask.to_local()
            assert not weight[~alive].any()
            assert bool(weight[alive].all())


def resumed(rank: int, world: int, folder: Path) -> None:
    found = {}
    for recipe, name in SAVED_CASES:
        model = shard(net(seed=5))
        optimizer = OPTIMIZERS[name](model)
        sparsifier = regrow.attach(model, optimizer, RECIPES[recipe], strict=True, seed=3)
        restore(folder / f"{recipe}-{name}", model, optimizer, sparsifier)
        steps(model, optimizer, rank, world, range(SAVED, STEPS))
        found[f"{recipe} {name}"] = tensors(sparsifier, optimizer)
    torch.save(found, folder / f"resumed-{rank}.pt")
    check_strays(rank, world)


def check_strays(rank: int, world: int) -> None:
    """Weights of another net are refused on every rank, also on one whose pieces fit, until masks are put on."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    model = shard(net())
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, RECIPES["set"])
    steps(model, optimizer, rank, world, range(2))
    set_model_state_dict(model, net(seed=8).state_dict(), options=StateDictOptions(full_state_dict=True))
    with pytest.raises(ValueError, match=r"288 weights that are not 0 of '0\.weight' lie outside its mask"):
        steps(model, optimizer, rank, world, range(2, 3))
    with torch.no_grad():
        for name, mask in sparsifier.masks.items():
            if rank:
                weight = model.get_parameter(name).detach().to_local()
                weight.mul_(mask.to_local())
    with pytest.raises(ValueError, match=r"of '0\.weight' lie outside its mask"):
        steps(model, optimizer, rank, world, range(2, 3))
    sparsifier.apply_masks(model)
    steps(model, optimizer, rank, world, range(2, 8))
    assert sparsifier.num_updates == 2
    saved = {name: value.full_tensor() for name, value in model.state_dict().items()}
    fresh = shard(net(seed=5))
    set_model_state_dict(fresh, saved, options=StateDictOptions(full_state_dict=True))
    again = regrow.attach(fresh, sgd(fresh), RECIPES["set"], seed=7)
    again.take_masks_from_weights()
    assert again.num_alive == sparsifier.num_alive
    steps(fresh, again.optimizer, rank, world, range(8, 12))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two ranks train with shards and with replicas, and save; four go on, one without a row of the last layer."""
    folder = tmp_path_factory.mktemp("fsdp")
    launch(shards_and_replicas, 2, folder)
    launch(resumed, 4, folder)
    return folder


def load(folder: Path, name: str) -> dict[str, dict[str, Tensor]]:
    return torch.load(folder / f"{name}.pt", weights_only=True)


@pytest.mark.parametrize(("recipe", "optimizer"), CASES)
def test_shards_equal_replicas(folder: Path, recipe: str, optimizer: str) -> None:
    ranks = [load(folder, name) for name in ("0", "1")]
    for found in ranks:
        assert found[f"fsdp {recipe} {optimizer}"].keys() == ranks[0][f"ddp {recipe} {optimizer}"].keys()
        for key, value in found[f"fsdp {recipe} {optimizer}"].items():
            torch.testing.assert_close(value, ranks[0][f"ddp {recipe} {optimizer}"][key], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("recipe", "optimizer"), SAVED_CASES)
def test_a_checkpoint_of_two_ranks_goes_on_with_four(folder: Path, recipe: str, optimizer: str) -> None:
    undisturbed, resumed = load(folder, "0")[f"fsdp {recipe} {optimizer}"], load(folder, "resumed-3")
    for key, value in resumed[f"{recipe} {optimizer}"].items():
        torch.testing.assert_close(value, undisturbed[key], rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
@pytest.mark.parametrize(("recipe", "optimizer"), SAVED_CASES)
def test_a_checkpoint_of_two_ranks_goes_on_in_one_process_unsharded(folder: Path, recipe: str, optimizer: str) -> None:
    model = net(seed=5)
    stepper = OPTIMIZERS[optimizer](model)
    sparsifier = regrow.attach(model, stepper, RECIPES[recipe], strict=True, seed=3)
    restore(folder / f"{recipe}-{optimizer}", model, stepper, sparsifier)
    steps(model, stepper, 0, 1, range(SAVED, STEPS))
    undisturbed = load(folder, "0")[f"fsdp {recipe} {optimizer}"]
    for key, value in tensors(sparsifier, stepper).items():
        torch.testing.assert_close(value, undisturbed[key], rtol=1e-9, atol=1e-12)


def saved_by_one(rank: int, world: int, folder: Path) -> None:
    """As masks and momentum are whole, the state of one rank is that of all."""
    model = shard(net())
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, RECIPES["snfs"])
    steps(model, optimizer, rank, world, range(5))
    state = sparsifier.state_dict()
    assert all(type(entry["momentum"]) is Tensor for entry in state["layers"].values())
    if rank == 0:
        torch.save(state, folder / "sparsifier.pt")
    torch.distributed.barrier()
    model = shard(net())
    again = regrow.attach(model, sgd(model), RECIPES["snfs"])
    again.load_state_dict(torch.load(folder / "sparsifier.pt", weights_only=True))
    for name, entry in again.state_dict()["layers"].items():
        assert bool(entry["momentum"].any())
        assert torch.equal(entry["momentum"], state["layers"][name]["momentum"])


def test_the_state_that_one_rank_saved_is_that_of_all_and_of_one_process(tmp_path: Path) -> None:
    launch(saved_by_one, 2, tmp_path)
    model = net()
    sparsifier = regrow.attach(model, sgd(model), RECIPES["snfs"])
    saved = torch.load(tmp_path / "sparsifier.pt", weights_only=True)
    sparsifier.load_state_dict(saved)
    for name, entry in sparsifier.state_dict()["layers"].items():
        assert torch.equal(entry["momentum"], saved["layers"][name]["momentum"])
