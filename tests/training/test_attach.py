"""Bad input is refused before anything is written, and every refusal says what to do."""

import copy

import pytest
import torch
from nets import mlp, sgd, train
from torch import nn

import regrow


def refused(message: str, model: nn.Module, optimizer, *arguments, **options) -> None:
    """The call raises ValueError and leaves model and optimizer as they were."""
    state = copy.deepcopy(model.state_dict())
    hooks = len(optimizer._optimizer_step_pre_hooks) if isinstance(optimizer, torch.optim.Optimizer) else 0
    with pytest.raises(ValueError, match=message):
        regrow.attach(model, optimizer, *arguments, **options)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if not value.is_meta)
    if isinstance(optimizer, torch.optim.Optimizer):
        assert len(optimizer._optimizer_step_pre_hooks) == hooks


@pytest.fixture
def model() -> nn.Module:
    return mlp()


def test_optimizers_that_cannot_are_refused_by_name(model) -> None:
    record = regrow.static(sparsity=0.9)
    refused("LBFGS cannot train a sparse net", model, torch.optim.LBFGS(model.parameters()), record)
    refused("SparseAdam cannot", model, torch.optim.SparseAdam(list(model.parameters())), record)
    refused("optimizer is a float", model, 0.1, record)
    cut = type("ZeroRedundancyOptimizer", (torch.optim.SGD,), {})
    refused("ZeroRedundancyOptimizer cannot.*fully_shard", model, cut(model.parameters(), lr=0.1), record)


def test_weights_that_cannot_be_written_to_are_refused(model) -> None:
    model[2].weight = nn.Parameter(torch.randn(16, 1).expand(16, 24))
    refused(r"'2\.weight' is expanded", model, sgd(model), regrow.static(sparsity=0.9))
    with torch.inference_mode():
        made = nn.Linear(12, 24)
    refused(r"'weight' was made in inference mode", made, sgd(made), regrow.static(sparsity=0.9))


def test_an_optimizer_of_other_parameters_is_refused(model) -> None:
    refused(r"does not hold '0\.weight'", model, sgd(mlp()), regrow.static(sparsity=0.9))
    partly = torch.optim.SGD(model[0].parameters(), lr=0.1)
    refused(r"does not hold '2\.weight'.*exclude=\['2\.weight'\]", model, partly, regrow.static(sparsity=0.9))


def test_patterns_budgets_and_records_are_checked(model) -> None:
    optimizer = sgd(model)
    refused("pattern 'nosuch' matches none", model, optimizer, regrow.static(sparsity=0.9), include="nosuch")
    refused("pattern 'nosuch' matches none", model, optimizer, {"nosuch": regrow.static(sparsity=0.9)})
    refused("belongs to an earlier pattern", model, optimizer, dict.fromkeys(("*", "0"), regrow.static(sparsity=0.9)))
    refused("leaves 1 of 752 weights for 3 layers", model, optimizer, regrow.static(sparsity=0.999))
    refused("algorithm is 'rigl'; expected a record", model, optimizer, "rigl")
    refused("algorithm is {}; expected", model, optimizer, {})
    refused("the algorithm of '0' is 'rigl'; expected a record", model, optimizer, {"0": "rigl"})
    refused("include is 3; expected a glob", model, optimizer, regrow.static(sparsity=0.9), include=3)
    refused("3 is no pattern; expected a glob", model, optimizer, regrow.static(sparsity=0.9), exclude=[3])
    refused("seed is None; expected a seed", model, optimizer, regrow.static(sparsity=0.9), seed=None)
    refused("seed is 'x'; expected a seed", model, optimizer, regrow.static(sparsity=0.9), seed="x")
    refused("no sparsifiable layer", nn.LayerNorm(4), optimizer, regrow.static(sparsity=0.9))


def test_a_model_on_the_meta_device_is_refused_with_the_remedy() -> None:
    with torch.device("meta"):
        model = mlp()
    refused("to_empty", model, sgd(model), regrow.static(sparsity=0.9))


def test_a_second_sparsifier_on_the_same_weights_is_refused(model) -> None:
    optimizer = sgd(model)
    first = regrow.attach(model, optimizer, regrow.static(sparsity=0.9), include="0")
    refused("attached to these weights already", model, optimizer, regrow.static(sparsity=0.9))
    refused("optimizer has a sparsifier already", model, optimizer, regrow.static(sparsity=0.9), include="2")
    second = regrow.attach(model, sgd(model), regrow.static(sparsity=0.9), include="2")
    first.detach()
    second.detach()
    regrow.attach(model, optimizer, regrow.static(sparsity=0.0), include="0")


def test_a_checkpoint_loaded_before_attaching_is_not_destroyed(model) -> None:
    optimizer = sgd(model)
    regrow.attach(model, optimizer, regrow.static(sparsity=0.9))
    saved = copy.deepcopy(model.state_dict())
    fresh, ticket = mlp(seed=1), mlp(seed=1)
    fresh.load_state_dict(saved)
    sparsifier = regrow.attach(fresh, sgd(fresh), regrow.static(sparsity=0.9), seed=1)
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in saved.items())
    with pytest.raises(ValueError, match=r"weights that are not 0 of '0\.weight' lie outside its mask"):
        train(fresh, sparsifier.optimizer, range(1))
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in saved.items())
    ticket.load_state_dict(saved)
    kept = regrow.from_masks({name: ticket.get_parameter(name) != 0 for name in regrow.find_layers(ticket)})
    regrow.attach(ticket, sgd(ticket), kept)
    assert all(torch.equal(value, ticket.state_dict()[name]) for name, value in saved.items())


def test_zero_initialised_layers_are_no_checkpoint() -> None:
    model = mlp()
    nn.init.zeros_(model[4].weight)
    regrow.attach(model, sgd(model), regrow.static(sparsity=0.5))


def test_wrapped_models_keep_their_inner_names(model) -> None:
    wrapped = nn.DataParallel(model)
    sparsifier = regrow.attach(wrapped, sgd(model), regrow.static(sparsity=0.5))
    assert list(sparsifier.masks) == ["0.weight", "2.weight", "4.weight"]


def test_several_parameter_groups(model) -> None:
    groups = [
        {"params": model[0].parameters(), "lr": 0.1},
        {"params": [*model[2].parameters(), *model[4].parameters()]},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, weight_decay=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(sparsity=0.8, total_steps=20, every=3), strict=True)
    train(model, optimizer, range(12))
    assert sparsifier.num_updates == 3


def test_a_closure_is_called_once_and_masked_like_any_step() -> None:
    model, twin = mlp(), mlp()
    record = regrow.rigl(sparsity=0.8, total_steps=20, every=2)
    optimizer, plain = sgd(model), sgd(twin)
    sparsifier = regrow.attach(model, optimizer, record, strict=True)
    other = regrow.attach(twin, plain, record)
    calls = 0
    for step in range(9):
        inputs, targets = torch.randn(8, 12, generator=torch.Generator().manual_seed(step)), torch.arange(8) % 5

        def closure(inputs=inputs, targets=targets):
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            return loss

        loss = optimizer.step(closure) if step % 2 else optimizer.step(closure=closure)
        assert loss.item() > 0
        nn.functional.cross_entropy(twin(inputs), targets).backward()
        plain.step()
        plain.zero_grad()
    assert calls == 9
    assert sparsifier.num_updates == other.num_updates == 3
    assert all(torch.equal(value, twin.state_dict()[name]) for name, value in model.state_dict().items())


def test_what_is_no_module_or_no_distribution_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = regrow.static(sparsity=0.5)
    for wrong, kind in (("x", "str"), ([1], "list"), (optimizer, "SGD")):
        with pytest.raises(ValueError, match=f"the model is a {kind}; expected a torch.nn.Module"):
            regrow.attach(wrong, optimizer, recipe)
    with pytest.raises(ValueError, match="the model is a SGD"):
        regrow.attach(optimizer, model, recipe)
    for found, said in ({"0.weight": 32}, "dict without 2.weight"), (None, "NoneType without 0.weight, 2.weight"):
        with pytest.raises(ValueError, match=said):
            regrow.attach(model, optimizer, regrow.static(sparsity=0.5, distribution=lambda *_, found=found: found))
