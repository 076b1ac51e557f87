"""The width solver: exact where a width fits, closest where none does, free, and clear about the impossible."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from regrow.layers import find_layers
from regrow.procedures.small_dense import small_dense
from regrow_lab.models import MODELS


def size(model: nn.Module) -> int:
    return sum(layer.size for layer in find_layers(model).values())


def two_layers(multiplier: float) -> nn.Module:
    width = max(1, int(100 * multiplier))
    return nn.Sequential(nn.Linear(30, width), nn.ReLU(), nn.Linear(width, 20))


@given(sparsity=st.floats(0, 0.985))
def test_no_other_width_comes_closer(sparsity: float) -> None:
    found = small_dense(two_layers, sparsity)
    assert found.target == round((1 - sparsity) * 5000)
    assert found.num_weights == size(two_layers(found.multiplier))
    best = min(abs(50 * width - found.target) for width in range(1, 101))
    assert abs(found.num_weights - found.target) == best


def test_full_width_at_sparsity_zero() -> None:
    found = small_dense(two_layers, 0.0)
    assert (found.num_weights, found.target) == (5000, 5000)
    assert found.multiplier == 1


@pytest.mark.parametrize("name", ["lenet-300-100", "wrn-22-2"])
@pytest.mark.parametrize("sparsity", [0.5, 0.8, 0.9, 0.95])
def test_close_to_the_budget_and_near_the_reports_multiplier(name: str, sparsity: float) -> None:
    found = small_dense(lambda multiplier: MODELS[name](multiplier=multiplier), sparsity)
    with torch.device("meta"):
        full, small = MODELS[name](), MODELS[name](multiplier=found.multiplier)
    assert found.target == round((1 - sparsity) * size(full))
    assert found.num_weights == size(small) == pytest.approx(found.target, rel=0.02)
    if name == "wrn-22-2":  # of a LeNet it is the inputs that weigh, and they do not shrink
        assert found.multiplier == pytest.approx(math.sqrt(1 - sparsity), abs=0.01)


def test_costs_no_random_numbers_and_no_memory() -> None:
    devices = set()

    def build(multiplier: float) -> nn.Module:
        model = two_layers(multiplier)
        torch.rand(1, device="cpu")
        devices.update(parameter.device.type for parameter in model.parameters())
        return model

    before = torch.get_rng_state()
    small_dense(build, 0.5)
    assert torch.equal(torch.get_rng_state(), before)
    assert devices == {"meta"}


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5])
def test_sparsity_outside_its_range(sparsity: float) -> None:
    with pytest.raises(ValueError, match=r"expected a share of zeros in \[0, 1\)"):
        small_dense(two_layers, sparsity)


def test_no_net_is_narrow_enough() -> None:
    with pytest.raises(ValueError, match=r"leaves 45 weights.*narrowest.*50.*lower sparsity"):
        small_dense(two_layers, 0.991)
    assert small_dense(two_layers, 0.9905).num_weights == 50
