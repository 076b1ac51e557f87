"""Weights that are divided by the norm of each row keep one alive in each: never 0 / 0."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from nets import batch, mlp, sgd
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm

import regrow
from regrow.parts.patterns import channels, output_blocks
from regrow.storage.mask_bits import pack


def old_weight_norm(layer: nn.Module, **options: int | None) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer, **options)


class UnitRows(nn.Module):
    """A parametrization of one's own."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.norm(dim=1, keepdim=True)

    def right_inverse(self, weight: Tensor) -> Tensor:
        return weight


def own(layer: nn.Module) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", UnitRows())


class Dora(nn.Module):
    """DoRA as peft lays it out: magnitude · (W + B A) / |W + B A| by rows, B begins with zeros."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)
        magnitude = nn.Parameter(base.weight.detach().norm(dim=1))
        self.lora_magnitude_vector = nn.ParameterDict({"default": magnitude})

    def forward(self, x: Tensor) -> Tensor:
        weight = self.base_layer.weight + self.lora_B["default"].weight @ self.lora_A["default"].weight
        scale = self.lora_magnitude_vector["default"] / weight.norm(dim=1)
        return nn.functional.linear(x, scale.unsqueeze(1) * weight, self.base_layer.bias)


KINDS: dict[str, tuple[Callable[[nn.Linear], nn.Module], str, int]] = {
    "weight_norm": (weight_norm, "*original1", 0),
    "weight_norm by columns": (lambda layer: weight_norm(layer, dim=1), "*original1", 1),
    "older weight_norm": (old_weight_norm, "*weight_v", 0),
    "older weight_norm by columns": (lambda layer: old_weight_norm(layer, dim=1), "*weight_v", 1),
    "DoRA": (Dora, "*base_layer", 0),
    "a parametrization of one's own": (own, "*original", 0),
}
RECIPES = {
    "rigl": regrow.rigl(sparsity=0.9, total_steps=60, every=3, drop_fraction=0.9),
    "rigl-sg": regrow.rigl_sg(sparsity=0.9, total_steps=60, every=3, drop_fraction=0.9),
    "set": regrow.set_(sparsity=0.9, total_steps=60, every=3, drop_fraction=1.0),
    "snfs": regrow.snfs(sparsity=0.9, total_steps=60, every=3),
    "pruning": regrow.gradual_pruning(sparsity=0.9, total_steps=24, start=2, every=2),
    "pruning by layers": regrow.gradual_pruning(sparsity=0.9, total_steps=24, start=2, every=2, scope="layer"),
    "snip": regrow.snip(sparsity=0.9),
    "static": regrow.static(sparsity=0.9),
    "blocks": replace(regrow.rigl(sparsity=0.9, total_steps=60, every=3), pattern=output_blocks(4)),
}


def net(kind: str) -> nn.Sequential:
    torch.manual_seed(0)
    wrap = KINDS[kind][0]
    return nn.Sequential(wrap(nn.Linear(12, 64)), nn.ReLU(), wrap(nn.Linear(64, 64)), nn.ReLU(), nn.Linear(64, 5))


@pytest.mark.parametrize("storage", ["dense", "compact"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_row_dies_and_nothing_becomes_nan(kind: str, storage: str) -> None:
    dim = KINDS[kind][2]
    for name, record in RECIPES.items():
        if storage == "compact" and (name == "snfs" or kind == "DoRA"):
            continue
        model = net(kind)
        optimizer = sgd(model, lr=0.01, weight_decay=0.0)
        sparsifier = regrow.attach(model, optimizer, record, include=KINDS[kind][1], strict=True, storage=storage)
        for number in range(20):
            inputs, targets = batch(number)
            loss = nn.functional.cross_entropy(model(inputs), targets)
            assert bool(loss.isfinite()), (name, number)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            for mask in sparsifier.masks.values():
                assert bool(mask.any(dim=1 - dim).all()), (name, number)
        assert abs(sparsifier.sparsity - 0.9) < 0.01, name
        assert sparsifier.num_updates > 2 or name in ("static", "snip")


def test_masks_of_rows_that_all_live_anyway_are_as_ever() -> None:
    plain, normed = nn.Linear(40, 8), weight_norm(nn.Linear(40, 8))
    record = regrow.static(sparsity=0.5)
    one = regrow.attach(plain, sgd(plain), record)
    layers = regrow.find_layers(normed, include="*original1")
    assert next(iter(layers.values())).norm_dim == 0
    other = regrow.attach(normed, sgd(normed), record, include="*original1")
    assert one.num_alive["weight"] == other.num_alive["parametrizations.weight.original1"]


@pytest.mark.parametrize(
    ("record", "found"),
    [
        (regrow.static(sparsity=0.95), "gives '.*' 38 alive weights"),
        (regrow.gradual_pruning(sparsity=0.95, total_steps=60, start=2, every=2, scope="layer"), "38 alive weights"),
        (replace(regrow.rigl(sparsity=0.5, total_steps=60), pattern=channels), "32 alive channels"),
    ],
)
def test_a_budget_that_leaves_no_weight_for_each_row_is_refused(record: regrow.Algorithm, found: str) -> None:
    model = nn.Sequential(weight_norm(nn.Linear(12, 64)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=rf"{found}.*each of the 64 by its norm.*exclude="):
        regrow.attach(model, sgd(model), record, include="*original1")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_one_threshold_that_leaves_fewer_than_the_rows_is_refused_at_the_start() -> None:
    model = nn.Sequential(weight_norm(nn.Linear(12, 64)), nn.Linear(64, 5))
    pruning = regrow.gradual_pruning(sparsity=0.95, total_steps=60, start=2, every=2)
    with pytest.raises(ValueError, match=r"leaves 54 alive weights, and 65 are needed.*take at most 0\.94"):
        regrow.attach(model, sgd(model), pruning, include=["*original1", "1"])


def test_given_masks_and_states_with_a_dead_row_are_refused() -> None:
    model, name = nn.Sequential(weight_norm(nn.Linear(12, 64))), "0.parametrizations.weight.original1"
    mask = torch.ones(64, 12, dtype=torch.bool)
    mask[5] = False
    with pytest.raises(ValueError, match="leaves a row without an alive weight"):
        regrow.attach(model, sgd(model), regrow.from_masks({name: mask}), include="*original1")
    mask[5, 3] = True
    sparsifier = regrow.attach(model, sgd(model), regrow.from_masks({name: mask}), include="*original1")
    assert torch.equal(sparsifier.masks[name], mask)
    state, dead = sparsifier.state_dict(), mask.clone()
    dead[5, 3], dead[4, 3], dead[5, :] = False, True, False
    state["layers"][name]["mask"] = pack(dead)
    with pytest.raises(ValueError, match="has no alive weight, and is divided by its norm"):
        sparsifier.load_state_dict(state)


@pytest.mark.parametrize("wrap", [spectral_norm, orthogonal, lambda layer: weight_norm(layer, dim=None)])
def test_what_divides_by_no_norm_of_a_row_keeps_its_freedom(wrap) -> None:
    model = nn.Sequential(wrap(nn.Linear(12, 64)))
    states, generator = {name: value.clone() for name, value in model.state_dict().items()}, torch.get_rng_state()
    layers = regrow.find_layers(model, include="*original*")
    assert {layer.norm_dim for layer in layers.values()} == {None}
    assert all(torch.equal(value, states[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_plain_layers_may_lose_a_row() -> None:
    model = mlp()
    assert {layer.norm_dim for layer in regrow.find_layers(model).values()} == {None}
    mask = {name: torch.ones(layer.shape, dtype=torch.bool) for name, layer in regrow.find_layers(model).items()}
    mask["2.weight"][3] = False
    regrow.attach(model, sgd(model), regrow.from_masks(mask))
