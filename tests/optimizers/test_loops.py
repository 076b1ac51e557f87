"""Second and wrapped optimizers in usual loops: scalers, schedulers, copies, compiled and fused steps."""

import copy

import pytest
import torch
from dead import assert_same, both, check_dead, loss_of, momentum_sgd, rigl
from nets import mlp, sgd, train
from torch import nn
from wrappers import Bare, Lookahead

import regrow

ADAMS = {
    "fused": {"fused": True},
    "foreach": {"foreach": True},
    "amsgrad": {"amsgrad": True},
    "tensor rate": {"lr": torch.tensor(0.01)},
}


@both
@pytest.mark.parametrize("options", ADAMS.values(), ids=ADAMS)
def test_second_optimizers_of_every_implementation(options, storage) -> None:
    model = mlp()
    first, second = sgd(model), torch.optim.Adam(model.parameters(), **options)
    sparsifier = regrow.attach(model, first, rigl(), storage=storage, strict=True)
    for step in range(12):
        train(model, second if step % 2 else first, range(step, step + 1))
        check_dead(sparsifier, first, second)
    assert sparsifier.num_updates == 1


@both
@pytest.mark.parametrize("wrap", [Bare, Lookahead])
def test_a_scaler_and_a_scheduler_around_a_wrapper(wrap, storage) -> None:
    """A step that overflows is left out, and counted nowhere."""
    nets = []
    for wrapped in (False, True):
        model = mlp()
        base = momentum_sgd(model.parameters())
        optimizer = wrap(base) if wrapped else base
        scheduler = torch.optim.lr_scheduler.StepLR(base, 5)
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
        sparsifier = regrow.attach(model, optimizer, rigl(), storage=storage, strict=True)
        for step in range(14):
            loss = scaler.scale(loss_of(model, step))
            (loss * torch.inf if step == 6 else loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if step != 6:
                scheduler.step()
            check_dead(sparsifier, base)
        assert sparsifier.num_updates == 2
        assert sparsifier.weight_steps == 11
        nets.append(model)
    if wrap is Bare:
        assert_same(*nets)


@both
def test_a_copy_of_model_and_optimizer_is_its_own(storage) -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, rigl(), storage=storage, strict=True)
    train(model, optimizer, range(3))
    other, its_optimizer = copy.deepcopy((model, optimizer))
    before = copy.deepcopy(model.state_dict())
    train(other, torch.optim.SGD(other.parameters(), lr=0.05), range(3, 8))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sparsifier.weight_steps == 3
    assert not {id(p) for p in model.parameters()} & {id(p) for g in its_optimizer.param_groups for p in g["params"]}
    train(model, optimizer, range(3, 8))
    assert sparsifier.num_updates == 1
    check_dead(sparsifier, optimizer)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # from inside torch.compile
def test_a_second_optimizer_whose_step_is_compiled() -> None:
    nets = []
    for compiled in (False, True):
        model = mlp()
        first, second = sgd(model), torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, foreach=True)
        sparsifier = regrow.attach(model, first, rigl(), strict=True)
        steps = torch.compile(second.step, backend="eager") if compiled else second.step
        for step in range(8):
            train(model, first, range(step, step + 1))
            loss_of(model, step).backward()
            steps()
            second.zero_grad()
            check_dead(sparsifier, first, second)
        nets.append(model)
    assert_same(*nets, 1e-6)


@both
def test_a_group_that_is_added_later_makes_an_optimizer_a_holder(storage) -> None:
    model, stranger = mlp(), mlp(seed=1)
    sparsifier = regrow.attach(model, sgd(model), rigl(), storage=storage)
    other = torch.optim.Adam(stranger.parameters(), lr=0.01)
    train(stranger, other, range(1))
    other.add_param_group({"params": model[0].parameters()})
    for step in range(3):
        loss_of(model, step).backward()
        other.step()
        model.zero_grad()
        check_dead(sparsifier, other)


@both
def test_a_frozen_weight_that_a_second_optimizer_holds(storage) -> None:
    model = mlp()
    first = sgd(model)
    second = torch.optim.Adam(nn.ModuleList([model[0], model[2]]).parameters(), lr=0.01)
    sparsifier = regrow.attach(model, first, rigl(), storage=storage, strict=True)
    model[0].weight.requires_grad_(False)
    for step in range(12):
        train(model, second if step % 2 else first, range(step, step + 1))
        check_dead(sparsifier, first, second)
    assert sparsifier.num_updates == 1
