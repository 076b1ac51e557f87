"""State that no mask reaches is refused by name, at attach or at the first step; quantised state is masked."""

import copy

import pytest
import torch
from dead import both, check_dead, loss_of, rigl
from nets import mlp, train
from torch import Tensor, nn
from wrappers import Keeper

import regrow


def slow_weights(optimizer: Keeper) -> None:
    optimizer.slow = [parameter.detach().clone() for parameter in optimizer.held()]


def flat_buffer(optimizer: Keeper) -> None:
    optimizer.flat = torch.zeros(sum(parameter.numel() for parameter in optimizer.held()))


def of_a_group(optimizer: Keeper) -> None:
    optimizer.param_groups[0]["buffers"] = [torch.zeros_like(parameter) for parameter in optimizer.held()]


def by_name(optimizer: Keeper) -> None:
    optimizer.state["all"] = {str(at): torch.zeros_like(parameter) for at, parameter in enumerate(optimizer.held())}


def codes(optimizer: Keeper) -> None:
    for parameter in optimizer.held():
        optimizer.state[parameter]["state1"] = torch.zeros(parameter.shape, dtype=torch.uint8)


def listed(optimizer: Keeper) -> None:
    for parameter in optimizer.held():
        optimizer.state[parameter]["history"] = [torch.zeros_like(parameter)]


def flattened(optimizer: Keeper) -> None:
    for parameter in optimizer.held():
        optimizer.state[parameter]["exp_avg"] = torch.zeros(parameter.numel())


ODD = {
    slow_weights: "Keeper keeps 'slow', of the shape of",
    flat_buffer: "Keeper keeps 'flat', as long as all of its weights",
    of_a_group: "Keeper keeps 'buffers' of a group, of the shape of",
    by_name: "Keeper keeps 'all' in .state, of the shape of",
    codes: "Keeper keeps 'state1' of '0.weight' as torch.uint8",
    listed: "Keeper keeps 'history' of '0.weight' inside a list",
    flattened: "Keeper keeps 'exp_avg' of '0.weight' of shape",
}


@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_state_that_no_mask_reaches_is_refused_after_the_first_step(make) -> None:
    model = mlp()
    optimizer = Keeper(model.parameters(), make)
    sparsifier = regrow.attach(model, optimizer, rigl())
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match=ODD[make]):
        optimizer.step()
    check_dead(sparsifier)


@both
@pytest.mark.parametrize("make", ODD, ids=lambda make: make.__name__)
def test_state_that_no_mask_reaches_is_refused_at_attach(make, storage) -> None:
    model = mlp()
    optimizer = Keeper(model.parameters(), make)
    train(model, optimizer, range(1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=ODD[make]):
        regrow.attach(model, optimizer, rigl(), storage=storage)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("make", [make for make in ODD if make is not flattened], ids=lambda make: make.__name__)
def test_compact_storage_refuses_it_by_trial_before_there_is_any(make) -> None:
    model = mlp()
    with pytest.raises(ValueError, match=ODD[make]):
        regrow.attach(model, Keeper(model.parameters(), make), rigl(), storage="compact")


@both
def test_state_that_appears_late_is_refused_before_the_pattern_moves(storage) -> None:
    model = mlp()
    optimizer = Keeper(model.parameters(), lambda _: None)
    sparsifier = regrow.attach(model, optimizer, rigl(), storage=storage)
    train(model, optimizer, range(2))
    slow_weights(optimizer)
    masks = sparsifier.masks
    train(model, optimizer, range(2, 4))
    loss_of(model, 4).backward()
    with pytest.raises(RuntimeError, match="Keeper keeps 'slow'"):
        optimizer.step()
    assert all(torch.equal(mask, masks[name]) for name, mask in sparsifier.masks.items())


def test_what_an_optimizer_keeps_of_something_else_is_no_obstacle() -> None:
    model = mlp()
    optimizer = Keeper(model.parameters(), lambda _: None)
    optimizer.mine = {"parameters": list(model.parameters()), "views": [p.data for p in model.parameters()]}
    optimizer.losses, optimizer.rate = torch.zeros(100), torch.tensor(0.1)
    sparsifier = regrow.attach(model, optimizer, rigl(), strict=True)
    train(model, optimizer, range(6))
    assert sparsifier.num_updates == 1


def test_a_preconditioner_that_has_a_weight_s_shape_is_left_whole() -> None:
    class Preconditioned(torch.optim.SGD):
        def step(self, closure=None):
            for parameter in self.param_groups[0]["params"]:
                left = self.state[parameter].setdefault("left", torch.eye(len(parameter)) + 0.1)
                left.add_(0.01)
            return super().step(closure)

    model = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5))
    optimizer = Preconditioned(model.parameters(), lr=0.05)
    regrow.attach(model, optimizer, rigl(), strict=True)
    train(model, optimizer, range(6))
    assert bool((optimizer.state[model[2].weight]["left"] > 0.1).all())


class Codes(Tensor):
    """Numbers kept in sixteenths: a tensor subclass that has no memory of the numbers themselves."""

    @staticmethod
    def __new__(cls, codes: Tensor, holds_zero: bool = True) -> "Codes":
        made = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.offset = codes, 0.0 if holds_zero else 1 / 32
        return made

    def dequantize(self) -> Tensor:
        return self.codes.float() / 16 + self.offset

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.copy_.default:
            args[0].codes.copy_((args[1] * 16).round())
            return args[0]
        if function is torch.ops.aten.detach.default:
            return Codes(args[0].codes)
        raise NotImplementedError(f"{function} of Codes")


class CodedMomentum(torch.optim.Optimizer):
    def __init__(self, parameters, holds_zero: bool = True):
        super().__init__(parameters, {"momentum": 0.9})
        self.holds_zero = holds_zero

    @torch.no_grad()
    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            if parameter.grad is not None:
                state = self.state[parameter]
                if not state:
                    state["momentum_buffer"] = Codes(torch.zeros(parameter.shape, dtype=torch.int8), self.holds_zero)
                momentum = state["momentum_buffer"].dequantize() * 0.9 + parameter.grad
                state["momentum_buffer"].copy_(momentum)
                parameter.sub_(momentum, alpha=0.05)


@pytest.mark.parametrize("recipe", [regrow.rigl, regrow.rigl_sm])
def test_quantised_state_is_zeroed_where_weights_die(recipe) -> None:
    model = mlp()
    optimizer = CodedMomentum(model.parameters())
    record = recipe(sparsity=0.8, total_steps=60, every=4)
    sparsifier = regrow.attach(model, optimizer, record, strict=True)
    for step in range(14):
        train(model, optimizer, range(step, step + 1))
        for name, mask in sparsifier.masks.items():
            assert not optimizer.state[model.get_parameter(name)]["momentum_buffer"].codes[~mask].any()
    assert sparsifier.num_updates >= 2


def test_quantised_state_that_cannot_be_0_is_refused() -> None:
    model = mlp()
    optimizer = CodedMomentum(model.parameters(), holds_zero=False)
    regrow.attach(model, optimizer, rigl())
    with pytest.raises(RuntimeError, match="as a Codes, which cannot hold an exact 0"):
        train(model, optimizer, range(1))


def test_quantised_state_is_refused_in_compact_storage() -> None:
    model = mlp()
    optimizer = CodedMomentum(model.parameters())
    for _ in range(2):  # by trial, and by the state that is there
        with pytest.raises(ValueError, match=r"as a Codes, which cannot be cut down.*storage='dense'"):
            regrow.attach(model, optimizer, rigl(), storage="compact")
        train(model, optimizer, range(1))
