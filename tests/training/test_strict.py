"""What else may write to the weights, and how an attached model says so."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from nets import batch, mlp, train
from torch import nn
from torch.optim import Optimizer

import regrow

Attached = tuple[nn.Sequential, Optimizer, regrow.Sparsifier]
ARGUMENTS = {"sparsity": 0.8, "total_steps": 40, "every": 3}


def attached(strict: bool = True) -> Attached:
    model = mlp()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(**ARGUMENTS), strict=strict)
    train(model, optimizer, range(2))
    return model, optimizer, sparsifier


def first_dead(sparsifier: regrow.Sparsifier) -> tuple[int, ...]:
    return tuple((~sparsifier.masks["2.weight"]).nonzero()[0].tolist())


def test_a_weight_that_something_else_wrote_is_named_when_the_next_gradient_comes() -> None:
    model, optimizer, sparsifier = attached()
    index = first_dead(sparsifier)
    model[2].weight.data[index] = 3.0
    with pytest.raises(RuntimeError) as caught:
        train(model, optimizer, range(2, 3))
    assert f"dead weight of '2.weight' at {index} is 3.0, expected 0.0, after weight step 2" in str(caught.value)


def test_state_that_something_else_wrote_is_named() -> None:
    model, optimizer, sparsifier = attached()
    index = first_dead(sparsifier)
    optimizer.state[model[2].weight]["exp_avg"][index] = 0.5
    with pytest.raises(RuntimeError, match=r"dead state of '2\.weight' at .* is 0\.5"):
        train(model, optimizer, range(2, 3))


def test_a_hook_that_writes_after_the_step_is_caught_at_the_next_one() -> None:
    model, optimizer, _ = attached()
    optimizer.register_step_post_hook(lambda *_: nn.init.ones_(model[0].weight))
    train(model, optimizer, range(2, 3))
    with pytest.raises(RuntimeError, match=r"dead weight of '0\.weight'"):
        train(model, optimizer, range(3, 4))


def test_a_mask_that_somebody_wrote_to_is_named() -> None:
    model, optimizer, sparsifier = attached()
    sparsifier.masks["4.weight"].fill_(True)
    with pytest.raises(RuntimeError, match=r"the mask of '4\.weight' has 80 alive weights after weight step 2, expect"):
        train(model, optimizer, range(2, 3))


def test_steps_that_no_optimizer_takes_are_caught() -> None:
    model, optimizer, _ = attached()
    train(model, optimizer, range(2, 3))  # the next step brings an update

    def by_hand(model: nn.Module) -> None:
        for step in range(3, 5):
            inputs, targets = batch(step)
            nn.functional.cross_entropy(model(inputs), targets).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter -= 0.1 * parameter.grad

    with pytest.raises(RuntimeError, match=r"dead weight of .* something other than an optimizer"):
        by_hand(model)


def assign(model: nn.Sequential) -> None:
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)


def replace_head(model: nn.Sequential) -> None:
    model[4] = nn.Linear(16, 5)


@pytest.mark.parametrize("strict", [True, False])
def test_weights_that_were_all_assigned_anew_are_refused_at_the_next_step(strict: bool) -> None:
    model, optimizer, _ = attached(strict)
    assign(model)
    with pytest.raises(RuntimeError, match=r"weight' is not the weight any more"):
        train(model, optimizer, range(2, 3))


@pytest.mark.parametrize("change", [assign, replace_head])
def test_replaced_weights_are_refused_at_the_next_step_also_where_gradients_stay_as_zeros(
    change: Callable[[nn.Sequential], None],
) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    regrow.attach(model, optimizer, regrow.static(sparsity=0.8))
    for step in range(3):
        inputs, targets = batch(step)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
    change(model)
    inputs, targets = batch(3)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    with pytest.raises(RuntimeError, match=r"weight' is not the weight any more that was attached to"):
        optimizer.step()


def test_a_weight_that_a_parametrization_takes_over_or_another_module_wraps_raises_no_alarm() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.static(sparsity=0.8))
    nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Identity())
    model[2] = nn.Sequential(model[2])
    train(model, optimizer, range(3))
    assert sparsifier.weight_steps == 3


def test_a_layer_that_is_frozen_by_taking_it_from_the_optimizer_raises_no_alarm() -> None:
    model = mlp()
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[2:].parameters())}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(**ARGUMENTS))
    train(model, optimizer, range(2))
    optimizer.param_groups.pop(0)
    with pytest.raises(RuntimeError, match=r"the optimizer does not hold '0\.weight' any more: freeze it"):
        train(model, optimizer, range(2, 6))
    model[0].requires_grad_(False)
    train(model, optimizer, range(2, 12))
    assert sparsifier.num_updates > 1


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("change", [assign, replace_head])
def test_weights_that_are_no_longer_the_models_are_refused_at_the_next_step(
    change: Callable[[nn.Sequential], None], strict: bool
) -> None:
    model, optimizer, sparsifier = attached(strict)
    change(model)
    optimizer.add_param_group({"params": list(model[4].parameters())})
    with pytest.raises(RuntimeError, match=r"weight' is not the weight any more that was attached to .* call detach"):
        train(model, optimizer, range(2, 4))
    sparsifier.detach()
    train(model, optimizer, range(2, 4))


def test_a_frozen_layer_raises_no_alarm_and_waits() -> None:
    model = mlp()
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(**ARGUMENTS), strict=True)
    before = sparsifier.masks["2.weight"].clone()
    train(model, optimizer, range(10))
    assert torch.equal(sparsifier.masks["2.weight"], before)
    model[2].weight.requires_grad_(True)
    inputs, targets = batch(10)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    assert not model[2].weight.grad[~before].any()
    train(model, optimizer, range(10, 30))
    assert not torch.equal(sparsifier.masks["2.weight"], before)
    assert sparsifier.num_alive["2.weight"] == int(before.sum())


def test_a_frozen_layer_can_be_compact() -> None:
    model = mlp()
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl(**ARGUMENTS), storage="compact", strict=True)
    before = sparsifier.masks["2.weight"]
    train(model, optimizer, range(10))
    assert torch.equal(sparsifier.masks["2.weight"], before)
    assert not model[2].weight.requires_grad


def test_a_refused_attach_leaves_no_hook_behind() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    groups = {"0": regrow.static(sparsity=0.9), "*": regrow.static(sparsity=0.999)}
    with pytest.raises(ValueError, match=r"leaves \d of 464 weights for 2 layers"):
        regrow.attach(model, optimizer, groups)
    inputs, targets = batch(0)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    twin = copy.deepcopy(model)
    twin.zero_grad()
    nn.functional.cross_entropy(twin(inputs), targets).backward()
    assert torch.equal(model[0].weight.grad, twin[0].weight.grad)


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_sparsifier_is_not_copied_without_its_hooks(copied: Callable[[object], object]) -> None:
    model, optimizer, sparsifier = attached()
    with pytest.raises(TypeError, match=r"cannot be copied or pickled.*attach to the copies"):
        copied((model, optimizer, sparsifier) if copied is not copy.copy else sparsifier)


def test_a_step_without_any_gradient_is_not_a_weight_step() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.set_(**ARGUMENTS), strict=True)
    for _ in range(5):
        optimizer.step()
    assert (sparsifier.weight_steps, sparsifier.num_updates) == (0, 0)


def test_a_gradient_whose_data_was_replaced_is_masked_again() -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.static(sparsity=0.8), strict=True)
    inputs, targets = batch(0)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    for parameter in model.parameters():
        assert parameter.grad is not None
        parameter.grad.data = torch.randn_like(parameter)
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append(int((model[0].weight.grad != 0).sum())))
    optimizer.step()
    assert seen == [sparsifier.num_alive["0.weight"]]
