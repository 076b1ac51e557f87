"""Every torch optimizer: dead weights and their state are exactly 0 (or the optimizer's own initial value)."""

import dataclasses

import pytest
import torch
from nets import batch, mlp, train
from torch import nn

import regrow
from regrow.storage import optimizers

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "sgd-momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "sgd-nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "sgd-foreach": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd-fused": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1),
    "adam-amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adamw-fused": lambda p: torch.optim.AdamW(p, lr=0.01, fused=True),
    "adamw-foreach": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.5),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adafactor": lambda p: torch.optim.Adafactor(p),
    "asgd": lambda p: torch.optim.ASGD(p),
    "nadam": lambda p: torch.optim.NAdam(p),
    "radam": lambda p: torch.optim.RAdam(p),
    "rmsprop": lambda p: torch.optim.RMSprop(p, momentum=0.9, centered=True),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("recipe", [regrow.rigl, regrow.rigl_sm, regrow.snfs])
def test_dead_weights_and_state_stay_at_their_start(name, recipe) -> None:
    model = mlp()
    optimizer = OPTIMIZERS[name](model.parameters())
    record = recipe(sparsity=0.8, total_steps=60, every=4)
    sparsifier = regrow.attach(model, optimizer, record, strict=True)

    def check(step: int) -> None:
        for layer, mask in sparsifier.masks.items():
            parameter = model.get_parameter(layer)
            assert not parameter[~mask].any()
            for value, start in optimizers.elementwise_state(optimizer, parameter):
                assert bool((value[~mask] == start).all())
                assert start == {"rprop": 0.01, "adagrad": 0.5}.get(name, 0.0) or start == 0.0

    train(model, optimizer, range(24), check)
    assert sparsifier.num_updates >= 4


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_muon_revives_dead_weights_and_is_masked_after_each_step() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24, bias=False), nn.ReLU(), nn.Linear(24, 5, bias=False))
    optimizer = torch.optim.Muon(model.parameters(), lr=0.01)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl_sm(sparsity=0.8, total_steps=60, every=4), strict=True)
    train(model, optimizer, range(20))
    assert sparsifier.num_updates == 4
    assert model[0].weight.any()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
@pytest.mark.parametrize(
    "record",
    [
        regrow.set_(sparsity=0.8, total_steps=60, every=4),
        regrow.snfs(sparsity=0.8, total_steps=60, every=4),
        dataclasses.replace(regrow.rigl(sparsity=0.8, total_steps=60, every=4), step_on_update=True),
    ],
    ids=["set", "snfs", "rigl with its step"],
)
def test_newborn_weights_are_0_whatever_muon_wrote_to_them_while_they_were_dead(record) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 24, bias=False), nn.ReLU(), nn.Linear(24, 5, bias=False))
    optimizer = torch.optim.Muon(model.parameters(), lr=0.01)
    sparsifier = regrow.attach(model, optimizer, record, strict=True)
    train(model, optimizer, range(3))
    before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
    train(model, optimizer, range(3, 4))
    newborn = {name: mask & ~before[name] for name, mask in sparsifier.masks.items()}
    assert sparsifier.num_updates == 1
    assert newborn["0.weight"].any()
    assert not any(model.get_parameter(name)[new].any() for name, new in newborn.items())


def test_rprop_and_adagrad_start_a_newborn_weight_afresh() -> None:
    for make, key, start in (
        (lambda p: torch.optim.Rprop(p, lr=0.02), "step_size", 0.02),
        (lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.5), "sum", 0.5),
    ):
        model = mlp()
        optimizer = make(model.parameters())
        sparsifier = regrow.attach(model, optimizer, regrow.rigl(sparsity=0.8, total_steps=60, every=4))
        train(model, optimizer, range(4))
        before = sparsifier.masks["0.weight"].clone()
        train(model, optimizer, range(4, 5))
        newborn = sparsifier.masks["0.weight"] & ~before
        assert newborn.any()
        assert bool((optimizer.state[model[0].weight][key][newborn] == start).all())


class FlakyScaler:
    """What torch's GradScaler does to a fused optimizer: scaled gradients, and a step that is skipped on overflow."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.scale = optimizer, 1024.0

    def step(self, overflow: bool) -> None:
        self.optimizer.grad_scale = torch.tensor(self.scale)
        self.optimizer.found_inf = torch.tensor(1.0 if overflow else 0.0)
        self.optimizer.step()
        del self.optimizer.grad_scale, self.optimizer.found_inf


@pytest.mark.parametrize("recipe", [regrow.set_, regrow.rigl, regrow.snfs])
def test_a_step_that_a_scaler_skips_inside_a_fused_optimizer_is_not_counted(recipe) -> None:
    model, twin = mlp(), mlp()
    record = recipe(sparsity=0.8, total_steps=60, every=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    plain = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9, fused=True)
    sparsifier, other = regrow.attach(model, optimizer, record, strict=True), regrow.attach(twin, plain, record)
    scaler = FlakyScaler(optimizer)
    for step in range(12):
        inputs, targets = batch(step)
        if step % 3 == 1:
            (nn.functional.cross_entropy(model(inputs), targets) * torch.inf).backward()
            scaler.step(overflow=True)
            optimizer.zero_grad()
        (nn.functional.cross_entropy(model(inputs), targets) * scaler.scale).backward()
        scaler.step(overflow=False)
        optimizer.zero_grad()
    train(twin, plain, range(12))
    assert sparsifier.weight_steps == other.weight_steps
    assert sparsifier.num_updates == other.num_updates > 0
    assert all(torch.equal(mask, other.masks[name]) for name, mask in sparsifier.masks.items())


@pytest.mark.parametrize("strict", [True, False])
def test_what_a_skipped_first_step_leaves_in_dead_state_is_gone(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fused optimizer makes its momentum of memory as it lies before it finds out that the step is skipped."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    sparsifier = regrow.attach(model, optimizer, regrow.static(sparsity=0.8), strict=strict)
    empty = torch.empty_like
    monkeypatch.setattr(torch, "empty_like", lambda *args, **options: empty(*args, **options).fill_(torch.nan))
    inputs, targets = batch(0)
    (nn.functional.cross_entropy(model(inputs), targets) * torch.inf).backward()
    FlakyScaler(optimizer).step(overflow=True)
    assert sparsifier.weight_steps == 0
    for name, mask in sparsifier.masks.items():
        state = optimizer.state[model.get_parameter(name)]["momentum_buffer"]
        assert state[mask].isnan().all()  # torch's own affair
        assert not state[~mask].any()


@pytest.mark.parametrize("recipe", [regrow.set_, regrow.rigl, regrow.snfs])
def test_planted_infinities_under_grad_scaler_wait_for_a_finite_step(recipe) -> None:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    sparsifier = regrow.attach(model, optimizer, recipe(sparsity=0.8, total_steps=60, every=3), strict=True)
    taken = 0
    for step in range(16):
        inputs, targets = batch(step)
        loss = scaler.scale(nn.functional.cross_entropy(model(inputs), targets))
        (loss * torch.inf if step % 4 == 3 else loss).backward()
        before = sparsifier.weight_steps, sparsifier.num_updates
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if step % 4 == 3:
            assert (sparsifier.weight_steps, sparsifier.num_updates) == before
        taken += step % 4 != 3
        assert all(model.get_parameter(name).isfinite().all() for name in sparsifier.masks)
    replaced = 0 if recipe is not regrow.rigl else sparsifier.num_updates
    assert sparsifier.weight_steps == taken - replaced
    assert sparsifier.num_updates >= 3


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.Adam(p, 0.01, amsgrad=True),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
        lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.5, centered=True),
        lambda p: torch.optim.Adagrad(p, 0.01, initial_accumulator_value=0.5),
        lambda p: torch.optim.Rprop(p, 0.01),
    ],
    ids=["adam", "sgd", "rmsprop", "adagrad", "rprop"],
)
@pytest.mark.parametrize("recipe", [regrow.rigl, regrow.set_])
def test_state_of_complex_weights_is_at_its_start_where_they_are_dead(make, recipe, storage: str) -> None:
    torch.manual_seed(0)
    weight = torch.complex64
    model = nn.Sequential(nn.Linear(16, 32, dtype=weight), nn.Linear(32, 8, dtype=weight))
    optimizer = make(model.parameters())
    record = recipe(sparsity=0.8, total_steps=60, every=4)
    sparsifier = regrow.attach(model, optimizer, record, storage=storage, strict=True)
    for _ in range(12):
        optimizer.zero_grad()
        (model(torch.randn(8, 16, dtype=weight)) - 1).abs().square().mean().backward()
        optimizer.step()
        for name, mask in sparsifier.masks.items():
            parameter = model.get_parameter(name)
            assert not parameter[~mask].any()
            for key, value in optimizer.state[parameter].items():
                start = {"sum": 0.5 + 0.5j, "step_size": 0.01 + 0.01j}.get(key, 0j)
                assert value.dim() == 0 or torch.equal(value[~mask], torch.full_like(value[~mask], start)), key
    assert sparsifier.num_updates == 2 + (recipe is regrow.set_)
