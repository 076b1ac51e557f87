"""GraSP, OBD and SNIP scores against explicit Hessians; masks of exact size; nothing of the model changes."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import batch, convnet, mlp, sgd
from torch import Tensor, nn
from torch.nn import functional as F

import regrow

BATCHES = [batch(step, (8, 4), classes=3) for step in range(2)]


def tiny() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()


def in_double(batches: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, Tensor]]:
    return [(inputs.double(), targets) for inputs, targets in batches]


def hessian(model: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Weights, gradient and Hessian of the mean loss over both weight matrices, flat."""
    shapes = {"0.weight": (3, 4), "2.weight": (3, 3)}

    def mean_loss(flat: Tensor) -> Tensor:
        parts = flat.split([12, 9])
        weights = {name: part.view(shapes[name]) for name, part in zip(shapes, parts, strict=True)}
        losses = [F.cross_entropy(torch.func.functional_call(model, weights, (x,)), y) for x, y in batches]
        return torch.stack(losses).mean()

    flat = torch.cat([model.get_parameter(name).detach().flatten() for name in shapes]).requires_grad_()
    (gradient,) = torch.autograd.grad(mean_loss(flat), flat)
    return flat.detach(), gradient, torch.autograd.functional.hessian(mean_loss, flat)


def flat(scores: dict[str, Tensor]) -> Tensor:
    return torch.cat([scores["0.weight"].flatten(), scores["2.weight"].flatten()])


def test_scores_are_those_of_the_explicit_gradient_and_hessian() -> None:
    model, batches = tiny(), in_double(BATCHES)
    w, g, h = hessian(model, batches)
    assert torch.allclose(flat(regrow.snip_scores(model, F.cross_entropy, batches)), (g * w).abs())
    assert torch.allclose(flat(regrow.grasp_scores(model, F.cross_entropy, batches)), w * (h @ g))
    exact = regrow.obd_scores(model, F.cross_entropy, batches, probes=None)
    assert torch.allclose(flat(exact), 0.5 * h.diag() * w**2)
    estimate = flat(regrow.obd_scores(model, F.cross_entropy, batches, probes=400))
    spread = (2 * (h**2).sum(dim=1).sub(h.diag() ** 2) / 400).sqrt() * 0.5 * w**2
    assert bool(((estimate - flat(exact)).abs() <= 5 * spread + 1e-12).all())
    assert bool((estimate != flat(exact)).any())


def test_grasp_is_what_a_weight_does_for_the_gradient_flow() -> None:
    model, batches = tiny(), in_double(BATCHES)
    score = float(regrow.grasp_scores(model, F.cross_entropy, batches)["0.weight"][1, 2])
    flows, shrink = [], 1e-6
    for factor in (1 + shrink, 1 - shrink):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            moved[0].weight[1, 2] *= factor
        flows.append(float((hessian(moved, batches)[1] ** 2).sum()))
    assert (flows[0] - flows[1]) / (2 * shrink) == pytest.approx(2 * score, rel=1e-5)


def test_one_probe_is_exact_where_the_hessian_is_diagonal() -> None:
    """For squares of a linear layer's outputs on one-hot inputs H is diagonal: H_jj = 2 x_j² / batch."""
    model = nn.Linear(3, 2, bias=False)
    inputs = torch.diag(torch.tensor([1.0, 2.0, 3.0]))
    scores = regrow.obd_scores(model, lambda y, t: ((y - t) ** 2).sum() / 3, [(inputs, torch.ones(3, 2))], probes=1)
    expected = torch.tensor([1.0, 4.0, 9.0]) / 3 * model.weight.detach() ** 2
    assert torch.allclose(scores["weight"], expected)


def test_an_estimate_of_the_diagonal_has_the_variance_that_is_said_of_it() -> None:
    """Σ_{k≠j} H_jk² / probes, of a loss ½ wᵀ H w."""
    h = torch.tensor([[2.0, 1.0, 0.5], [1.0, 3.0, 0.7], [0.5, 0.7, 4.0]]).double()
    model = nn.Linear(3, 1, bias=False).double()
    nn.init.ones_(model.weight)
    inputs = torch.linalg.cholesky(h).T  # of which ½ Σ (x · w)² is that loss

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * outputs.square().sum()

    estimates = [
        2 * regrow.obd_scores(model, loss, [(inputs, inputs)], probes=2, seed=seed)["weight"][0] for seed in range(500)
    ]
    off = h - h.diag().diag()
    assert torch.stack(estimates).mean(0) == pytest.approx(h.diag(), rel=0.05)
    assert torch.stack(estimates).var(0) == pytest.approx(off.square().sum(1) / 2, rel=0.15)


def test_a_linear_loss_has_no_curvature() -> None:
    scores = regrow.obd_scores(nn.Linear(3, 2), lambda y, t: (y * t).sum(), [(torch.ones(1, 3), torch.ones(1, 2))])
    assert not scores["weight"].any()


def test_snip_of_given_data_is_snip_attached() -> None:
    inputs, targets = batch(0)
    masks = regrow.masks_from_scores(regrow.snip_scores(mlp(), F.cross_entropy, [(inputs, targets)]), 0.8)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.snip(sparsity=0.8))
    F.cross_entropy(model(inputs), targets).backward()
    optimizer.step()
    assert all(torch.equal(masks[name], mask) for name, mask in sparsifier.masks.items())


@pytest.mark.parametrize("measure", [regrow.snip_scores, regrow.grasp_scores, regrow.obd_scores])
def test_the_passes_leave_everything_as_it_was(measure) -> None:
    model = nn.Sequential(*convnet(), nn.Dropout(0.5)).train()
    F.cross_entropy(model(torch.randn(4, 3, 8, 8)), torch.zeros(4, dtype=torch.long)).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    generator = torch.get_rng_state()
    with torch.no_grad():
        scores = measure(model, F.cross_entropy, [batch(0, (6, 3, 8, 8)), batch(1, (6, 3, 8, 8))], exclude="7")
    assert list(scores) == ["0.weight", "3.weight"]
    assert all(not score.requires_grad and bool(score.isfinite().all()) for score in scores.values())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(a, b.grad) for a, b in zip(gradients, model.parameters(), strict=True))
    assert torch.equal(generator, torch.get_rng_state())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(module.training for module in model.modules())


def test_batches_that_are_drawn_leave_the_generator_as_it_was() -> None:
    dataset = torch.utils.data.TensorDataset(*batch(0, (20, 12)))
    loader = torch.utils.data.DataLoader(dataset, 5, shuffle=True)
    model, generator = mlp(), torch.get_rng_state()
    drawn = [(inputs, targets) for inputs, targets in loader]
    assert not torch.equal(generator, torch.get_rng_state())
    torch.set_rng_state(generator)
    scores = regrow.snip_scores(model, F.cross_entropy, loader)
    assert torch.equal(generator, torch.get_rng_state())
    assert torch.equal(scores["0.weight"], regrow.snip_scores(model, F.cross_entropy, drawn)["0.weight"])


def test_compact_weights_are_refused() -> None:
    model = nn.Sequential(nn.Linear(12, 64), nn.ReLU(), nn.Linear(64, 5))
    sparsifier = regrow.attach(model, sgd(model), regrow.static(sparsity=0.9), storage="compact")
    assert model[0].weight.dim() == 1
    for measure in (regrow.snip_scores, regrow.grasp_scores, regrow.obd_scores):
        with pytest.raises(ValueError, match=r"'0\.weight' is compact, .*: call sparsifier\.detach\(\) or"):
            measure(model, F.cross_entropy, [batch(0)])
    sparsifier.detach()
    assert regrow.snip_scores(model, F.cross_entropy, [batch(0)])["0.weight"].shape == (64, 12)


def test_attention_can_be_differentiated_twice() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    scores = regrow.grasp_scores(model, F.mse_loss, [(torch.randn(2, 5, 8), torch.randn(2, 5, 8))])
    assert all(bool(score.any()) for score in scores.values())


def test_bad_input_is_refused() -> None:
    model = mlp()
    with pytest.raises(ValueError, match="batches is empty"):
        regrow.snip_scores(model, F.cross_entropy, [])
    with pytest.raises(ValueError, match="probes is 0"):
        regrow.obd_scores(model, F.cross_entropy, [batch(0)], probes=0)
    with pytest.raises(ValueError, match="loss must return one number"):
        regrow.snip_scores(model, lambda y, t: F.cross_entropy(y, t, reduction="none"), [batch(0)])
    unused = nn.ModuleDict({"used": nn.Linear(12, 5), "idle": nn.Linear(2, 2)})
    unused.forward = lambda x: unused["used"](x)  # type: ignore[method-assign]
    with pytest.raises(ValueError, match=r"'idle.weight' takes no part in the loss: leave it out with exclude="):
        regrow.grasp_scores(unused, F.cross_entropy, [batch(0)])


@given(st.lists(st.lists(st.integers(-2, 2).map(float), min_size=1, max_size=20), min_size=1, max_size=4), st.data())
def test_global_masks_have_exactly_the_largest(values, data) -> None:
    scores = {f"l{i}": torch.tensor(row) for i, row in enumerate(values)}
    size = sum(len(row) for row in values)
    alive = data.draw(st.integers(len(values), size))
    masks = regrow.masks_from_scores(scores, 1 - alive / size)
    assert sum(int(mask.sum()) for mask in masks.values()) == alive
    first = {name: int(score.argmax()) for name, score in scores.items()}  # of each layer, always alive
    entries = [(name, place) for name, score in scores.items() for place in range(len(score))]
    ranked = sorted(entries, key=lambda e: (first[e[0]] != e[1], -float(scores[e[0]][e[1]]), entries.index(e)))
    assert {(n, p) for n, mask in masks.items() for p in mask.nonzero().flatten().tolist()} == set(ranked[:alive])


@pytest.mark.parametrize(
    "scores",
    [
        1 + torch.arange(8).double() * 1e-9,
        torch.arange(8).double() * 1e-48,
        (1 + torch.arange(8).double()) * 1e40,
        torch.arange(8) + 2**24,
        torch.arange(8).bfloat16(),
        torch.arange(8).half(),
    ],
)
def test_global_masks_compare_scores_as_they_are(scores) -> None:
    masks = regrow.masks_from_scores({"a": scores, "b": scores.float()[:1]}, 4 / 9)
    assert masks["a"].tolist() == [False] * 4 + [True] * 4
    assert masks["b"].tolist() == [True]


def test_masks_by_layer_follow_the_distribution_and_nan_is_refused() -> None:
    scores = {"a": torch.arange(12.0).view(3, 4), "b": torch.arange(40.0).view(4, 10)}
    masks = regrow.masks_from_scores(scores, 0.5, scope="layer")
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"a": 6, "b": 20}
    assert masks["a"].flatten().tolist() == [False] * 6 + [True] * 6
    scores["b"][0, 0] = torch.nan
    with pytest.raises(ValueError, match="scores of 'b' contain NaN"):
        regrow.masks_from_scores(scores, 0.5)
    with pytest.raises(ValueError, match="scope is 'model'"):
        regrow.masks_from_scores({"a": scores["a"]}, 0.5, scope="model")  # type: ignore[arg-type]


def test_masks_by_layer_follow_a_map_too() -> None:
    scores = {"a.weight": torch.rand(4, 5), "b.weight": torch.rand(4, 10)}
    masks = regrow.masks_from_scores(scores, 0.8, scope="layer", distribution={"a": 0.5})
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"a.weight": 10, "b.weight": 2}
    with pytest.raises(ValueError, match="pattern 'c' matches none of the layers"):
        regrow.masks_from_scores(scores, 0.8, scope="layer", distribution={"c": 0.5})


def test_a_mask_from_scores_trains_as_a_static_one() -> None:
    model = mlp()
    masks = regrow.masks_from_scores(regrow.grasp_scores(model, F.cross_entropy, [batch(0)]), 0.8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = regrow.attach(model, optimizer, regrow.from_masks(masks), strict=True)
    F.cross_entropy(model(batch(1)[0]), batch(1)[1]).backward()
    optimizer.step()
    assert sparsifier.sparsity == pytest.approx(0.8, abs=1e-3)
    assert all(torch.equal(masks[name], mask) for name, mask in sparsifier.masks.items())
