"""In compact storage RigL grows by the gradient that .grad holds, however it came there, or says that it cannot."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compaction.test_storage import equal
from hypothesis import given
from hypothesis import strategies as st
from nets import batch, mlp, sgd
from torch import Tensor, nn

import regrow
from regrow.compaction import dense_gradient
from regrow.compaction.gradient_combination import Equations, Part, Source, explain

EVERY, STEPS = 3, 8
Fill = Callable[[nn.Module, regrow.Sparsifier, int], None]
"""Puts the gradients of a step into .grad."""


def data(model: nn.Module, step: int) -> tuple[Tensor, Tensor]:
    inputs, targets = batch(step)
    return inputs.to(next(model.parameters()).dtype), targets


def loss_of(model: nn.Module, step: int, rows: slice = slice(None)) -> Tensor:
    inputs, targets = data(model, step)
    return nn.functional.cross_entropy(model(inputs[rows]), targets[rows])


def attached(storage: Any, build: Callable[[], nn.Module] = mlp) -> tuple[nn.Module, torch.optim.Optimizer, Any]:
    model = build()
    optimizer = sgd(model, weight_decay=0.0)
    recipe = regrow.rigl(sparsity=0.8, total_steps=100, every=EVERY, distribution=regrow.uniform)
    return model, optimizer, regrow.attach(model, optimizer, recipe, storage=storage)


def run(fill: Fill, storage: str, build: Callable[[], nn.Module] = mlp) -> regrow.Sparsifier:
    model, optimizer, sparsifier = attached(storage, build)
    for step in range(STEPS):
        fill(model, sparsifier, step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
    assert sparsifier.num_updates == 2
    return sparsifier


def alive(model: nn.Module, sparsifier: regrow.Sparsifier) -> list[Tensor]:
    """The gradients of alive weights, which compact storage has alone; a user sees both storages' own in .grad."""
    found = []
    for name, parameter in model.named_parameters():
        mask = sparsifier.masks.get(name)
        whole = mask is None or parameter.grad.shape != mask.shape
        found.append(parameter.grad if whole else parameter.grad[mask])
    return found


def passes(model: nn.Module, step: int, number: int = 4) -> list[list[Tensor]]:
    """Gradients of parts of a batch, one backward pass each with zero_grad between."""
    found = []
    for part in range(number):
        model.zero_grad(set_to_none=part % 2 == 0)
        loss_of(model, step, slice(part, None, number)).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    return found


def put(model: nn.Module, gradients: list[list[Tensor]], factors: list[float]) -> None:
    for parameter, *parts in zip(model.parameters(), *gradients, strict=True):
        parameter.grad = sum(factor * part for factor, part in zip(factors, parts, strict=True))


def weighted_sum_of_passes(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    put(model, passes(model, step), [1.0, 0.3, -0.2, 2.0])


def cached_and_copied_back_in_place(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    found = passes(model, step)
    for parameter, *parts in zip(model.parameters(), *found, strict=True):
        parameter.grad.copy_(sum(part.cpu().clone() for part in parts))


def one_of_the_passes_alone(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    put(model, passes(model, step), [0.0, 1.0, 0.0, 0.0])


def weighted_sum_of_what_autograd_hands_out(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    losses = [loss_of(model, step, slice(part, None, 2)) for part in range(2)]
    put(model, [list(torch.autograd.grad(loss, list(model.parameters()))) for loss in losses], [0.9, 0.1])


def per_sample_clipping(model: nn.Module, sparsifier: regrow.Sparsifier, step: int) -> None:
    found, factors = [], []
    for sample in range(12):
        model.zero_grad()
        loss_of(model, step, slice(sample, sample + 1)).backward()
        size = float(torch.cat([gradient.flatten() for gradient in alive(model, sparsifier)]).norm())
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        factors.append(min(1, 0.5 / size) / 12)
    put(model, found, factors)


def conflicting_gradients_projected(model: nn.Module, sparsifier: regrow.Sparsifier, step: int) -> None:
    found, seen = [], []
    for task in range(2):
        model.zero_grad()
        (loss_of(model, step) if task == 0 else -model(data(model, step)[0]).logsumexp(1).mean()).backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
        seen.append(torch.cat([gradient.flatten() for gradient in alive(model, sparsifier)]))
    factor = float(min(0.0, seen[0] @ seen[1])) / float(seen[1] @ seen[1])
    put(model, found, [1.0, 1.0 - factor])


def layers_scaled_each_by_its_own(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    loss_of(model, step).backward()
    for number, parameter in enumerate(model.parameters()):
        parameter.grad.mul_(0.5**number)


def layers_summed_each_by_its_own(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    found = passes(model, step, 2)
    for number, (parameter, one, other) in enumerate(zip(model.parameters(), *found, strict=True)):
        parameter.grad = one + 0.5**number * other


def clipped_value_by_value(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    loss_of(model, step).backward()
    nn.utils.clip_grad_value_(model.parameters(), 0.01)


def decayed_by_hand(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    loss_of(model, step).backward()
    for parameter in model.parameters():
        parameter.grad.add_(parameter.detach(), alpha=0.1)


def penalties_in_the_loss(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    square, absolute = (sum(f(p).sum() for p in model.parameters()) for f in (torch.square, torch.abs))
    (loss_of(model, step) + 0.03 * square + 0.01 * absolute).backward()


def penalty_in_a_pass_of_its_own(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    (0.1 * sum(parameter.square().sum() for parameter in model.parameters())).backward()
    for part in range(2):
        loss_of(model, step, slice(part, None, 2)).backward()


def scaled_after_every_micro_batch(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    for part in range(3):
        loss_of(model, step, slice(part, None, 3)).backward()
        for parameter in model.parameters():
            parameter.grad.mul_(0.7)


def zeroed_behind_the_back_of_autograd(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
    for part in range(3):
        loss_of(model, step, slice(part, None, 3)).backward()
        if part == 1:
            for parameter in model.parameters():
                parameter.grad.data.zero_()


RIGHT = [
    weighted_sum_of_passes,
    cached_and_copied_back_in_place,
    one_of_the_passes_alone,
    weighted_sum_of_what_autograd_hands_out,
    per_sample_clipping,
    conflicting_gradients_projected,
    layers_scaled_each_by_its_own,
    layers_summed_each_by_its_own,
    clipped_value_by_value,
    decayed_by_hand,
    penalties_in_the_loss,
    penalty_in_a_pass_of_its_own,
    scaled_after_every_micro_batch,
    zeroed_behind_the_back_of_autograd,
]


@pytest.mark.parametrize("fill", RIGHT)
def test_masks_are_those_of_dense_storage_however_the_gradient_was_made(fill: Fill) -> None:
    dense, compact = (run(fill, storage) for storage in ("dense", "compact"))
    for name, mask in dense.masks.items():
        assert torch.equal(compact.masks[name], mask), name


@pytest.mark.parametrize("fill", RIGHT)
def test_the_engine_is_as_good(runs_engine: None, fill: Fill) -> None:
    dense, compact = (run(fill, storage, lambda: mlp().double()) for storage in ("dense", "compact"))
    for name, mask in dense.masks.items():
        assert torch.equal(compact.masks[name], mask), name


@pytest.mark.parametrize("steps_without", [range(0), range(STEPS)])
def test_what_a_loop_leaves_in_the_gradient_from_the_step_before_counts_as_in_dense_storage(
    steps_without: range,
) -> None:
    masks = []
    for storage in ("dense", "compact"):
        model, optimizer, sparsifier = attached(storage)
        for step in range(STEPS):
            for part in range(2):
                loss_of(model, step, slice(part, None, 2)).backward()
            optimizer.step()
            if step not in steps_without:
                optimizer.zero_grad()
        assert sparsifier.num_updates == 2
        masks.append(sparsifier.masks)
    for name, mask in masks[0].items():
        assert torch.equal(masks[1][name], mask), name


def test_a_micro_batch_counts_where_no_alive_weight_has_a_gradient() -> None:
    """The first excites a dead input alone, so that the own gradient of what is alive is exactly 0."""
    mask = torch.zeros(4, 8, dtype=torch.bool)
    mask[:, :2] = True
    grown = []
    for storage in ("dense", "compact"):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(8, 4, bias=False))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        recipe = regrow.rigl(sparsity=0.5, total_steps=100, every=1, drop_fraction=0.5)
        start = regrow.starting_from(recipe, {"0.weight": mask})
        sparsifier = regrow.attach(net, optimizer, start, storage=storage)  # type: ignore[arg-type]
        net(torch.randn(3, 8)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        for excited in ({4: 10.0}, {1: 1.0, 6: 1.0}):
            inputs = torch.zeros(1, 8)
            for place, value in excited.items():
                inputs[0, place] = value
            (net(inputs) * torch.tensor([1.0, 2.0, 3.0, 4.0])).sum().backward()
        optimizer.step()
        grown.append((sparsifier.masks["0.weight"] & ~mask).nonzero().tolist())
    assert grown[0] == grown[1] == [[1, 4], [2, 4], [3, 4]]


class _Checkpointed(nn.Sequential):
    """Its middle layer runs in a checkpoint, whose backward is a pass inside a pass, and outside of one too."""

    def forward(self, x: Tensor) -> Tensor:
        x = self[1](self[0](x))
        x = torch.utils.checkpoint.checkpoint(self[2], x, use_reentrant=True) + self[2](x)
        return self[4](torch.relu(x))


@pytest.mark.parametrize("engine", [False, True])
def test_a_weight_in_and_outside_of_a_checkpoint(engine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if engine:
        monkeypatch.setenv("REGROW_COMPACT", "engine")

    def fill(model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
        for part in range(2):
            loss_of(model, step, slice(part, None, 2)).backward()

    masks = [run(fill, storage, lambda: _Checkpointed(*mlp()).double()).masks for storage in ("dense", "compact")]
    for name, mask in masks[0].items():
        assert torch.equal(masks[1][name], mask), name


# What says nothing about dead weights


def noisy(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad.add_(torch.randn_like(parameter.grad), alpha=1e-3 * float(parameter.grad.std()))


def signs(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad.sign_()


def rounded(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = parameter.grad.bfloat16().float()


def centred(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad -= parameter.grad.mean()


def sparsified(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad[parameter.grad.abs() < parameter.grad.abs().median()] = 0.0


def scaled_in_halves(model: nn.Module) -> None:
    """As clipping row by row would."""
    for parameter in model.parameters():
        parameter.grad[: len(parameter.grad) // 2] *= 0.9


def from_elsewhere(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("change", [noisy, signs, rounded, centred, sparsified, scaled_in_halves, from_elsewhere])
def test_gradients_that_say_nothing_of_dead_weights_are_refused_and_nothing_changes(
    change: Callable[[nn.Module], None],
) -> None:
    model, optimizer, sparsifier = attached("compact")
    for step in range(EVERY):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    loss_of(model, EVERY).backward()
    kept = [parameter.grad.clone() for parameter in model.parameters()]
    change(model)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()))
    with pytest.raises(ValueError, match=r"'0\.weight' .*backward passes.*storage='dense'"):
        optimizer.step()
    assert equal((model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()), before)
    for parameter, gradient in zip(model.parameters(), kept, strict=True):
        parameter.grad = gradient
    optimizer.step()
    assert sparsifier.num_updates == 1, "with the gradient of the passes it goes on"


def test_a_hook_that_changes_the_gradient_on_its_way_is_noticed() -> None:
    model, optimizer, _ = attached("compact")
    for parameter in model.parameters():
        parameter.register_hook(lambda gradient: gradient + 0.01 * torch.randn_like(gradient))
    for step in range(EVERY):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    loss_of(model, EVERY).backward()
    with pytest.raises(ValueError, match="hooks on the parameter"):
        optimizer.step()


def test_a_pass_that_overflowed_and_was_thrown_away_does_not_count() -> None:
    masks = []
    for storage in ("dense", "compact"):
        model, optimizer, sparsifier = attached(storage)
        for step in range(STEPS):
            (loss_of(model, step) * torch.inf).backward()
            optimizer.zero_grad(set_to_none=step % 2 == 0)
            loss_of(model, step).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
            optimizer.zero_grad()
        assert sparsifier.num_updates == 2
        masks.append(sparsifier.masks)
    for name, mask in masks[0].items():
        assert torch.equal(masks[1][name], mask), name


# What is kept


def held(sparsifier: regrow.Sparsifier) -> int:
    """Dense gradients of a weight that are held."""
    return max(len(weight.parts) for weight in sparsifier._storage.passes.weights)  # type: ignore[attr-defined]


def test_accumulated_passes_are_one_and_old_ones_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_gradient, "MOST_PARTS", 4)
    model, optimizer, sparsifier = attached("compact")
    for step in range(EVERY):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()
    for _ in range(9):
        loss_of(model, 3).backward()
    assert held(sparsifier) == 1
    for part in range(9):
        model.zero_grad(set_to_none=part % 2 == 0)
        loss_of(model, 4 + part).backward()
        torch.autograd.grad(loss_of(model, 4), list(model.parameters()))
        assert held(sparsifier) <= 5
    optimizer.step()
    assert sparsifier.num_updates == 1, "the last pass alone is in .grad"


def test_beyond_the_bound_the_oldest_passes_must_weigh_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_gradient, "MOST_PARTS", 4)

    def fill(factors: list[float], model: nn.Module, _: regrow.Sparsifier, step: int) -> None:
        put(model, passes(model, step, 8), factors)

    alike = [lambda *given: fill([1.0] * 5 + [0.5, 0.2, 0.1], *given)]
    dense, compact = (run(alike[0], storage) for storage in ("dense", "compact"))
    assert all(torch.equal(compact.masks[name], mask) for name, mask in dense.masks.items())
    with pytest.raises(ValueError, match="no sum of them"):
        run(lambda *given: fill([0.1 * number for number in range(8)], *given), "compact")


# The algebra


def equations(seed: int, sizes: list[int], parts: int) -> list[Equations]:
    """Random parts of some weights; .grad is still empty."""
    generator = torch.Generator().manual_seed(seed)
    made, sources = [], [Source(True, number) for number in range(parts)]
    for size in sizes:
        found = {}
        for source in sources:
            dense = torch.randn(3 * size, generator=generator, dtype=torch.float64)
            found[source] = Part(dense, dense[:size].clone())
        weight = torch.randn(size, generator=generator, dtype=torch.float64)
        made.append(Equations(torch.zeros(size, dtype=torch.float64), sources, found, [weight, weight.sign()]))
    return made


def with_gradient(
    each: Equations, coefficients: list[float], limit: float = torch.inf, decay: float = 0.0
) -> Equations:
    total = sum(c * each.parts[s].own for s, c in zip(each.sources, coefficients, strict=True))
    return Equations((total + decay * each.others[0]).clamp(-limit, limit), each.sources, each.parts, each.others)


@given(
    st.integers(0, 1000),
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.lists(st.floats(0.1, 2.0), min_size=1, max_size=5),
    st.sampled_from([0.0, 0.1]),
)
def test_coefficients_are_found_or_nothing_is_said(
    seed: int, sizes: list[int], factors: list[float], decay: float
) -> None:
    made = [with_gradient(each, factors, decay=decay) for each in equations(seed, sizes, len(factors))]
    for found in explain(made, None):
        if sum(sizes) > len(factors) + (2 if decay else 0):
            assert found is not None
        if found is not None:
            assert list(found.coefficients.values()) == pytest.approx(factors, rel=1e-6)
            assert found.limit == torch.inf


def test_parts_that_only_dead_weights_tell_apart_are_not_guessed() -> None:
    (each,) = equations(0, [40], 2)
    one, other = each.sources
    each.parts[other].own.copy_(each.parts[one].own)
    assert explain([with_gradient(each, [1.0, 0.0])], None) == [None]
    each.parts[other].dense.copy_(each.parts[one].dense)
    (found,) = explain([with_gradient(each, [1.0, 0.0])], None)
    assert found is not None
    assert sum(found.coefficients.values()) == pytest.approx(1.0), "the same part twice: any shares will do"


def test_a_weight_whose_alive_entries_see_nothing_takes_the_factor_of_the_others() -> None:
    blind, seeing = equations(0, [10, 40], 1)
    blind.parts[Source(True, 0)].own.zero_()
    found = explain([with_gradient(blind, [0.3]), with_gradient(seeing, [0.3])], None)
    assert [list(each.coefficients.values()) for each in found] == [[pytest.approx(0.3)]] * 2


def test_where_a_gradient_was_cut_is_seen() -> None:
    (each,) = equations(0, [60], 2)
    (found,) = explain([with_gradient(each, [0.5, 2.0], limit=1.5)], None)
    assert found is not None
    assert list(found.coefficients.values()) == pytest.approx([0.5, 2.0])
    assert found.limit == pytest.approx(1.5)
    (cut_by_half,) = explain([with_gradient(each, [0.5, 2.0], limit=0.5)], None)
    assert cut_by_half is not None
    assert cut_by_half.limit == pytest.approx(0.5)
