"""SET's epsilon, FLOP budgets, and the distribution that minds FLOPs."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import convnet, mlp
from torch import nn

import regrow
from regrow.accounting.flops import Flops, LayerFlops
from regrow.layers import Layer
from regrow.parts.distributions import Convolutions, PerLayer
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


@pytest.mark.parametrize("pins", [{"0": 0.5}, {"0": 0.0, "2": 0.9}, {"[02]": 0.99}])
@pytest.mark.parametrize("share", [0.2, 0.4, 0.7])
def test_a_map_meets_a_flop_budget_or_says_what_it_costs(pins, share) -> None:
    model = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    layers, flops = regrow.find_layers(model), regrow.count_flops(model, torch.zeros(1, 64))
    least, most = (total / flops.dense for total in (2 * k for k in PerLayer(pins).bounds(layers)))
    if share < least:
        with pytest.raises(
            ValueError, match=f"share {share} is less than the net costs with the fewest .*, {least:.6g}"
        ):
            regrow.sparsity_at_flops(pins, layers, flops, share)
        return
    sparsity = regrow.sparsity_at_flops(pins, layers, flops, share)
    counts = PerLayer(pins)(layers, sparsity)
    assert cost(counts, layers, flops) == pytest.approx(min(share, most), abs=1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert regrow.attach(model, optimizer, regrow.static(sparsity=sparsity, distribution=pins)).num_alive == counts


def test_a_map_of_every_layer_has_one_cost() -> None:
    layers = {"a": Layer("a", (10, 10)), "b": Layer("b", (10, 10))}
    flops = Flops(400, 400, {name: LayerFlops(200, 200) for name in layers})
    assert regrow.sparsity_at_flops({"a": 0.5, "b": 0.9}, layers, flops, 0.5) == pytest.approx(0.7)
    with pytest.raises(
        ValueError, match=r"share 0\.2 is less than the net costs with the fewest .*, 0\.3: ask for more"
    ):
        regrow.sparsity_at_flops({"a": 0.5, "b": 0.9}, layers, flops, 0.2)
    with pytest.raises(ValueError, match="pattern 'nosuch' matches none"):
        regrow.sparsity_at_flops({"nosuch": 0.5}, layers, flops, 0.5)


def test_sparsities_that_a_distribution_refuses_are_not_taken() -> None:
    """Of convolutions alone: one weight a layer of all is less than one for each of them."""
    layers = {"a": Layer("a", (10, 10, 1, 1), True), "b": Layer("b", (10, 10, 1, 1), True), "c": Layer("c", (40, 40))}
    flops = Flops(3600, 3600, {name: LayerFlops(2 * layer.size, 2 * layer.size) for name, layer in layers.items()})
    convolutions = Convolutions(regrow.er)
    sparsity = regrow.sparsity_at_flops(convolutions, layers, flops, 0.95)
    assert cost(convolutions(layers, sparsity), layers, flops) == pytest.approx(0.95, abs=1e-2)
    with pytest.raises(ValueError, match=r"share 0\.5 is less than the net costs with the fewest weights"):
        regrow.sparsity_at_flops(convolutions, layers, flops, 0.5)


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
