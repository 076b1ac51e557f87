"""Attached with compact storage: the same masks, weights and optimizer state as with dense storage, of size nnz."""

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from nets import batch, convnet, mlp, sgd, train
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow
from regrow.compaction.compact_modules import CompactLayer

ARGUMENTS: Any = {"sparsity": 0.8, "total_steps": 40, "every": 5}
RECIPES = {
    "static": regrow.static(sparsity=0.8),
    "set": regrow.set_(**ARGUMENTS),
    "rigl": regrow.rigl(**ARGUMENTS),
    "rigl-sg": regrow.rigl_sg(**ARGUMENTS),
    "rigl-sm": regrow.rigl_sm(**ARGUMENTS),
    "pruning": regrow.gradual_pruning(start=5, **ARGUMENTS),
    "snip": regrow.snip(sparsity=0.8),
}
OPTIMIZERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.05),
    "nesterov": lambda model: sgd(model, nesterov=True),
    "adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3),
    "rprop": lambda model: torch.optim.Rprop(model.parameters()),
    "adagrad": lambda model: torch.optim.Adagrad(model.parameters(), initial_accumulator_value=0.1),
}


def attached(
    storage: str, recipe: str = "rigl", optimizer: str = "nesterov", build: Callable[[], nn.Module] = mlp, seed: int = 0
) -> tuple[nn.Module, Optimizer, regrow.Sparsifier]:
    model = build()
    made = OPTIMIZERS[optimizer](model)
    sparsifier = regrow.attach(model, made, RECIPES[recipe], storage=storage, strict=True, seed=seed)  # type: ignore[arg-type]
    return model, made, sparsifier


def equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    return left == right


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_both_storages_agree_bit_for_bit_where_torch_does_the_sums(recipe: str, optimizer: str) -> None:
    states = []
    for storage in ("dense", "compact"):
        model, made, sparsifier = attached(storage, recipe, optimizer)
        train(model, made, range(40))
        saved = sparsifier.state_dict()
        assert bool(saved.pop("storage")) == (storage == "compact")
        states.append((model.state_dict(), sparsifier.masks, saved, made.state_dict()))
    for dense, compact in zip(*states, strict=True):
        assert equal(dense, compact)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_convolutional_net_agrees_too(recipe: str) -> None:
    states = []
    for storage in ("dense", "compact"):
        model, made, sparsifier = attached(storage, recipe, build=convnet)
        train(model, made, range(40), shape=(8, 3, 8, 8))
        states.append((model.state_dict(), sparsifier.masks, made.state_dict()))
    for dense, compact in zip(*states, strict=True):
        assert equal(dense, compact)


def test_the_weights_of_a_channels_last_model_may_lie_in_another_order(runs_engine: None) -> None:
    outcomes = []
    for storage in ("dense", "compact"):
        model, made, _ = attached(storage, build=lambda: convnet().to(memory_format=torch.channels_last))
        train(model, made, range(10), shape=(8, 3, 8, 8))
        outcomes.append(model.state_dict())
    for name, weight in outcomes[0].items():
        torch.testing.assert_close(outcomes[1][name], weight, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("recipe", ["static", "rigl-sg", "snip", "pruning"])
def test_everything_is_of_the_size_of_the_alive_weights(recipe: str) -> None:
    model, optimizer, sparsifier = attached("compact", recipe)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in mlp().named_parameters()]
    train(model, optimizer, range(39))
    inputs, targets = batch(39)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    compact = 0
    for name, count in sparsifier.num_alive.items():
        module, parameter = model.get_submodule(name.rpartition(".")[0]), model.get_parameter(name)
        if isinstance(module, CompactLayer):
            compact += 1
            assert parameter.grad is not None
            sizes = {parameter.shape, parameter.grad.shape, optimizer.state[parameter]["momentum_buffer"].shape}
            assert sizes == {module.compact.indices.shape} == {(count,)}
            assert module.compact.dense_gradient is None
        else:
            assert sparsifier.densities[name] > 0.5
    assert compact >= 2


def test_pruning_and_snip_go_compact_once_they_are_sparse_enough() -> None:
    for recipe in ("pruning", "snip"):
        model, optimizer, sparsifier = attached("compact", recipe)
        assert not any(isinstance(module, CompactLayer) for module in model.modules())
        assert str(sparsifier).count("dense: no weight is dead") == 3
        train(model, optimizer, range(40))
        assert any(isinstance(module, CompactLayer) for module in model.modules())
        assert "compact" in str(sparsifier)


@pytest.mark.parametrize("order", ["mos", "som", "osm", "smo"])
@pytest.mark.parametrize(("before", "after"), [("compact", "compact"), ("compact", "dense"), ("dense", "compact")])
def test_a_resumed_run_is_bit_identical_in_either_storage_whatever_is_loaded_first(
    before: str, after: str, order: str
) -> None:
    model, optimizer, sparsifier = attached(before, "rigl-sm", "nesterov")
    train(model, optimizer, range(16))
    file = io.BytesIO()
    torch.save({"m": model.state_dict(), "o": optimizer.state_dict(), "s": sparsifier.state_dict()}, file)
    train(model, optimizer, range(16, 40))
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    other, its_optimizer, its_sparsifier = attached(after, "rigl-sm", "nesterov", seed=7)
    targets = {"m": other, "o": its_optimizer, "s": its_sparsifier}
    for letter in order:
        targets[letter].load_state_dict(saved[letter])
    train(other, its_optimizer, range(16, 40))
    assert equal(other.state_dict(), model.state_dict())
    assert equal(its_sparsifier.masks, sparsifier.masks)
    assert equal(its_optimizer.state_dict(), optimizer.state_dict())


def test_own_momentum_is_kept_across_storages() -> None:
    model, optimizer, sparsifier = attached("compact", "rigl-sm", "sgd")
    train(model, optimizer, range(12))
    other, its_optimizer, its_sparsifier = attached("dense", "rigl-sm", "sgd", seed=3)
    its_sparsifier.load_state_dict(sparsifier.state_dict())
    other.load_state_dict(model.state_dict())
    for each, its in ((model, optimizer), (other, its_optimizer)):
        train(each, its, range(12, 40))
    assert equal(other.state_dict(), model.state_dict())


def test_detach_leaves_a_plain_dense_model_that_trains_on() -> None:
    model, optimizer, sparsifier = attached("compact", optimizer="adamw")
    parameters = list(model.parameters())
    train(model, optimizer, range(12))
    before, masks = model.state_dict(), sparsifier.masks
    inputs, targets = batch(12)
    nn.functional.cross_entropy(model(inputs), targets).backward()
    expected = model(inputs)
    sparsifier.detach()
    sparsifier.detach()
    assert [type(module) for module in model.modules()] == [type(module) for module in mlp().modules()]
    assert equal(dict(model.state_dict()), dict(before))
    assert torch.equal(model(inputs), expected)
    assert all(ours is theirs for ours, theirs in zip(model.parameters(), parameters, strict=True))
    for name, mask in masks.items():
        parameter = model.get_parameter(name)
        assert parameter.shape == mask.shape == optimizer.state[parameter]["exp_avg"].shape
        assert parameter.grad is not None
        assert not parameter.grad[~mask].any() or "dense" in str(sparsifier)
    train(model, optimizer, range(12, 14))
    assert "forward" not in vars(model)


def test_a_factory_makes_the_optimizer() -> None:
    model = mlp()
    sparsifier = regrow.attach(model, lambda p: torch.optim.SGD(p, lr=0.1), RECIPES["rigl"], storage="compact")
    train(model, sparsifier.optimizer, range(8))
    assert sparsifier.num_updates == 1


def test_parameter_groups_keep_their_roles() -> None:
    states = []
    for storage in ("dense", "compact"):
        model = mlp()
        decayed = [p for p in model.parameters() if p.dim() > 1]
        rest = [p for p in model.parameters() if p.dim() == 1]
        optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": 0.1}, {"params": rest}], lr=0.1)
        regrow.attach(model, optimizer, RECIPES["rigl"], storage=storage)
        train(model, optimizer, range(20))
        states.append(model.state_dict())
    assert equal(*states)


def test_an_optimizer_that_has_run_already_keeps_its_state() -> None:
    states = []
    for storage in ("dense", "compact"):
        model = mlp()
        optimizer = OPTIMIZERS["adamw"](model)
        train(model, optimizer, range(3))
        regrow.attach(model, optimizer, RECIPES["rigl"], storage=storage)
        train(model, optimizer, range(3, 20))
        states.append((model.state_dict(), optimizer.state_dict()))
    assert equal(*states)


def test_micro_batches_clipping_and_closures_agree() -> None:
    states = []
    for storage in ("dense", "compact"):
        model, optimizer, sparsifier = attached(storage)
        for step in range(24):
            for part in range(2):
                inputs, targets = batch(2 * step + part)
                (nn.functional.cross_entropy(model(inputs), targets) / 2).backward()
            if sparsifier.weight_steps % 5:
                nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
        states.append((model.state_dict(), sparsifier.masks))
    (dense, masks), (compact, others) = states
    assert equal(masks, others)
    for name in dense:
        torch.testing.assert_close(dense[name], compact[name])


def test_gradients_thrown_away_before_an_update_do_not_count() -> None:
    states = []
    for storage in ("dense", "compact"):
        model, optimizer, sparsifier = attached(storage)
        for step in range(12):
            for _ in range(2):
                optimizer.zero_grad(set_to_none=step % 2 == 0)
                inputs, targets = batch(step + 100 * _)
                nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
        states.append((model.state_dict(), sparsifier.masks))
    assert equal(*states)


def _attack(model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    inputs = inputs.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), targets), inputs)
    return (inputs + 0.3 * gradient.sign()).detach()


def _saliency(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    nn.functional.cross_entropy(model(inputs), targets).backward()
    _attack(model, 2 * inputs, targets)


def _adversarial(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    for part in (inputs, -inputs):
        nn.functional.cross_entropy(model(_attack(model, part, targets)), targets).backward()


def _frozen_later(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    nn.functional.cross_entropy(model(inputs), targets).backward()
    model.requires_grad_(False)
    model(inputs.clone().requires_grad_()).sum().backward()
    model.requires_grad_(True)


def _last_layer_alone(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    nn.functional.cross_entropy(model(inputs), targets).backward()
    nn.functional.cross_entropy(model(-inputs), targets).backward(inputs=[list(model.parameters())[-1]])


def _filled_by_hand(model: nn.Module, inputs: Tensor, targets: Tensor) -> None:
    parameters = list(model.parameters())
    losses = (nn.functional.cross_entropy(model(x), targets) for x in (inputs, -inputs))
    found = [torch.autograd.grad(loss, parameters) for loss in losses]
    for parameter, one, other in zip(parameters, *found, strict=True):
        parameter.grad = one + other


@pytest.mark.parametrize("backward", [_saliency, _adversarial, _frozen_later, _last_layer_alone, _filled_by_hand])
def test_only_gradients_that_reach_the_parameters_count(backward: Callable[..., None]) -> None:
    states = []
    for storage in ("dense", "compact"):
        model, optimizer, sparsifier = attached(storage)
        for step in range(12):
            backward(model, *batch(step))
            optimizer.step()
            optimizer.zero_grad()
        assert sparsifier.num_updates == 2
        states.append((model.state_dict(), sparsifier.masks))
    assert equal(*states)


@pytest.mark.parametrize("recipe", ["rigl", "rigl-sg"])
def test_a_backward_pass_from_before_an_update_is_refused(recipe: str) -> None:
    model, optimizer, sparsifier = attached("compact", recipe)
    while not sparsifier.num_updates:
        kept = model(batch(0)[0]).sum()
        train(model, optimizer, range(1))
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        kept.backward()


def test_a_copy_made_when_an_update_is_due_collects_nothing() -> None:
    model, optimizer, _ = attached("compact")
    train(model, optimizer, range(5))
    nn.functional.cross_entropy(model(batch(5)[0]), batch(5)[1]).backward()
    found = [
        [module.compact.dense_gradient for module in each.modules() if isinstance(module, CompactLayer)]
        for each in (model, copy.deepcopy(model))
    ]
    assert len(found[0]) == 3
    assert all(found[0])
    assert found[1] == []  # it is dense


def test_a_copy_takes_the_pattern() -> None:
    model, optimizer, sparsifier = attached("compact")
    ema = torch.optim.swa_utils.AveragedModel(model)
    shadow = copy.deepcopy(model)
    dense = mlp()
    train(model, optimizer, range(8))
    for other in (ema, shadow, dense):
        sparsifier.apply_masks(other)
        inner = other.module if other is ema else other
        for name, mask in sparsifier.masks.items():
            assert not inner.state_dict()[name][~mask].any()
    with pytest.raises(ValueError, match="does not fit"):
        sparsifier.apply_masks(convnet())


def test_refusals_name_the_way_out() -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"Adafactor works on weights as matrices.*storage='dense'"):
        regrow.attach(model, torch.optim.Adafactor(model.parameters()), RECIPES["rigl"], storage="compact")
    with pytest.raises(ValueError, match=r"snfs.*dense gradient.*storage='dense'"):
        regrow.attach(model, sgd(model), regrow.snfs(**ARGUMENTS), storage="compact")
    with pytest.raises(ValueError, match="expected 'dense' or 'compact'"):
        regrow.attach(model, sgd(model), RECIPES["rigl"], storage="csr")  # type: ignore[arg-type]
    other, optimizer, sparsifier = attached("compact")
    with pytest.raises(ValueError, match="detach"):
        regrow.attach(other, optimizer, RECIPES["rigl"], storage="compact")
    with pytest.raises(ValueError, match="detach"):
        regrow.to_dense(other)
    masks = sparsifier.masks
    sparsifier.detach()
    regrow.compact(other, masks)
    with pytest.raises(ValueError, match=r"compact already.*to_dense"):
        regrow.attach(other, optimizer, RECIPES["rigl"])
    with pytest.raises(ValueError, match="DataParallel"):
        regrow.attach(nn.DataParallel(model), sgd(model), RECIPES["rigl"], storage="compact")
    assert equal(model.state_dict(), mlp().state_dict())


@pytest.mark.parametrize("norm", [nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm])
def test_a_weight_that_is_computed_is_refused_until_it_is_a_parameter_again(norm: Callable[[nn.Module], None]) -> None:
    model, optimizer, sparsifier = attached("compact")
    layer = next(module for module in model.modules() if isinstance(module, CompactLayer))
    dense = model.state_dict()
    norm(layer)
    with pytest.raises(RuntimeError, match=r"computed from other parameters now.*storage='dense'"):
        train(model, optimizer, range(1))
    with pytest.raises(RuntimeError, match="take that off again"):
        sparsifier.detach()
    if norm is nn.utils.spectral_norm:
        nn.utils.remove_spectral_norm(layer)
    else:
        nn.utils.parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    sparsifier.detach()
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in dense.items()
    }
    train(model, sgd(model), range(1))


def trained_in_both(build: Callable[[], nn.Module]) -> tuple[nn.Module, str]:
    """The compact model and its table, after a training in which the storages have agreed bit for bit."""
    states = []
    for storage in ("dense", "compact"):
        torch.manual_seed(0)
        model = build()
        optimizer = sgd(model)
        recipe = regrow.rigl(**ARGUMENTS, distribution=regrow.uniform)
        sparsifier = regrow.attach(model, optimizer, recipe, storage=storage, strict=True)  # type: ignore[arg-type]
        train(model, optimizer, range(20))
        states.append((model.state_dict(), sparsifier.masks))
    assert equal(*states)
    return model, str(sparsifier)


def test_tied_weights_and_unknown_modules_stay_dense() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
            self.second.weight = self.first.weight
            self.gru, self.last = nn.GRU(12, 8, batch_first=True), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.gru(self.second(self.first(x)).unsqueeze(1))[0][:, 0])

    model, table = trained_in_both(Net)
    assert "its weight is shared with another module" in table
    assert "GRU has no compact form" in table
    assert isinstance(model.last, CompactLayer)


class _Tied(nn.Module):
    """An autoencoder whose decoder reads its encoder's weight, a penalty in the forward, and a block in a list."""

    def __init__(this) -> None:  # noqa: N805  # a first argument may have any name
        super().__init__()
        this.encoder, this.inner, this.last = nn.Linear(12, 16), nn.ModuleList([nn.Linear(12, 12)]), nn.Linear(12, 5)
        nn.init.zeros_(this.last.weight)

    def decoded(this, x: Tensor) -> Tensor:  # noqa: N805
        return nn.functional.linear(x, this.encoder.weight.t())

    def forward(this, x: Tensor) -> Tensor:  # noqa: N805
        x = this.decoded(torch.relu(this.encoder(x.to(this.last.weight.dtype))))
        return this.last(x) * (1 + this.inner[0].weight.square().mean())


class _Encoder(nn.Sequential):
    def __init__(self) -> None:
        layer = nn.TransformerEncoderLayer(12, 2, 16, dropout=0.0, batch_first=True)
        super().__init__(nn.Unflatten(1, (1, 12)), layer, nn.Flatten(), nn.Linear(12, 5))


@pytest.mark.parametrize(
    ("build", "dense"),
    [(_Tied, {"encoder", "inner.0"}), (_Encoder, {"1.linear1", "1.linear2", "1.self_attn.out_proj"})],
)
def test_weights_that_a_forward_reads_stay_dense(build: Callable[[], nn.Module], dense: set[str]) -> None:
    model, table = trained_in_both(build)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    assert {name for name in linear if not isinstance(model.get_submodule(name), CompactLayer)} == dense
    assert "reads its weight" in table


def test_the_table_and_flops_know_both_storages() -> None:
    tables = []
    for storage in ("dense", "compact"):
        model, _, sparsifier = attached(storage)
        flops = sparsifier.flops(torch.randn(1, 12))
        tables.append((flops.sparse, flops.dense))
        assert ("storage" in str(sparsifier)) == (storage == "compact")
        assert regrow.find_layers(model) == regrow.find_layers(mlp())
    assert tables[0] == tables[1]
