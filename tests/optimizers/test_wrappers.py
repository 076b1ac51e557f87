"""Optimizers around optimizers: the weight step is counted once, and every state is found."""

import copy
from collections.abc import Callable

import pytest
import torch
from dead import assert_same, both, check_dead, loss_of, momentum_sgd, rigl
from nets import mlp, sgd, train
from torch import Tensor, nn
from torch.optim import Optimizer
from wrappers import SAM, Bare, Chain, LonelySAM, Lookahead

import regrow


def through(wrap: Callable[[Optimizer], Optimizer], inner: bool, storage: str, steps: int = 14) -> nn.Module:
    """A net trained by a wrapper, attached to it or to what it wraps."""
    model = mlp()
    base = momentum_sgd(model.parameters())
    wrapper = wrap(base)
    sparsifier = regrow.attach(model, base if inner else wrapper, rigl(), storage=storage, strict=True)
    train(model, wrapper, range(steps), lambda _: check_dead(sparsifier, base))
    assert sparsifier.num_updates == (steps - 1) // 5 + (steps % 5 == 0)
    return model


@both
@pytest.mark.parametrize(
    "wrap", [Bare, Lookahead, lambda base: Bare(Lookahead(base)), lambda base: Lookahead(Bare(base))]
)
def test_a_wrapper_trains_the_same_net_whichever_is_attached_to(wrap, storage) -> None:
    assert_same(through(wrap, False, storage), through(wrap, True, storage))


@pytest.mark.parametrize("wrap", [Bare, Lookahead])
def test_a_wrapper_trains_the_same_net_in_both_storages(wrap) -> None:
    assert_same(through(wrap, False, "dense", 9), through(wrap, False, "compact", 9), 1e-5)


@both
def test_a_bare_wrapper_changes_nothing(storage) -> None:
    model = mlp()
    optimizer = momentum_sgd(model.parameters())
    regrow.attach(model, optimizer, rigl(), storage=storage)
    train(model, optimizer, range(14))
    assert_same(through(Bare, False, storage), model)


@both
def test_state_that_a_wrapper_finds_at_attach_is_cut_and_comes_back(storage) -> None:
    model = mlp()
    base = momentum_sgd(model.parameters())
    wrapper = Lookahead(base)
    train(model, wrapper, range(4))
    sparsifier = regrow.attach(model, wrapper, rigl(), storage=storage, strict=True)
    train(model, wrapper, range(4, 12))
    check_dead(sparsifier, base, wrapper)
    sparsifier.detach()
    assert wrapper.state[model[0].weight]["slow"].shape == model[0].weight.shape
    assert base.state[model[0].weight]["momentum_buffer"].shape == model[0].weight.shape


def sam(storage: str, form: str, inner: bool, steps: int = 20) -> nn.Module:
    model = mlp()
    optimizer = SAM(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    sparsifier = regrow.attach(model, optimizer.base if inner else optimizer, rigl(), storage=storage)
    for step in range(steps):
        loss_of(model, step).backward()
        bias, updates = model[0].bias.detach().clone(), sparsifier.num_updates
        if form == "closure":
            optimizer.step(lambda step=step: loss_of(model, step).backward())
        else:
            optimizer.first_step()
            loss_of(model, step).backward()
            optimizer.second_step()
        check_dead(sparsifier, optimizer.base)
        assert torch.equal(bias, model[0].bias) == (sparsifier.num_updates > updates)
    assert sparsifier.num_updates == 4
    assert sparsifier.weight_steps == 16
    return model


@both
def test_sam_is_one_weight_step_in_every_form(storage) -> None:
    nets = [sam(storage, form, inner) for form in ("closure", "two calls") for inner in (False, True)]
    for other in nets[1:]:
        assert_same(nets[0], other)


@both
def test_sam_that_takes_the_weight_step_itself_is_refused_at_its_first(storage) -> None:
    model = mlp()
    optimizer = LonelySAM(model.parameters(), {})
    regrow.attach(model, optimizer, rigl(), storage=storage)
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match="LonelySAM moves the weights before it evaluates its closure"):
        optimizer.step(lambda: loss_of(model, 0).backward())


@both
def test_a_closure_that_is_evaluated_twice_is_refused(storage) -> None:
    class Twice(torch.optim.SGD):
        def step(self, closure=None):
            closure()
            return super().step(closure)

    model = mlp()
    optimizer = Twice(model.parameters(), lr=0.05)
    regrow.attach(model, optimizer, rigl(), storage=storage)
    with pytest.raises(RuntimeError, match="Twice evaluates its closure more than once"):
        optimizer.step(lambda: loss_of(model, 0).backward())


@both
def test_a_chain_of_optimizers_is_one_step(storage) -> None:
    def net(chained: bool) -> nn.Module:
        model = mlp()
        split = [[*model[0].parameters(), *model[2].parameters()], list(model[4].parameters())]
        parts = [momentum_sgd(parameters) for parameters in split]
        optimizer = Chain(*parts) if chained else momentum_sgd(model.parameters())
        sparsifier = regrow.attach(model, optimizer, rigl(), storage=storage, strict=True)
        train(model, optimizer, range(14), lambda _: check_dead(sparsifier, *parts))
        assert sparsifier.num_updates == 2
        return model

    assert_same(net(True), net(False))


def test_a_wrapper_without_hooks_around_several_optimizers_is_refused() -> None:
    class Loose(Chain):
        def __init__(self, *parts):
            self.parts = parts

        param_groups = property(lambda self: [group for part in self.parts for group in part.param_groups])
        state = property(lambda self: {})

    model = mlp()
    parts = [momentum_sgd(model[at].parameters()) for at in (0, 2, 4)]
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"Loose never calls super\(\).__init__\(\)"):
        regrow.attach(model, Loose(*parts), rigl())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_what_holds_an_optimizer_and_is_none_is_told_where_it_is() -> None:
    class Engine:
        def __init__(self, optimizer):
            self.optimizer = optimizer

    model = mlp()
    with pytest.raises(
        ValueError, match=r"optimizer is a Engine; expected a torch.optim.Optimizer: pass its .optimizer"
    ):
        regrow.attach(model, Engine(sgd(model)), rigl())


# A step that runs in the step of its own class, or does not end


@both
@pytest.mark.parametrize("recipe", [regrow.rigl, regrow.set_, regrow.rigl_sm])
def test_a_class_that_calls_the_step_of_its_parent_steps_once(recipe, storage) -> None:
    torch.optim.Adam([nn.Parameter(torch.zeros(1))])  # from now on the parent's step has hooks of its own

    class Own(torch.optim.Adam):
        def step(self, closure=None):
            return super().step(closure)

    nets, steps = [], []
    for kind in (torch.optim.Adam, Own):
        model = mlp()
        optimizer = kind(model.parameters(), lr=0.01)
        record = recipe(sparsity=0.8, total_steps=60, every=4)
        sparsifier = regrow.attach(model, optimizer, record, storage=storage, strict=True)
        train(model, optimizer, range(12))
        steps.append(sparsifier.weight_steps)
        nets.append(model)
    assert steps[0] == steps[1]
    assert_same(*nets)


@both
def test_a_step_that_fails_leaves_the_next_one_whole(storage) -> None:
    class Own(torch.optim.SGD):
        fails = False

        def step(self, closure=None):
            if self.fails:
                raise MemoryError
            return super().step(closure)

    nets = []
    for failing in (False, True):
        model = mlp()
        optimizer = Own(model.parameters(), lr=0.05, momentum=0.9)
        sparsifier = regrow.attach(model, optimizer, rigl(), storage=storage, strict=True)
        for step in range(12):
            loss_of(model, step).backward()
            if failing and step in (2, 3):
                optimizer.fails = True
                with pytest.raises(MemoryError):
                    optimizer.step()
                optimizer.fails = False
            optimizer.step()
            optimizer.zero_grad()
            check_dead(sparsifier, optimizer)
        assert sparsifier.num_updates == 2
        nets.append(model)
    assert_same(*nets)


@both
def test_one_optimizer_a_layer_that_steps_while_gradients_arrive(storage) -> None:
    model = mlp()
    layers = [model[at] for at in (0, 2, 4)]
    pairs = [(momentum_sgd(layer.parameters()), layer) for layer in layers]
    for optimizer, layer in pairs:

        def step(_: Tensor, optimizer: Optimizer = optimizer) -> None:
            optimizer.step()
            optimizer.zero_grad()

        layer.weight.register_post_accumulate_grad_hook(step)
    sparsifiers = [
        regrow.attach(
            model, optimizer, regrow.set_(sparsity=0.8, total_steps=60, every=4), include=name, storage=storage
        )
        for (optimizer, _), name in zip(pairs, "024", strict=True)
    ]
    for step_number in range(12):
        loss_of(model, step_number).backward()
        for sparsifier, (optimizer, _) in zip(sparsifiers, pairs, strict=True):
            check_dead(sparsifier, optimizer)
    assert [sparsifier.num_updates for sparsifier in sparsifiers] == [3, 3, 3]
