"""Each recipe's record, and that bad arguments are refused with what was given."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch import nn

import regrow
from regrow.parts.schedules import Cosine, Cubic, Every, Once
from regrow.parts.scores import Need

DYNAMIC = [regrow.set_, regrow.rigl, regrow.snfs, regrow.rigl_sg, regrow.rigl_sm]


@pytest.mark.parametrize("recipe", DYNAMIC)
def test_the_defaults_are_the_reports(recipe) -> None:
    algorithm = recipe(sparsity=0.9, total_steps=88_000)
    assert algorithm.when == Every(100, start=100, stop=66_000)
    assert algorithm.fraction == Cosine(0.3, end=66_000)
    assert algorithm.sparsity_at(0) == algorithm.sparsity_at(88_000) == 0.9


def test_needs_follow_from_the_scores() -> None:
    arguments = {"sparsity": 0.9, "total_steps": 100}
    assert regrow.static(sparsity=0.9).needs == regrow.set_(**arguments).needs == Need.NOTHING
    assert regrow.gradual_pruning(start=0, **arguments).needs == Need.NOTHING
    assert regrow.rigl(**arguments).needs == regrow.rigl_sg(**arguments).needs == Need.GRADIENT
    assert regrow.rigl_sm(**arguments).needs == Need.GRADIENT | Need.MOMENTUM
    assert regrow.snfs(**arguments).needs == Need.DENSE_MOMENTUM
    assert regrow.snip(sparsity=0.9).needs == Need.GRADIENT


def test_who_takes_the_place_of_a_weight_step() -> None:
    arguments = {"sparsity": 0.9, "total_steps": 100}
    assert not any(recipe(**arguments).step_on_update for recipe in (regrow.rigl, regrow.rigl_sg, regrow.rigl_sm))
    assert regrow.set_(**arguments).step_on_update
    assert regrow.snfs(**arguments).step_on_update
    assert not regrow.snip(sparsity=0.9).step_on_update
    assert regrow.snip(sparsity=0.9).when == Once(0)


def test_the_pruning_ramp_ends_on_an_update() -> None:
    algorithm = regrow.gradual_pruning(sparsity=0.9, total_steps=1000, every=100, start=120)
    assert algorithm.when == Every(100, start=120, stop=720)
    assert algorithm.sparsity == Cubic(0.9, start=120, end=720)


def test_records_compare_and_change_by_replace() -> None:
    one = regrow.rigl(sparsity=0.9, total_steps=100)
    assert one == regrow.rigl(sparsity=0.9, total_steps=100)
    assert one != regrow.rigl(sparsity=0.8, total_steps=100)
    assert dataclasses.replace(one, step_on_update=True).grow == one.grow
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("recipe", DYNAMIC)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sparsity": 1.0}, "sparsity is 1.0"),
        ({"sparsity": -0.1}, "sparsity is -0.1"),
        ({"total_steps": 0}, "total_steps is 0"),
        ({"every": 0}, "every is 0"),
        ({"drop_fraction": 1.1}, "drop_fraction is 1.1"),
        ({"drop_fraction": -0.1}, "drop_fraction is -0.1"),
        ({"stop": -1}, "stop is -1"),
        ({"every": 10.0}, "every is 10.0"),
        ({"every": True}, "every is True"),
        ({"total_steps": 99.5}, "total_steps is 99.5"),
        ({"stop": 0.75}, "stop is 0.75; expected the last weight step with updates, a whole number"),
        ({"drop_fraction": "0.3"}, "drop_fraction is '0.3'"),
        ({"sparsity": "0.9"}, "sparsity is '0.9'"),
        ({"sparsity": None}, "sparsity is None"),
        ({"distribution": "erk"}, "distribution is 'erk'; expected regrow.uniform"),
    ],
)
def test_bad_arguments_of_dynamic_methods_are_refused(recipe, change, message) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        recipe(**({"sparsity": 0.9, "total_steps": 100} | change))


@pytest.mark.parametrize(
    "make", [regrow.static, regrow.snip, lambda sparsity: regrow.gradual_pruning(sparsity=sparsity, total_steps=2000)]
)
def test_a_sparsity_outside_the_unit_interval_is_refused(make) -> None:
    with pytest.raises(ValueError, match=r"sparsity is 1\.5"):
        make(sparsity=1.5)


@pytest.mark.parametrize("recipe", DYNAMIC)
def test_numbers_of_any_type_make_the_same_record(recipe) -> None:
    plain = recipe(sparsity=0.75, total_steps=100, every=10, drop_fraction=0.5)
    given = {"sparsity": torch.tensor(0.75), "total_steps": torch.tensor(100), "every": np.int64(10)}
    assert recipe(**given, drop_fraction=np.float32(0.5)) == plain
    assert regrow.static(sparsity=np.float32(0.75)) == regrow.static(sparsity=0.75)


def test_a_pruning_that_starts_after_it_stops_is_refused() -> None:
    with pytest.raises(ValueError, match="starts at step 700 and stops at 75"):
        regrow.gradual_pruning(sparsity=0.9, total_steps=100)


def test_an_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match="scope is 'model'"):
        regrow.snip(sparsity=0.9, scope="model")  # type: ignore[arg-type]


MAP = {"0": 0.8, "2": 0.95}


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("recipe", [regrow.gradual_pruning, regrow.snip])
@pytest.mark.parametrize("shares", [MAP, {"2": 0.95}])
def test_a_map_of_ones_own_prunes(recipe, scope, shares) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    sizes = {"0.weight": 1200, "2.weight": 600}
    sparsity = 0.85 if len(shares) == 2 else 0.8
    ramp = {"total_steps": 40, "start": 4, "every": 4} if recipe is regrow.gradual_pruning else {}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.attach(model, optimizer, recipe(sparsity=sparsity, scope=scope, distribution=shares, **ramp))
    seen = []
    for _ in range(40):
        model(torch.randn(8, 40)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        seen.append(sparsifier.sparsity)
    assert seen == sorted(seen)
    assert sparsifier.sparsity == pytest.approx(sparsity, abs=2e-3)
    if scope == "layer":
        others = {"0.weight": (sparsity * 1800 - 0.95 * 600) / 1200} if len(shares) == 1 else {"0.weight": 0.8}
        for name, share in ({"2.weight": 0.95} | others).items():
            assert 1 - sparsifier.num_alive[name] / sizes[name] == pytest.approx(share, abs=3e-3)


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_an_end_that_cannot_be_reached_is_refused_at_the_start(scope) -> None:
    model = nn.Sequential(nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 10))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for recipe in (
        regrow.gradual_pruning(sparsity=0.99999, total_steps=100, start=5, every=5, scope=scope),
        regrow.snip(sparsity=0.99999, scope=scope),
    ):
        with pytest.raises(ValueError, match="leaves 0 of 22200 weights for 2 layers, and each needs one"):
            regrow.attach(model, optimizer, recipe)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_map_that_does_not_meet_the_end_is_refused_at_the_start() -> None:
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 20))
    recipe = regrow.gradual_pruning(sparsity=0.9, total_steps=100, start=5, every=5, scope="layer", distribution=MAP)
    with pytest.raises(ValueError, match=r"cannot meet the global sparsity 0.9: it amounts to .* 0.85: pass sparsity"):
        regrow.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), recipe)
