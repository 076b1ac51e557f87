"""What stays dense is listed with its size and reason, and counted in the sparsity that is shown."""

import warnings

import pytest
import torch
from nets import mlp, sgd
from torch import Tensor, nn
from torch.nn.utils import prune

import regrow
from regrow.training.coverage import dense_weights


class OwnLinear(nn.Module):
    """As the graph libraries have it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight, self.bias)


def old_weight_norm(layer: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return nn.utils.weight_norm(layer)


def reasons(model: nn.Module, attached: list[str], **options) -> dict[str, tuple[tuple[int, ...], str]]:
    return {
        name: (found.layer.shape, found.reason) for name, found in dense_weights(model, attached, **options).items()
    }


def test_every_weight_that_stays_dense_has_its_reason() -> None:
    model = nn.ModuleDict(
        {
            "table": nn.Embedding(10, 4),
            "tied": nn.Linear(4, 10, bias=False),
            "norm": nn.LayerNorm([3, 4]),
            "parametrized": nn.utils.parametrizations.weight_norm(nn.Linear(4, 6)),
            "spectral": nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6)),
            "old": old_weight_norm(nn.Conv2d(2, 3, 3)),
            "older": nn.utils.spectral_norm(nn.Linear(4, 6)),
            "pruned": prune.identity(nn.Linear(4, 7), "weight"),
            "own": OwnLinear(4, 5),
            "bilinear": nn.Bilinear(2, 3, 4),
            "left": nn.Linear(4, 4),
            "here": nn.Linear(4, 4),
            "again": nn.Linear(4, 4),
        }
    )
    model["tied"].weight = model["table"].weight
    model["again"].weight = nn.Parameter(model["here"].weight)
    own = "is not known: see include="
    assert reasons(model, ["here.weight"], exclude="left") == {
        "table.weight": ((10, 4), "embedding"),
        "norm.weight": ((3, 4), "normalisation"),
        "norm.bias": ((3, 4), "normalisation"),
        "parametrized.parametrizations.weight.original0": ((6, 1), "parametrized"),
        "parametrized.parametrizations.weight.original1": ((6, 4), "parametrized: see include="),
        "spectral.parametrizations.weight.original": ((6, 4), "parametrized: see include="),
        "old.weight_g": ((3, 1, 1, 1), "parametrized"),
        "old.weight_v": ((3, 2, 3, 3), "parametrized: see include="),
        "older.weight_orig": ((6, 4), "parametrized: see include="),
        "pruned.weight_orig": ((7, 4), "parametrized: see include="),
        "own.weight": ((5, 4), f"OwnLinear {own}"),
        "bilinear.weight": ((4, 2, 3), f"Bilinear {own}"),
        "left.weight": ((4, 4), "left out by exclude="),
    }


def test_what_a_choice_leaves_out_says_which() -> None:
    model = mlp()
    assert reasons(model, ["0.weight"], include="0") == {
        "2.weight": ((16, 24), "not named in include="),
        "4.weight": ((5, 16), "not named in include="),
    }
    sparsifier = regrow.attach(model, sgd(model), {"2": regrow.static(sparsity=0.5)}, exclude="4")
    lines = str(sparsifier).splitlines()
    assert lines[-4] == "0.weight    24x12      288  no pattern of the algorithm fits"
    assert lines[-3] == "4.weight    5x16        80  left out by exclude="
    assert lines[-2] == "sparsity 0.5000 of the 384 attached weights, 0.2553 of all 752 with two or more dimensions,"
    assert lines[-1] == "after 0 weight steps and 0 topology updates"


@pytest.mark.parametrize("storage", ["dense", "compact"])
def test_no_sparsity_is_said_of_a_net_whose_weights_stayed_dense(storage: str) -> None:
    norm = nn.utils.parametrizations.weight_norm
    model = nn.Sequential(norm(nn.Linear(16, 64)), nn.ReLU(), OwnLinear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    planned = regrow.plan(model, regrow.rigl(sparsity=0.8, total_steps=60), torch.zeros(1, 16))
    sparsifier = regrow.attach(model, sgd(model), regrow.rigl(sparsity=0.8, total_steps=60), storage=storage)
    for text in (str(sparsifier), str(planned)):
        assert "0.parametrizations.weight.original1  64x16" in text
        assert "OwnLinear is not known: see include=" in text
        assert "sparsity 0.8008 of the 512 attached weights, 0.0720 of all 5,696 with two or more" in text
        assert max(map(len, text.splitlines())) <= 100
    sparsifier.flops(torch.zeros(1, 16))
    assert f"2.weight                             64x64    4,096  {2 * 4096:,}" in str(sparsifier)
    assert list(planned.dense) == [
        "0.parametrizations.weight.original0",
        "0.parametrizations.weight.original1",
        "2.weight",
    ]


def test_a_net_whose_every_weight_is_attached_has_one_sparsity() -> None:
    model = mlp()
    text = str(regrow.attach(model, sgd(model), regrow.static(sparsity=0.5)))
    assert "left dense" not in text
    assert text.splitlines()[-1] == "sparsity 0.5000 after 0 weight steps and 0 topology updates"
