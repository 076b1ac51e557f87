"""A second optimizer that steps attached weights: dead ones stay 0, and its state follows."""

import copy
import gc
import weakref

import pytest
import torch
from dead import assert_same, both, check_dead, loss_of, momentum_sgd, rigl, saved_state
from nets import batch, mlp, sgd, train
from torch import nn
from wrappers import Lookahead

import regrow


class ActorCritic:
    """A shared encoder under two heads, each with an optimizer that holds the encoder too."""

    def __init__(self, storage: str, strict: bool = True, steps: int = 16) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"e": nn.Linear(12, 64), "p": nn.Linear(64, 5), "v": nn.Linear(64, 1)})
        e, p, v = self.model.values()
        self.first = torch.optim.Adam([*e.parameters(), *p.parameters()], 0.01)
        self.second = torch.optim.Adam([*v.parameters(), *e.parameters()], 0.01)
        self.sparsifier = regrow.attach(self.model, self.first, rigl(), exclude="v", storage=storage, strict=strict)
        for step in range(steps):
            inputs, targets = batch(step)
            self.first.zero_grad()
            nn.functional.cross_entropy(p(torch.relu(e(inputs))), targets).backward()
            self.first.step()
            check_dead(self.sparsifier, self.first, self.second)
            self.second.zero_grad()
            v(torch.relu(e(inputs))).square().mean().backward()
            self.second.step()
            check_dead(self.sparsifier, self.first, self.second)


@both
def test_a_second_optimizer_revives_no_dead_weight_and_its_state_follows(storage) -> None:
    nets = ActorCritic(storage)
    assert nets.sparsifier.num_updates == 3
    nets.sparsifier.detach()
    state = nets.second.state[nets.model["e"].weight]["exp_avg"]
    assert state.shape == (64, 12)
    assert state.any()


def test_a_second_optimizer_trains_the_same_net_in_both_storages() -> None:
    dense, compact = ActorCritic("dense", steps=10), ActorCritic("compact", steps=10)
    assert_same(dense.model, compact.model, 1e-5)
    for name in dense.sparsifier.masks:
        if name.startswith("e"):
            ours, theirs = (saved_state(each.second, each.model, name) for each in (dense, compact))
            for key, value in ours.items():
                torch.testing.assert_close(value, theirs[key], rtol=1e-3, atol=1e-6)


@both
def test_a_second_optimizer_goes_on_from_its_checkpoint(storage) -> None:
    """In a fresh process it has not stepped yet when its state is loaded, and is not known."""
    whole, half = ActorCritic(storage, steps=8), ActorCritic(storage, steps=6)
    parts = (half.model, half.first, half.second, half.sparsifier)
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    fresh = ActorCritic(storage, steps=0)
    for part, state in zip((fresh.model, fresh.first, fresh.second, fresh.sparsifier), saved, strict=True):
        part.load_state_dict(state)
    e, p, v = fresh.model.values()
    for step in range(6, 8):
        inputs, targets = batch(step)
        fresh.first.zero_grad()
        nn.functional.cross_entropy(p(torch.relu(e(inputs))), targets).backward()
        fresh.first.step()
        fresh.second.zero_grad()
        v(torch.relu(e(inputs))).square().mean().backward()
        fresh.second.step()
    assert_same(fresh.model, whole.model)


@both
def test_a_step_that_another_optimizer_takes_on_the_same_gradient_leaves_it_to_the_update(storage) -> None:
    """The update grows by the dense gradient, of which the other optimizer shall see the alive part alone."""
    nets, masks = [], []
    for between in (False, True):
        model = mlp()
        optimizer, other = sgd(model), torch.optim.SGD(model.parameters(), lr=0.0)
        seen = []
        other.register_step_pre_hook(lambda *_, seen=seen, m=model: seen.append(m[0].weight.grad.count_nonzero()))
        sparsifier = regrow.attach(model, optimizer, rigl(), storage=storage, strict=True)
        for step in range(10):
            loss_of(model, step).backward()
            if between:
                other.step()
                assert seen[-1] <= sparsifier.num_alive["0.weight"]
            optimizer.step()
            optimizer.zero_grad()
        nets.append(model)
        masks.append(sparsifier.masks)
    assert_same(*nets)
    assert all(torch.equal(mask, masks[1][name]) for name, mask in masks[0].items())


@both
def test_a_second_optimizer_brings_state_from_before_it_was_known(storage) -> None:
    model = mlp()
    first, second = momentum_sgd(model.parameters()), torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, second, range(3))
    before = second.state[model[0].weight]["exp_avg"].clone()
    sparsifier = regrow.attach(model, first, regrow.static(sparsity=0.8), storage=storage, strict=True)
    loss_of(model, 3).backward()
    gradient, mask = model[0].weight.grad.clone(), sparsifier.masks["0.weight"]
    second.step()
    found = saved_state(second, model, "0.weight")["exp_avg"]
    given = gradient if gradient.shape == mask.shape else torch.zeros(mask.shape).masked_scatter_(mask, gradient)
    torch.testing.assert_close(found, (0.9 * before + 0.1 * given) * mask, rtol=1e-5, atol=1e-7)
    check_dead(sparsifier, second)


@both
@pytest.mark.parametrize("known", [False, True])
def test_what_was_loaded_without_its_masks_is_not_erased_by_another_optimizer(known, storage) -> None:
    model = mlp()
    sparsifier = regrow.attach(model, sgd(model), rigl(), storage=storage)
    other = Lookahead(torch.optim.Adam(model.parameters(), lr=0.01))
    if known:
        train(model, other, range(1))
    loaded = mlp(seed=1).state_dict()
    model.load_state_dict(loaded)
    loss_of(model, 0).backward()
    with pytest.raises(ValueError, match="lie outside its mask"):
        other.step()
    assert all(torch.equal(value, loaded[name]) for name, value in model.state_dict().items())
    sparsifier.apply_masks(model)
    train(model, other, range(1))
    check_dead(sparsifier, other.base)


@both
def test_an_optimizer_that_is_dropped_is_let_go(storage) -> None:
    model = mlp()
    regrow.attach(model, sgd(model), rigl(), storage=storage)
    other = torch.optim.Adam(model.parameters())
    train(model, other, range(1))
    gone = weakref.ref(other)
    del other
    gc.collect()
    assert gone() is None
    train(model, torch.optim.Adam(model.parameters()), range(1))


@both
def test_two_sparsifiers_share_a_second_optimizer(storage) -> None:
    model = mlp()
    parts = [momentum_sgd(model[at].parameters()) for at in (0, 2)]
    shared = torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifiers = [
        regrow.attach(model, part, rigl(every=3), include=str(at), storage=storage, strict=True)
        for at, part in zip((0, 2), parts, strict=True)
    ]
    for step in range(12):
        loss_of(model, step).backward()
        for part in parts if step % 2 else [shared]:
            part.step()
        shared.zero_grad()
        for sparsifier in sparsifiers:
            check_dead(sparsifier, shared, *parts)
    assert [sparsifier.num_updates for sparsifier in sparsifiers] == [1, 1]


def test_an_optimizer_that_was_built_in_the_place_of_the_attached_one_is_told() -> None:
    model = mlp()
    sparsifier = regrow.attach(model, sgd(model), rigl())
    other = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, other, range(1))
    with pytest.warns(UserWarning, match=r"this Adam steps all weights of the SGD .* no update comes.*attach to"):
        train(model, other, range(1, 2))
    train(model, other, range(2, 5))  # told once
    check_dead(sparsifier, other)


@both
def test_an_optimizer_that_is_gone_and_its_sparsifier_still_keep_dead_weights_dead(storage) -> None:
    """Nothing but the model holds them then."""
    model = mlp()
    masks = regrow.attach(model, sgd(model), rigl(), storage=storage).masks
    gc.collect()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    with pytest.warns(UserWarning, match="no update comes"):
        train(model, optimizer, range(3))
    weights = model.state_dict()
    for name, mask in masks.items():
        assert not weights[name][~mask].any()


def test_alternating_optimizers_of_the_same_weights_are_no_replacement() -> None:
    model = mlp()
    first, second = sgd(model), torch.optim.Adam(model.parameters(), lr=0.01)
    sparsifier = regrow.attach(model, first, rigl(), strict=True)
    for step in range(12):
        train(model, second if step % 2 else first, range(step, step + 1))
    assert sparsifier.num_updates == 1
    check_dead(sparsifier, first, second)


@both
def test_a_second_optimizer_that_cannot_is_refused_before_its_step(storage) -> None:
    model = mlp()
    regrow.attach(model, sgd(model), rigl(), storage=storage)
    before = copy.deepcopy(model.state_dict())
    loss_of(model, 0).backward()
    with pytest.raises(ValueError, match="LBFGS cannot train a sparse net"):
        torch.optim.LBFGS(model.parameters()).step(lambda: 0.0)
    if storage == "compact" and hasattr(torch.optim, "Muon"):
        with pytest.raises(ValueError, match="Adafactor"):
            torch.optim.Adafactor(model.parameters()).step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_strangers_are_left_alone() -> None:
    model, stranger = mlp(), mlp(seed=1)
    sparsifier = regrow.attach(model, sgd(model), rigl(), strict=True)
    twin = mlp(seed=1)
    for each in (stranger, twin):
        train(each, sgd(each), range(6))
        sparsifier.detach()
    assert_same(stranger, twin)


def test_the_hooks_on_all_optimizers_are_gone_with_the_last_sparsifier() -> None:
    from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

    before = len(_global_optimizer_pre_hooks), len(_global_optimizer_post_hooks)
    models = mlp(), mlp()
    sparsifiers = [regrow.attach(model, sgd(model), regrow.static(sparsity=0.5)) for model in models]
    sparsifiers[0].detach()
    assert _global_optimizer_pre_hooks
    sparsifiers[1].detach()
    assert len(_global_optimizer_pre_hooks) <= before[0]
    assert len(_global_optimizer_post_hooks) <= before[1]
