"""Compact storage finds out by trial which optimizers work on weights as matrices; no list of names is kept."""

import copy

import pytest
import torch
from dead import assert_same, both, loss_of, rigl
from nets import mlp, sgd, train
from torch import Tensor, nn
from torch.optim import Optimizer
from wrappers import SAM, Bare, Chain, Lookahead

import regrow


class Formula(Optimizer):
    """w ← w – lr · u(g, w), for any u."""

    def __init__(self, parameters, update, lr: float = 0.05):
        super().__init__(parameters, {"lr": lr})
        self.update = update

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.sub_(self.update(parameter.grad, parameter), alpha=group["lr"])


class MuonAndAdam(Optimizer):
    """Both in one, by a mark in the group."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                momentum = state.setdefault("momentum", torch.zeros_like(parameter)).lerp_(parameter.grad, 0.1)
                if group["use_muon"]:
                    assert momentum.ndim >= 2
                    matrix = momentum / (momentum.norm() + 1e-7)
                    for _ in range(3):
                        product = matrix @ matrix.mT
                        matrix = 1.5 * matrix - 0.5 * product @ matrix
                    parameter.sub_(matrix, alpha=group["lr"])
                else:
                    square = state.setdefault("square", torch.zeros_like(parameter)).lerp_(parameter.grad.square(), 0.1)
                    parameter.sub_(momentum / (square.sqrt() + 1e-8), alpha=group["lr"])


def by_row(gradient: Tensor, _: Tensor) -> Tensor:
    return gradient / (gradient.norm(dim=-1, keepdim=True) + 1e-8)


def centred(gradient: Tensor, _: Tensor) -> Tensor:
    return (
        gradient - gradient.mean(dim=tuple(range(1, gradient.dim())), keepdim=True) if gradient.dim() > 1 else gradient
    )


def by_mean_square(gradient: Tensor, _: Tensor) -> Tensor:
    return gradient / (gradient.square().mean().sqrt() + 1e-8)


def by_rank(gradient: Tensor, _: Tensor) -> Tensor:
    return gradient * (2.0 if gradient.dim() > 1 else 1.0)


def by_place(gradient: Tensor, _: Tensor) -> Tensor:
    return gradient * torch.arange(gradient.numel()).view(gradient.shape)


def by_norms(gradient: Tensor, weight: Tensor) -> Tensor:
    """LAMB's and LARS's trust ratio: the same of the alive weights and of all."""
    return gradient * (weight.norm() + 1e-8) / (gradient.norm() + 1e-8)


def by_sign(gradient: Tensor, _: Tensor) -> Tensor:
    return gradient.sign()


def noisy(gradient: Tensor, _: Tensor) -> Tensor:
    return gradient + 0.001 * torch.randn_like(gradient)


REFUSED = [by_row, centred, by_mean_square, by_rank, by_place]
ACCEPTED = [by_norms, by_sign, noisy]


def refused(model: nn.Module, optimizer: Optimizer, message: str) -> None:
    """By a ValueError, with model, optimizer and random numbers as they were."""
    before, random = copy.deepcopy([model.state_dict(), optimizer.state_dict()]), torch.get_rng_state()
    with pytest.raises(ValueError, match=message):
        regrow.attach(model, optimizer, rigl(), storage="compact")
    after = [model.state_dict(), optimizer.state_dict()]
    assert str(after) == str(before)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize("lr", [0.05, 0.0, 1e-9])
@pytest.mark.parametrize("update", REFUSED)
def test_what_works_on_matrices_is_refused_by_trial(update, lr) -> None:
    """Also where a warm-up has the learning rate at 0."""
    model = mlp()
    refused(model, Formula(model.parameters(), update, lr), r"Formula works on weights as matrices.*storage='dense'")


@pytest.mark.parametrize("wrap", [Lookahead, lambda optimizer: Lookahead(Bare(optimizer))])
def test_it_is_found_in_a_wrapper(wrap) -> None:
    model = mlp()
    refused(model, wrap(Formula(model.parameters(), by_row)), "works on weights as matrices")


def test_muon_and_adam_in_one_optimizer_is_refused_where_muon_holds_a_sparse_weight() -> None:
    def attach(**options) -> tuple[nn.Module, Optimizer, regrow.Sparsifier]:
        model = mlp()
        others = [parameter for parameter in model.parameters() if parameter is not model[2].weight]
        groups = [
            {"params": [model[2].weight], "use_muon": True, "lr": 0.02},
            {"params": others, "use_muon": False, "lr": 0.003},
        ]
        optimizer = MuonAndAdam(groups, {})
        return model, optimizer, regrow.attach(model, optimizer, rigl(), **options)

    with pytest.raises(ValueError, match=r"MuonAndAdam works on weights as matrices.*it fails \(AssertionError"):
        attach(storage="compact")
    for options in ({}, {"storage": "compact", "exclude": "2"}):
        model, optimizer, sparsifier = attach(**options)
        train(model, optimizer, range(8))
        assert sparsifier.num_updates == 1


@pytest.mark.parametrize("update", ACCEPTED)
def test_what_works_elementwise_is_accepted(update) -> None:
    nets = []
    for storage in ("dense", "compact"):
        model = mlp()
        optimizer = Formula(model.parameters(), update)
        regrow.attach(model, optimizer, rigl(), storage=storage, strict=True)
        train(model, optimizer, range(9))
        nets.append(model)
    if update is not noisy:
        assert_same(*nets, 1e-5)


@pytest.mark.parametrize(
    "make",
    [
        lambda model: Lookahead(sgd(model)),
        lambda model: SAM(model.parameters(), torch.optim.SGD, lr=0.05),
        lambda model: Chain(sgd(model[0]), torch.optim.Adam([*model[2].parameters(), *model[4].parameters()])),
    ],
    ids=["Lookahead", "SAM", "Chain"],
)
def test_a_trial_leaves_no_trace_in_the_optimizer(make) -> None:
    model = mlp()
    optimizer = make(model)
    if "lr" in optimizer.param_groups[0]:
        torch.optim.lr_scheduler.StepLR(optimizer, 3)  # puts a step of its own into the optimizer
    weights, attributes = copy.deepcopy(model.state_dict()), set(vars(optimizer))
    regrow.attach(model, optimizer, rigl(), storage="compact").detach()
    assert set(vars(optimizer)) == attributes
    assert not optimizer.state
    assert torch.equal(model[0].bias, weights["0.bias"])


def test_what_cannot_be_tried_is_refused() -> None:
    class Locked(torch.optim.SGD):
        def __init__(self, parameters):
            super().__init__(parameters, lr=0.1)
            self.generator = (each for each in ())  # as process groups and locks, it cannot be copied

    model = mlp()
    refused(model, Locked(model.parameters()), r"Locked cannot be tried on a few numbers.*storage='dense'")


@both
def test_a_second_optimizer_that_works_on_matrices_is_refused_before_its_step_in_compact_storage(storage) -> None:
    model = mlp()
    regrow.attach(model, sgd(model), rigl(), storage=storage)
    second = Formula(model.parameters(), by_row)
    loss_of(model, 0).backward()
    before = copy.deepcopy(model.state_dict())
    if storage == "dense":
        second.step()
        assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
        return
    with pytest.raises(ValueError, match="Formula works on weights as matrices"):
        second.step()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
