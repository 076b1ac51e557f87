"""Errors along the line between two solutions, with batch norm's statistics taken anew; the model stays as it was."""

import copy
from collections.abc import Mapping

import pytest
import torch
from nets import batch, convnet, mlp, sgd, train
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import update_bn

import regrow

IMAGES = (8, 3, 8, 8)


def norm_of(model: nn.Module) -> float:
    return float(sum((p.detach() ** 2).sum() for p in model.parameters()))


def states(model: nn.Module, scale: float) -> dict[str, Tensor]:
    return {name: scale * value if value.is_floating_point() else value for name, value in model.state_dict().items()}


def test_the_line_is_straight_and_its_ends_are_the_solutions() -> None:
    model = mlp()
    one, other = states(model, 1.0), states(model, -3.0)
    whole = norm_of(model)
    seen = []
    line = regrow.error_along_line(model, one, other, lambda m: seen.append(m.state_dict()) or norm_of(m), points=5)
    assert line.positions == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert line.errors == pytest.approx([whole * factor**2 for factor in (1, 0, 1, 2, 3)], abs=1e-5)
    assert line.above_worst == 0
    assert line.above_mean == pytest.approx(4 * whole)


def test_ends_are_evaluated_bit_for_bit() -> None:
    model = mlp()
    one, other = mlp(seed=1).state_dict(), mlp(seed=2).state_dict()
    seen: list[dict[str, Tensor]] = []

    def note(net: nn.Module) -> float:
        seen.append(copy.deepcopy(net.state_dict()))
        return 0.0

    regrow.error_along_line(model, one, other, note, points=2)
    for found, expected in zip(seen, (one, other), strict=True):
        assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_an_end_may_be_the_state_that_the_model_holds() -> None:
    model, other = nn.Linear(3, 2), nn.Linear(3, 2)
    kept = {name: value.clone() for name, value in model.state_dict().items()}

    def walk(one: Mapping[str, Tensor]) -> regrow.Line:
        return regrow.error_along_line(model, one, other.state_dict(), lambda net: float(net.weight.sum()), points=5)

    assert walk(model.state_dict()) == walk(kept)


def test_instability_against_the_mean_and_the_worst_of_the_ends() -> None:
    line = regrow.Line((0.0, 0.5, 1.0), (10.0, 30.0, 14.0))
    assert (line.above_mean, line.above_worst) == (18.0, 16.0)
    flat = regrow.Line((0.0, 0.5, 1.0), (10.0, 9.0, 14.0))
    assert (flat.above_mean, flat.above_worst) == (2.0, 0.0)


def test_batch_norm_without_batches_is_refused() -> None:
    model = convnet()
    with pytest.raises(ValueError, match="pass batches="):
        regrow.error_along_line(model, model.state_dict(), model.state_dict(), lambda m: 0.0)
    with pytest.raises(ValueError, match="pass batches="):
        regrow.error_along_line(model, model.state_dict(), model.state_dict(), lambda m: 0.0, batches=[])


def test_statistics_are_those_of_the_net_on_the_line() -> None:
    one, other = convnet(seed=1), convnet(seed=2)
    inputs = [batch(step, IMAGES)[0] for step in range(3)]
    for net in (one, other):  # they have statistics of their own, which must not show
        net(inputs[0])
    middle = convnet()
    with torch.no_grad():
        for mine, a, b in zip(middle.parameters(), one.parameters(), other.parameters(), strict=True):
            mine.copy_((a + b) / 2)
    update_bn(inputs, middle)
    seen = []

    def note(net: nn.Module) -> float:
        assert not any(module.training for module in net.modules())
        seen.append(net[1].running_mean.clone())
        return float(net(inputs[0]).sum())

    # (inputs, targets) as a loader gives them will do too
    pairs = [(x, torch.zeros(len(x))) for x in inputs]
    line = regrow.error_along_line(convnet(), one.state_dict(), other.state_dict(), note, points=3, batches=pairs)
    assert torch.allclose(seen[1], middle[1].running_mean)
    assert line.errors[1] == pytest.approx(middle.eval()(inputs[0]).sum().item(), rel=1e-4)


def test_the_model_is_left_as_it_was_even_if_the_measure_fails() -> None:
    model = nn.Sequential(convnet(), nn.Dropout(0.5))
    model[0][1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    other = states(model, 2.0)

    def fails(net: nn.Module) -> float:
        raise KeyError("measure")

    with pytest.raises(KeyError, match="measure"):
        regrow.error_along_line(model, before, other, fails, batches=[batch(0, IMAGES)[0]])
    regrow.error_along_line(model, before, other, lambda m: 0.0, batches=[batch(0, IMAGES)[0]])
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert model[0][1].momentum == 0.1


def test_solutions_that_do_not_fit_are_refused() -> None:
    model = mlp()
    with pytest.raises(ValueError, match="other names or shapes"):
        regrow.error_along_line(model, model.state_dict(), mlp(width=25).state_dict(), lambda m: 0.0)
    with pytest.raises(ValueError, match="points is 1"):
        regrow.error_along_line(model, model.state_dict(), model.state_dict(), lambda m: 0.0, points=1)


def test_a_sparse_line_stays_in_the_mask_and_one_data_order_is_stable() -> None:
    """The procedure of the docs: from one snapshot train twice, with the order of the data as the only difference."""
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.static(sparsity=0.8))
    start = regrow.Snapshot(model, optimizer, sparsifier)
    ends = []
    for order in (range(0, 20), range(20, 40), range(0, 20)):
        start.restore()
        train(model, optimizer, order)
        ends.append(copy.deepcopy(model.state_dict()))
    inputs, targets = batch(99)

    def loss(net: nn.Module) -> float:
        assert all(not net.get_parameter(name)[~mask].any() for name, mask in sparsifier.masks.items())
        return float(F.cross_entropy(net(inputs), targets))

    assert regrow.error_along_line(model, ends[0], ends[2], loss).above_worst == pytest.approx(0, abs=1e-6)
    line = regrow.error_along_line(model, ends[0], ends[1], loss, points=4)
    assert len(set(line.errors)) == 4


def test_a_snapshot_can_be_restored_as_often_as_one_likes() -> None:
    model = nn.Sequential(mlp(), nn.Dropout(0.5))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    train(model, optimizer, range(3))
    start = regrow.Snapshot(model, optimizer)
    ends = []
    for _ in range(3):
        start.restore()
        train(model, optimizer, range(3, 8))
        ends.append([parameter.detach().clone() for parameter in model.parameters()])
    for other in ends[1:]:
        assert all(torch.equal(a, b) for a, b in zip(ends[0], other, strict=True))
