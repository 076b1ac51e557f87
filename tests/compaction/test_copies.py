"""Copies of an attached compact model, and averages over both, are what they are in dense storage."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import batch, mlp, sgd, train
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

import regrow
from regrow.compaction.compact_modules import CompactLayer
from regrow.compaction.dense_copies import CopiedWeight

RECIPES = {
    "rigl": regrow.rigl(sparsity=0.8, total_steps=60, every=4),
    "redistributed": regrow.rigl_sg(sparsity=0.8, total_steps=60, every=4),
}


def attached(storage: str, recipe: str = "rigl") -> tuple[nn.Module, torch.optim.Optimizer, regrow.Sparsifier]:
    model = mlp()
    optimizer = sgd(model)
    return model, optimizer, regrow.attach(model, optimizer, RECIPES[recipe], storage=storage)  # type: ignore[arg-type]


@torch.no_grad()
def lerp(average: nn.Module, model: nn.Module) -> None:
    for a, b in zip(average.parameters(), model.parameters(), strict=True):
        a.lerp_(b, 0.1)


@torch.no_grad()
def scaled_and_added(average: nn.Module, model: nn.Module) -> None:
    for a, b in zip(average.parameters(), model.parameters(), strict=True):
        a.mul_(0.9).add_(b, alpha=0.1)


def copied_data(average: nn.Module, model: nn.Module) -> None:
    for a, b in zip(average.parameters(), model.parameters(), strict=True):
        a.data.copy_(0.1 * b.data + (1.0 - 0.1) * a.data)


def assigned(average: nn.Module, model: nn.Module) -> None:
    found = dict(average.named_parameters())
    for name, parameter in model.named_parameters():
        found[name].data = 0.9 * found[name].data + 0.1 * parameter.data


def difference(average: nn.Module, model: nn.Module) -> None:
    for a, b in zip(average.parameters(), model.parameters(), strict=True):
        a.detach().sub_(0.1 * (a.detach() - b.detach()))


@torch.no_grad()
def all_at_once(average: nn.Module, model: nn.Module) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), weight=0.1)


def of_states(average: nn.Module, model: nn.Module) -> None:
    """As timm's averages are kept."""
    pairs = list(zip(average.state_dict().values(), model.state_dict().values(), strict=True))
    torch._foreach_lerp_([a for a, _ in pairs], [b for _, b in pairs], weight=0.1)


def of_states_one_by_one(average: nn.Module, model: nn.Module) -> None:
    for a, b in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        a.lerp_(b, 0.1)


AVERAGES = (lerp, scaled_and_added, copied_data, assigned, difference, all_at_once, of_states, of_states_one_by_one)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("average", AVERAGES)
def test_an_average_over_a_copy_is_that_of_dense_storage(average: Callable[..., None], recipe: str) -> None:
    states = []
    for storage in ("dense", "compact"):
        model, optimizer, sparsifier = attached(storage, recipe)
        train(model, optimizer, range(2))
        kept = copy.deepcopy(model)
        train(model, optimizer, range(2, 16), each=lambda step, kept=kept, model=model: average(kept, model))
        assert sparsifier.num_updates == 3
        states.append(kept.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6)
    assert type(model.get_parameter("0.weight")) is nn.Parameter


AVERAGED: dict[str, Callable[[nn.Module], AveragedModel]] = {
    "mean": AveragedModel,
    "mean with buffers": lambda model: AveragedModel(model, use_buffers=True),
    "exponential": lambda model: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9)),
    "one by one": lambda model: AveragedModel(model, avg_fn=get_ema_avg_fn(0.9)),
    "own": lambda model: AveragedModel(model, avg_fn=lambda a, b, number: a + (b - a) / (number + 1)),
}


@pytest.mark.parametrize("kind", AVERAGED)
def test_averaged_models_are_those_of_dense_storage(kind: str) -> None:
    states = []
    for storage in ("dense", "compact"):
        model, optimizer, _ = attached(storage, "redistributed")
        averaged = AVERAGED[kind](model)
        train(model, optimizer, range(16), each=lambda step, a=averaged, model=model: a.update_parameters(model))
        states.append((averaged.state_dict(), averaged(batch(3)[0])))
    torch.testing.assert_close(states[1][1], states[0][1], rtol=1e-4, atol=1e-5)
    for name, value in states[0][0].items():
        torch.testing.assert_close(states[1][0][name], value, rtol=1e-4, atol=1e-6)


def swap(averaged: nn.Module, model: nn.Module) -> None:
    """What trainers do before and after they evaluate an average."""
    for a, b in zip(averaged.parameters(), model.parameters(), strict=True):
        kept = a.data.clone()
        a.data.copy_(b.data)
        b.data.copy_(kept)


def test_an_average_is_written_back_once_it_has_the_pattern() -> None:
    states = []
    for storage in ("dense", "compact"):
        model, optimizer, sparsifier = attached(storage)
        averaged = AveragedModel(model)
        train(model, optimizer, range(16), each=lambda step, a=averaged, m=model: a.update_parameters(m))
        if storage == "compact":
            before = copy.deepcopy(model.state_dict())
            with pytest.raises(ValueError, match=r"weights of a copy are not 0.*apply_masks\(copy\).*storage='dense'"):
                model[0].weight.data.copy_(averaged.module[0].weight.data)  # type: ignore[index]
            assert torch.equal(before["0.weight"], model.state_dict()["0.weight"])
        sparsifier.apply_masks(averaged)
        swap(averaged.module, model)
        states.append(copy.deepcopy((model.state_dict(), averaged.module.state_dict())))
        swap(averaged.module, model)
        train(model, optimizer, range(16, 20))
        states.append(copy.deepcopy((model.state_dict(), averaged.module.state_dict())))
    for expected, found in ((states[0], states[2]), (states[1], states[3])):
        for theirs, ours in zip(expected, found, strict=True):
            for name, value in theirs.items():
                torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)


def test_the_distance_to_a_copy_is_a_loss() -> None:
    """Elastic penalties pull at the weights, and grow those that the copy has and the model has not."""
    states = []
    for storage in ("dense", "compact"):
        model, optimizer, sparsifier = attached(storage)
        start = copy.deepcopy(model)
        for step in range(12):
            inputs, targets = batch(step)
            loss = nn.functional.cross_entropy(model(inputs), targets)
            pairs = zip(model.parameters(), start.parameters(), strict=True)
            (loss + 0.1 * sum((a - b.detach()).square().sum() for a, b in pairs)).backward()
            optimizer.step()
            optimizer.zero_grad()
        assert sparsifier.num_updates == 2
        states.append((model.state_dict(), sparsifier.masks))
    for name, mask in states[0][1].items():
        assert torch.equal(mask, states[1][1][name])
    for name, value in states[0][0].items():
        torch.testing.assert_close(states[1][0][name], value, rtol=1e-4, atol=1e-6)


def test_a_copy_is_a_plain_model_of_its_own() -> None:
    model, optimizer, _ = attached("compact")
    train(model, optimizer, range(6))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    kept = copy.deepcopy(model)
    train(model, optimizer, range(6, 12))
    for other in (kept, copy.deepcopy(kept), pickle.loads(pickle.dumps(kept))):
        assert [type(module) for module in other.modules()] == [type(module) for module in mlp().modules()]
        assert all(torch.equal(value, state[name]) for name, value in other.state_dict().items())
        assert all(isinstance(parameter, nn.Parameter) for parameter in other.parameters())
    file = io.BytesIO()
    torch.save(kept.state_dict(), file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert all(type(value) is Tensor and torch.equal(value, state[name]) for name, value in loaded.items())
    assert type(kept[0].weight) is CopiedWeight  # type: ignore[index]
    parameters = list(kept.parameters())
    assert regrow.to_dense(kept) is kept
    assert all(a is b and type(a) is nn.Parameter for a, b in zip(kept.parameters(), parameters, strict=True))
    train(kept, sgd(kept), range(2))
    regrow.compact(kept.double(), {"0.weight": state["0.weight"]})
    assert isinstance(kept[0], CompactLayer)  # type: ignore[index]


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_a_copy_can_be_attached(storage: Any) -> None:
    model, optimizer, _ = attached("compact")
    train(model, optimizer, range(6))
    states = []
    for other in (copy.deepcopy(model), regrow.to_dense(copy.deepcopy(model))):
        stepped = sgd(other)
        masks = {name: other.get_parameter(name).detach() != 0 for name in ("0.weight", "2.weight", "4.weight")}
        recipe = regrow.starting_from(RECIPES["rigl"], masks)
        regrow.attach(other, stepped, recipe, storage=storage, strict=True)
        train(other, stepped, range(12))
        states.append(other.state_dict())
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("model_first", [True, False])
def test_model_and_optimizer_are_copied_together(model_first: bool) -> None:
    model, optimizer, sparsifier = attached("compact")
    train(model, optimizer, range(1))
    both = copy.deepcopy((model, optimizer) if model_first else (optimizer, model))
    other, stepped = both if model_first else both[::-1]
    for name, mask in sparsifier.masks.items():
        if model_first:  # then it is dense, and nobody masks the gradients of what is dead
            other.get_parameter(name).register_hook(lambda gradient, mask=mask: gradient * mask)
    for each, its in ((model, optimizer), (other, stepped)):
        train(each, its, range(1, 3))
    for name, value in model.state_dict().items():
        torch.testing.assert_close(other.state_dict()[name], value, rtol=1e-4, atol=1e-6)
