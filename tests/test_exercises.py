"""The worked exercises of the notes on tickets, SNIP and RigL, by hand and by the library."""

import math

import pytest
import torch
from torch import Tensor, nn

import regrow
from regrow.parts.schedules import Cosine

W0 = torch.tensor([[0.5, -0.3], [0.1, 0.8]])
INPUT, TARGET = torch.ones(1, 2), torch.tensor([[0.0, 1.0]])


def linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        layer.weight.copy_(weight)
    return layer


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    return ((outputs - targets) ** 2).sum()


def test_exercise_1_the_arithmetic_of_the_lottery_ticket_gaps() -> None:
    """Illustrative: the notes' accuracies are there to reason with, not measured; nothing depends on them."""
    dense, rewound, reinitialised = 98.3, {90: 98.2, 99: 97.5}, {90: 96.1, 99: 91.2}
    gaps = {sparsity: rewound[sparsity] - reinitialised[sparsity] for sparsity in rewound}
    assert gaps == pytest.approx({90: 2.1, 99: 6.3})
    assert gaps[99] / gaps[90] == pytest.approx(3.0)
    assert dense - rewound[90] == pytest.approx(0.1)


def test_the_levels_of_iterative_pruning_that_reach_these_sparsities() -> None:
    """.8^L: the first rounds at 90 % and 99 % sparsity."""
    first = {sparsity: next(level for level in range(99) if 0.8**level <= 1 - sparsity) for sparsity in (0.9, 0.99)}
    assert first == {0.9: 11, 0.99: 21}
    masks, weights = {"w": torch.ones(1000, dtype=torch.bool)}, {"w": torch.arange(1000.0)}
    for level in range(1, 12):
        masks = regrow.prune_by_magnitude(weights, masks, 0.8**level)
        assert int(masks["w"].sum()) == math.floor(1000 * 0.8**level)
    assert int(masks["w"].sum()) == 85


def test_exercise_2_snip_on_a_linear_layer() -> None:
    layer = linear(W0)
    outputs = layer(INPUT)
    loss = squared_error(outputs, TARGET)
    loss.backward()
    assert torch.allclose(outputs, torch.tensor([[0.2, 0.9]]))
    assert loss.item() == pytest.approx(0.05)
    assert torch.allclose(layer.weight.grad, torch.tensor([[0.4, 0.4], [-0.2, -0.2]]))

    scores = regrow.snip_scores(layer, squared_error, [(INPUT, TARGET)])["weight"]
    assert torch.allclose(scores, torch.tensor([[0.20, 0.12], [0.02, 0.16]]))
    assert regrow.masks_from_scores({"weight": scores}, 0.25)["weight"].tolist() == [[True, True], [False, True]]
    assert regrow.masks_from_scores({"weight": scores}, 0.75)["weight"].tolist() == [[True, False], [False, False]]


def test_exercise_2_attached() -> None:
    layer = linear(W0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    sparsifier = regrow.attach(layer, optimizer, regrow.snip(sparsity=0.25))
    squared_error(layer(INPUT), TARGET).backward()
    optimizer.step()
    assert sparsifier.masks["weight"].tolist() == [[True, True], [False, True]]
    assert torch.equal(layer.weight.detach(), W0 * sparsifier.masks["weight"])


def test_the_same_layer_by_grasp_and_obd() -> None:
    """H = 2 x xᵀ in each row, so H g = 2 · (sum of the row's gradient), and H_jj = 2."""
    layer = linear(W0)
    grasp = regrow.grasp_scores(layer, squared_error, [(INPUT, TARGET)])["weight"]
    assert torch.allclose(grasp, W0 * torch.tensor([[1.6], [-0.8]]))
    obd = regrow.obd_scores(layer, squared_error, [(INPUT, TARGET)], probes=None)["weight"]
    assert torch.allclose(obd, W0**2)


def test_exercise_3_the_gradient_of_a_zero_weight() -> None:
    """∂L/∂W_ij = ∂L/∂y_i · x_j: it does not ask for W_ij."""
    weight = W0 * torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    inputs = torch.tensor([[2.0, -3.0]])
    layer = linear(weight)
    outputs = layer(inputs)
    outputs.retain_grad()
    squared_error(outputs, TARGET).backward()
    assert torch.allclose(layer.weight.grad, outputs.grad.T @ inputs)
    assert layer.weight[0, 1] == 0
    assert layer.weight.grad[0, 1] == pytest.approx(2 * (0.5 * 2.0 - 0.0) * -3.0)


def test_exercise_3_rigl_grows_where_that_gradient_is_largest() -> None:
    layer = linear(W0)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.0)
    masks = {"weight": torch.tensor([[True, False], [False, True]])}
    recipe = regrow.rigl(sparsity=0.5, total_steps=100, every=1, drop_fraction=1.0, stop=100)
    sparsifier = regrow.attach(layer, optimizer, regrow.starting_from(recipe, masks))
    inputs = torch.tensor([[2.0, -3.0]])
    for _ in range(2):  # a weight step at rate 0, then the update; y = (1, -2.4), so ∂L/∂y = 2 · (1, -3.4)
        optimizer.zero_grad()
        squared_error(layer(inputs), TARGET).backward()
        optimizer.step()
    # f(1) = .9998, so of 2 alive weights 1 is dropped: .5, the smaller. Gradients: 4, -6 / -13.6, 20.4.
    assert sparsifier.num_updates == 1
    assert sparsifier.masks["weight"].tolist() == [[False, False], [True, True]]
    assert layer.weight.tolist() == [[0.0, 0.0], [0.0, pytest.approx(0.8)]]


@pytest.mark.parametrize(("step", "share"), [(0, 0.3), (25, 0.25607), (50, 0.15), (75, 0.04393), (100, 0.0)])
def test_the_cosine_drop_schedule(step, share) -> None:
    notes = 0.3 * (1 + math.cos(math.pi * step / 100)) / 2
    assert Cosine(0.3, end=100)(step) == pytest.approx(notes) == pytest.approx(share, abs=5e-6)


def test_the_cosine_counts_whole_weights() -> None:
    """k(t) = floor(k_0 · (1 + cos(pi t / T_end)) / 2), rounded down."""
    schedule = Cosine(0.3, end=100)
    assert [math.floor(schedule(step) * 101) for step in (0, 25, 50, 75, 100)] == [30, 25, 15, 4, 0]


def test_set_epsilon_form() -> None:
    """s_l = 1 − epsilon · (n_l + n_{l−1}) / (n_l · n_{l−1})."""
    layers = {"fc": regrow.Layer("fc", (300, 100))}
    sparsity = regrow.er_sparsity(layers, 20)
    assert sparsity == pytest.approx(1 - 20 * (300 + 100) / (300 * 100))
    assert regrow.er(layers, sparsity) == {"fc": 20 * 400}


def test_linear_connectivity_against_the_worse_end() -> None:
    """The notes: error on the line ≤ epsilon + max of the two ends; Frankle et al. 2020: less the mean of the ends."""
    line = regrow.Line((0.0, 0.5, 1.0), (0.06, 0.11, 0.08))
    assert line.above_worst == pytest.approx(0.03)
    assert line.above_mean == pytest.approx(0.04)
