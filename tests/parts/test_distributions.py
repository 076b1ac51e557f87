import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import regrow
from regrow.layers import Layer
from regrow.parts.distributions import PerLayer
from regrow.topology import unit_counts

SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(2, 40), st.integers(2, 40)),
        st.tuples(st.integers(2, 24), st.integers(2, 24), st.sampled_from([1, 3, 5]), st.sampled_from([1, 3])),
    ),
    min_size=1,
    max_size=6,
)


def layers_of(shapes: list[tuple[int, ...]]) -> dict[str, Layer]:
    return {
        f"l{i}": Layer(f"l{i}", shape, is_convolution=len(shape) == 4, is_stem=len(shape) == 4 and i == 0)
        for i, shape in enumerate(shapes)
    }


@pytest.mark.parametrize("distribution", [regrow.er, regrow.erk])
@given(shapes=SHAPES, sparsity=st.floats(0, 0.95))
def test_proportional_budgets_add_up_within_one_weight_a_layer(distribution, shapes, sparsity) -> None:
    layers = layers_of(shapes)
    size = sum(layer.size for layer in layers.values())
    if round((1 - sparsity) * size) < len(layers):
        return
    counts = distribution(layers, sparsity)
    assert list(counts) == list(layers)
    assert all(1 <= counts[name] <= layer.size for name, layer in layers.items())
    assert abs(sum(counts.values()) - (1 - sparsity) * size) <= len(layers)


@given(shapes=SHAPES, sparsity=st.floats(0, 0.9))
def test_erk_densities_follow_the_ratio_below_density_one(shapes, sparsity) -> None:
    layers = layers_of(shapes)
    if round((1 - sparsity) * sum(layer.size for layer in layers.values())) < len(layers):
        return
    counts = regrow.erk(layers, sparsity)
    epsilon = {
        name: counts[name] / layer.size / (sum(layer.shape) / math.prod(layer.shape))
        for name, layer in layers.items()
        if 1 < counts[name] < layer.size
    }
    for name, value in epsilon.items():
        for other, expected in epsilon.items():
            slack = 0.5 / sum(layers[name].shape) + 0.5 / sum(layers[other].shape)
            assert abs(value - expected) <= slack + 1e-9


def test_uniform_keeps_a_first_convolution_dense_but_not_a_first_linear() -> None:
    conv = layers_of([(8, 3, 3, 3), (16, 8, 3, 3), (10, 16)])
    assert regrow.uniform(conv, 0.9) == {"l0": 216, "l1": 115, "l2": 16}
    assert regrow.uniform(conv, 0.9, first_layer="sparse")["l0"] == 22
    linear = layers_of([(300, 64), (100, 300), (10, 100)])
    assert regrow.uniform(linear, 0.9) == {"l0": 1920, "l1": 3000, "l2": 100}
    assert regrow.uniform(linear, 0.9, first_layer="dense")["l0"] == 19_200


def test_uniform_keeps_the_first_convolution_of_the_model_dense_and_not_that_of_a_selection() -> None:
    model = torch.nn.Sequential(*(torch.nn.Conv2d(8, 8, 3) for _ in range(4)))
    layers = regrow.find_layers(model)
    assert regrow.uniform(layers, 0.9) == {"0.weight": 576, "1.weight": 58, "2.weight": 58, "3.weight": 58}
    assert regrow.uniform(regrow.find_layers(model, exclude="0"), 0.9)["1.weight"] == 58
    half = regrow.static(sparsity=0.9, distribution=regrow.uniform)
    assert list(regrow.plan(model, {"[23]": half, "*": half}).num_alive.values()) == [58, 58, 576, 58]
    scores = {name: torch.rand(8, 8, 3, 3) for name in layers}
    assert int(regrow.masks_from_scores(scores, 0.9, scope="layer")["0.weight"].sum()) == 576


def test_every_layer_keeps_at_least_one_weight() -> None:
    assert regrow.erk(layers_of([(2, 2), (100, 100)]), 0.99)["l0"] >= 1
    assert regrow.uniform(layers_of([(2, 2), (100, 100)]), 0.99)["l0"] == 1


@pytest.mark.parametrize("distribution", [regrow.uniform, regrow.er, regrow.erk, PerLayer({})])
@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_outside_the_unit_interval_is_refused(distribution, sparsity) -> None:
    with pytest.raises(ValueError, match=r"expected a share of zeros in \[0, 1\)"):
        distribution(layers_of([(4, 4)]), sparsity)


@pytest.mark.parametrize("distribution", [regrow.uniform, regrow.er, regrow.erk, PerLayer({})])
def test_a_budget_under_one_weight_a_layer_is_refused(distribution) -> None:
    with pytest.raises(ValueError, match="leaves 1 of 200 weights for 2 layers"):
        distribution(layers_of([(10, 10), (10, 10)]), 0.995)


def test_a_map_pins_layers_and_the_rest_meets_the_global_sparsity() -> None:
    layers = layers_of([(10, 10), (10, 20), (10, 30)])
    assert PerLayer({"l0": 0.0})(layers, 0.8) == {"l0": 100, "l1": 8, "l2": 12}
    assert PerLayer({"l0": 0.5, "l[12]": 0.9})(layers, 1 - 100 / 600) == {"l0": 50, "l1": 20, "l2": 30}


@given(shapes=SHAPES, pinned=st.floats(0, 0.95), rest=st.floats(0, 1), steps=st.integers(2, 40))
def test_a_map_that_can_be_met_in_the_end_can_be_met_on_the_way(shapes, pinned, rest, steps) -> None:
    """Also where the layers that it does not name end dense, or with one weight each."""
    layers = layers_of([(7, 13), *shapes])
    size, least = layers["l0"].size, 1
    left = least + round(rest * (size - least))
    named = {name: max(1, round((1 - pinned) * layer.size)) for name, layer in layers.items() if name != "l0"}
    total = sum(layer.size for layer in layers.values())
    sparsity = 1 - (sum(named.values()) + left) / total
    record = regrow.gradual_pruning(
        sparsity=sparsity, total_steps=2 * steps, every=1, start=0, stop=steps, scope="layer",
        distribution=dict.fromkeys(named, pinned),
    )  # fmt: skip
    before = {name: layer.size for name, layer in layers.items()}
    for step in range(steps + 1):
        counts = unit_counts(record, layers, record.sparsity_at(step))
        assert all(1 <= counts[name] <= before[name] for name in layers)
        assert abs(sum(counts.values()) - (1 - record.sparsity_at(step)) * total) <= len(layers)
        before = counts
    assert before == {"l0": left} | named


def test_a_map_whose_rest_is_dense_may_be_off_by_its_roundings() -> None:
    layers = layers_of([(7, 13), (10, 10)])
    assert PerLayer({"l1": 0.5})(layers, 1 - 142 / 191)["l0"] == 91  # 92 are left
    with pytest.raises(ValueError, match="leaves 94 alive weights for the 1 other layers of 91 weights"):
        PerLayer({"l1": 0.5})(layers, 1 - 144 / 191)
    with pytest.raises(ValueError, match="leaves 0 alive weights"):
        PerLayer({"l1": 0.5})(layers, 1 - 50 / 191)


def test_a_map_that_cannot_meet_the_global_sparsity_says_what_it_amounts_to() -> None:
    layers = layers_of([(10, 10), (10, 20)])
    with pytest.raises(ValueError, match=r"pass sparsity=0.5"):
        PerLayer({"l*": 0.5})(layers, 0.9)
    with pytest.raises(ValueError, match="leaves -70 alive weights"):
        PerLayer({"l0": 0.0})(layers, 0.9)
    with pytest.raises(ValueError, match="matches none of the layers"):
        PerLayer({"nosuch": 0.5})(layers, 0.9)
    with pytest.raises(ValueError, match="sparsity of 'l0'"):
        PerLayer({"l0": 1.0})(layers, 0.9)
