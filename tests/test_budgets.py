"""SET's epsilon, FLOP budgets, and the distribution that minds FLOPs."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import convnet, mlp
from torch import nn

import regrow
from regrow.flops import Flops, LayerFlops
from regrow.layers import Layer
from regrow_lab.models import MODELS


@functools.cache
def wide_resnet() -> tuple[dict[str, Layer], Flops]:
    with torch.device("meta"):
        model = MODELS["wrn-22-2"]()
    return regrow.find_layers(model), regrow.count_flops(model, torch.ones(1, 3, 32, 32))


def cost(counts: dict[str, int], layers: dict[str, Layer], flops: Flops) -> float:
    return sum(entry.dense * counts.get(n, 0) / layers[n].size for n, entry in flops.layers.items()) / flops.dense


@given(epsilon=st.integers(1, 60), shapes=st.lists(st.tuples(st.integers(2, 80), st.integers(2, 80)), min_size=1))
def test_epsilon_gives_each_linear_layer_epsilon_weights_for_each_unit(epsilon, shapes) -> None:
    layers = {f"l{i}": Layer(f"l{i}", shape) for i, shape in enumerate(shapes)}
    counts = regrow.er(layers, regrow.er_sparsity(layers, epsilon))
    assert counts == {name: min(layer.size, epsilon * sum(layer.shape)) for name, layer in layers.items()}


def test_epsilon_attaches() -> None:
    model = mlp()
    sparsity = regrow.er_sparsity(regrow.find_layers(model), 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = regrow.set_(sparsity=sparsity, total_steps=100, distribution=regrow.er)
    assert regrow.attach(model, optimizer, recipe).num_alive == {
        "0.weight": 2 * (24 + 12),
        "2.weight": 2 * (16 + 24),
        "4.weight": 2 * (5 + 16),
    }


@pytest.mark.parametrize("epsilon", [0, -1, float("nan")])
def test_an_epsilon_that_is_not_positive_is_refused(epsilon) -> None:
    with pytest.raises(ValueError, match="epsilon is"):
        regrow.er_sparsity({"a": Layer("a", (4, 4))}, epsilon)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("sparsity", [0.5, 0.9, 0.95])
def test_flop_aware_densities_follow_their_formula_and_the_weight_budget(power, sparsity) -> None:
    layers, flops = wide_resnet()
    counts = regrow.flop_aware(flops, power=power)(layers, sparsity)
    size = sum(layer.size for layer in layers.values())
    assert abs(sum(counts.values()) - (1 - sparsity) * size) <= len(layers)
    if power == 0:
        assert counts == regrow.erk(layers, sparsity)
    erk = {name: sum(layer.shape) / layer.size for name, layer in layers.items()}
    price = {name: flops.layers[name].dense / layer.size for name, layer in layers.items()}
    epsilon = [counts[n] / layers[n].size * price[n] ** power / erk[n] for n in layers if counts[n] < layers[n].size]
    assert max(epsilon) / min(epsilon) == pytest.approx(1, abs=0.02)
    dense = [erk[n] / price[n] ** power for n in layers if counts[n] == layers[n].size]
    assert all(value * max(epsilon) >= 0.98 for value in dense)


def test_the_larger_the_power_the_fewer_flops_for_as_many_weights() -> None:
    layers, flops = wide_resnet()
    shares = [cost(regrow.flop_aware(flops, power=p)(layers, 0.9), layers, flops) for p in (0.0, 0.25, 0.5, 1.0)]
    assert shares == sorted(shares, reverse=True)
    assert shares[0] == pytest.approx(0.1736, abs=1e-4)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3521, 0.9, 1.0])
@pytest.mark.parametrize("name", ["uniform", "er", "erk", "flop_aware"])
def test_a_flop_budget_is_met_and_not_passed(name, share) -> None:
    layers, flops = wide_resnet()
    distribution = regrow.flop_aware(flops) if name == "flop_aware" else getattr(regrow, name)
    sparsity = regrow.sparsity_at_flops(distribution, layers, flops, share)
    reached = cost(distribution(layers, sparsity), layers, flops)
    assert reached <= share + 1 / flops.dense
    assert reached == pytest.approx(share, abs=1e-4)


def test_erk_at_the_flops_of_its_tenth_has_a_tenth_of_the_weights() -> None:
    layers, flops = wide_resnet()
    share = cost(regrow.erk(layers, 0.9), layers, flops)
    assert regrow.sparsity_at_flops(regrow.erk, layers, flops, share) == pytest.approx(0.9, abs=1e-4)


def test_layers_that_are_left_dense_count_in_the_flop_budget() -> None:
    model = convnet()
    flops = regrow.count_flops(model, torch.ones(1, 3, 8, 8))
    layers = regrow.find_layers(model, exclude="0")
    first = flops.layers["0.weight"].dense / flops.dense
    even = functools.partial(regrow.uniform, first_layer="sparse")
    sparsity = regrow.sparsity_at_flops(even, layers, flops, 0.8)
    assert first + (1 - first) * (1 - sparsity) == pytest.approx(0.8, abs=1e-3)
    with pytest.raises(ValueError, match=r"share 0.3 is less than the net costs"):
        regrow.sparsity_at_flops(regrow.erk, layers, flops, 0.3)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_a_share_outside_its_range_is_refused(share) -> None:
    layers, flops = wide_resnet()
    with pytest.raises(ValueError, match="share is"):
        regrow.sparsity_at_flops(regrow.erk, layers, flops, share)


def test_a_power_below_zero_and_a_layer_without_flops_are_refused() -> None:
    flops = Flops(8, 8, {"a": LayerFlops(8, 8)})
    with pytest.raises(ValueError, match="power is -1"):
        regrow.flop_aware(flops, power=-1)
    with pytest.raises(ValueError, match="no FLOPs are counted for layer 'b'"):
        regrow.flop_aware(flops)({"a": Layer("a", (2, 2)), "b": Layer("b", (2, 2))}, 0.5)


def test_a_flop_budget_trains() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 64, 5))
    flops = regrow.count_flops(model, torch.ones(1, 3, 8, 8))
    distribution = regrow.flop_aware(flops)
    sparsity = regrow.sparsity_at_flops(distribution, regrow.find_layers(model), flops, 0.25)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recipe = regrow.rigl(sparsity=sparsity, total_steps=100, distribution=distribution)
    sparsifier = regrow.attach(model, optimizer, recipe)
    counted = regrow.count_flops(model, torch.ones(1, 3, 8, 8), sparsifier.masks)
    assert counted.sparse / counted.dense == pytest.approx(0.25, abs=0.002)
