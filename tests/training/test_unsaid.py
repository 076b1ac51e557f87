"""What a strict reader of the library found unsaid: each is right now, or told in words before anything changes."""

import copy
import warnings
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from dead import both
from nets import batch, mlp, sgd, train
from torch import Tensor, nn
from torch.nn import functional as F

import regrow

BEGIN_DENSE = {
    "snip": lambda: regrow.snip(sparsity=0.8),
    "pruning": lambda: regrow.gradual_pruning(sparsity=0.8, total_steps=40, every=2, start=2),
}


@both
@pytest.mark.parametrize("recipe", BEGIN_DENSE)
@pytest.mark.parametrize("load_first", [True, False])
def test_a_sparse_net_is_not_pruned_anew_without_a_word(recipe: str, load_first: bool, storage: Any) -> None:
    model = mlp()
    optimizer = sgd(model)
    regrow.attach(model, optimizer, BEGIN_DENSE[recipe](), storage=storage)
    train(model, optimizer, range(40))
    saved, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    other = mlp(seed=3)
    its = sgd(other)

    def load() -> None:
        other.load_state_dict(saved)
        its.load_state_dict(state)

    if load_first:
        load()
    sparsifier = regrow.attach(other, its, BEGIN_DENSE[recipe](), storage="dense")
    if not load_first:
        load()
    with pytest.raises(ValueError, match=r"is sparse already.*take_masks_from_weights.*apply_masks"):
        train(other, its, range(1))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in saved.items())
    if recipe == "pruning":
        sparsifier.take_masks_from_weights()
        train(other, its, range(1))
        assert sparsifier.sparsity == pytest.approx(0.8, abs=0.01)
    else:
        sparsifier.apply_masks(other)  # anew, from the net as it is
        train(other, its, range(1))
        assert sparsifier.num_updates == 1


@pytest.mark.parametrize("recipe", BEGIN_DENSE)
def test_a_head_that_starts_at_zero_is_no_sparse_net(recipe: str) -> None:
    model = mlp()
    nn.init.zeros_(model[-1].weight)
    optimizer = sgd(model)
    regrow.attach(model, optimizer, BEGIN_DENSE[recipe]())
    train(model, optimizer, range(4))


class Cosine(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / self.weight.norm(dim=1, keepdim=True), self.bias)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.std_mean(self.weight, (1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / spread, self.bias)


class Columns(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight / self.weight.norm(dim=0), self.bias)


class Matrix(nn.Module):
    def __init__(self, features: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, features))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight, eps=0.0))


class TwoInputs(nn.Linear):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x) * scale


@both
@pytest.mark.parametrize(
    ("layer", "shape", "include"),
    [
        (lambda: Cosine(16, 40), (8, 16), None),
        (lambda: Columns(16, 40), (8, 16), None),
        (lambda: Standardised(3, 20, 3), (4, 3, 8, 8), None),
        (lambda: Standardised(4, 20, 3, groups=2), (4, 4, 8, 8), None),
        (lambda: Matrix(16, 40), (8, 16), "*weight"),
    ],
)
def test_layers_that_divide_by_a_norm_in_their_own_forward_stay_finite(
    layer: Any, shape: tuple[int, ...], include: Any, storage: Any
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(layer(), nn.ReLU())
    optimizer = sgd(model)
    before = torch.get_rng_state()
    share = 0.8 if len(shape) == 4 else 0.9
    sparsifier = regrow.attach(
        model,
        optimizer,
        regrow.rigl(sparsity=share, total_steps=40, every=2, distribution=regrow.uniform),
        storage=storage,
        include=include,
    )
    assert torch.equal(torch.get_rng_state(), before)
    for _ in range(9):
        output = model(torch.randn(shape))
        assert output.isfinite().all()
        optimizer.zero_grad()
        output.square().mean().backward()
        optimizer.step()
    assert sparsifier.num_updates >= 2


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize("kind", [TwoInputs, Doubled])
def test_a_forward_that_cannot_be_tried_or_divides_by_nothing_asks_for_no_row(kind: type[nn.Linear]) -> None:
    assert regrow.find_layers(kind(8, 6))["weight"].norm_dim is None


class Box(torch.optim.Optimizer):
    """Momentum that lies in whatever a function makes of it."""

    def __init__(self, parameters: Any, pack: Any, unpack: Any) -> None:
        super().__init__(parameters, {"lr": 0.05})
        self.pack, self.unpack = pack, unpack

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for weight in self.param_groups[0]["params"]:
            if weight.grad is not None:
                state = self.state[weight]
                if not state:
                    state["kept"] = self.pack(torch.zeros_like(weight))
                weight.sub_(self.unpack(state["kept"]).mul_(0.9).add_(weight.grad), alpha=0.05)


class Slots:
    __slots__ = ("value",)

    def __init__(self, value: Tensor) -> None:
        self.value = value


@both
@pytest.mark.parametrize(
    ("pack", "unpack"),
    [
        (lambda tensor: SimpleNamespace(inner=SimpleNamespace(value=tensor)), lambda kept: kept.inner.value),
        (lambda tensor: deque([tensor], maxlen=1), lambda kept: kept[0]),
        (Slots, lambda kept: kept.value),
        (lambda tensor: nn.ParameterList([tensor]), lambda kept: kept[0].data),
        (lambda tensor: tensor.numpy(), torch.from_numpy),
    ],
    ids=["namespaces", "deque", "slots", "parameter list", "numpy"],
)
def test_state_inside_another_object_is_found(pack: Any, unpack: Any, storage: Any) -> None:
    model = mlp()
    optimizer = Box(model.parameters(), pack, unpack)

    def begin() -> None:
        regrow.attach(model, optimizer, regrow.rigl(sparsity=0.8, total_steps=40, every=3), storage=storage)
        train(model, optimizer, range(1))

    with pytest.raises((ValueError, RuntimeError), match=r"Box keeps 'kept' of .* inside a \w+, where masks"):
        begin()


def loss(model: nn.Module, step: int) -> Tensor:
    inputs, targets = batch(step)
    return F.cross_entropy(model(inputs), targets)


@both
def test_an_optimizer_that_never_steps_is_told_of(storage: Any) -> None:
    model = mlp()
    optimizer = sgd(model)
    regrow.attach(model, optimizer, regrow.rigl(sparsity=0.8, total_steps=40, every=3))
    halves = [torch.optim.SGD(part, lr=0.01) for part in (model[0].parameters(), model[2].parameters())]

    def loop() -> None:
        for step in range(14):
            for each in (optimizer, *halves):
                each.zero_grad()
            loss(model, step).backward()
            for each in halves:
                each.step()

    with pytest.warns(UserWarning, match=r"step\(\) of the SGD .* was never called"):
        loop()


def test_gradients_that_accumulate_or_are_only_looked_at_are_no_missed_steps() -> None:
    model = mlp()
    optimizer = sgd(model)
    regrow.attach(model, optimizer, regrow.rigl(sparsity=0.8, total_steps=400, every=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for step in range(30):
            loss(model, step).backward()
        for step in range(30):
            loss(model, step).backward()
            optimizer.step()
            optimizer.zero_grad()
