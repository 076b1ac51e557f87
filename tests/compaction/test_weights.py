"""Compact weights: values and indices in place of a dense weight, moved and resized without loss."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from regrow.compaction.compact_weight import CompactWeight, dense_weight, gather, indices_of, resize, scatter
from regrow.compaction.dense_gradient import BackwardPasses, DenseGradient
from regrow.compaction.positions import Positions

masks = st.lists(st.booleans(), min_size=6, max_size=6).filter(any).map(lambda bits: torch.tensor(bits).view(2, 3))


def compacted(mask: Tensor, seed: int = 0) -> tuple[CompactWeight, Tensor]:
    torch.manual_seed(seed)
    dense = torch.randn(mask.shape) * mask
    return CompactWeight.from_dense(nn.Parameter(dense.clone()), mask), dense


@given(masks)
def test_scatter_undoes_gather(mask: Tensor) -> None:
    weight, dense = compacted(mask)
    assert torch.equal(weight.dense(weight.values.detach()), dense)
    assert torch.equal(weight.mask, mask)
    assert weight.num_alive == weight.values.numel() == int(mask.sum())
    assert weight.indices.dtype == torch.int32


@given(masks, masks)
def test_a_new_pattern_moves_what_stays_and_zeroes_what_is_born(before: Tensor, after: Tensor) -> None:
    weight, dense = compacted(before)
    state = gather(torch.arange(1.0, 7.0).view(2, 3), weight.indices)
    parameter, weight.values.grad = weight.values, torch.ones(weight.num_alive)
    weight.set_mask(after, [(state, 0.5)])
    assert torch.equal(weight.dense(weight.values.detach()), dense * after)
    assert torch.equal(weight.dense(weight.values.grad), (before & after).float())
    expected = torch.where(before & after, torch.arange(1.0, 7.0).view(2, 3), 0.5)
    assert torch.equal(weight.dense(state), expected * after)
    assert weight.values is parameter
    assert weight.version == 1


@given(masks, masks)
def test_the_pattern_becomes_that_of_what_is_loaded_where_it_lacks_some_of_it(before: Tensor, loaded: Tensor) -> None:
    weight, _ = compacted(before)
    checkpoint = torch.arange(1.0, 7.0).view(2, 3) * loaded
    entries = weight.load(checkpoint)
    with torch.no_grad():
        weight.values.copy_(entries)
    assert torch.equal(weight.dense(weight.values.detach()), checkpoint)
    lacks = bool((loaded & ~before).any())
    assert torch.equal(weight.mask, loaded if lacks else before)
    assert weight.version == int(lacks)


def test_a_parameter_can_change_its_size_while_an_old_graph_is_alive() -> None:
    parameter = nn.Parameter(torch.randn(5))
    loss = (2 * parameter).sum()
    loss.backward()
    parameter.grad = None
    resize(parameter, torch.randn(3))
    (3 * parameter).sum().backward()
    assert parameter.grad is not None
    assert parameter.grad.tolist() == [3.0, 3.0, 3.0]
    assert loss.grad_fn is not None


def test_gradients_of_values_are_those_of_the_dense_weight() -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    weight, _ = compacted(mask)
    weight.values.data = weight.values.data.double()
    x = torch.randn(4, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda values: nn.functional.linear(x, _dense(weight, values)), weight.values)


def _dense(weight: CompactWeight, values: Tensor) -> Tensor:
    return dense_weight(values, weight)


def test_the_dense_gradient_is_summed_over_micro_batches_and_starts_afresh() -> None:
    weight, dense = compacted(torch.tensor([[True, False, True], [False, True, True]]))
    kept = weight.dense_gradient = DenseGradient(weight.values, weight.shape, "weight", BackwardPasses())
    reference = nn.Parameter(dense)
    for part in range(3):
        if part == 2:
            weight.values.grad, reference.grad = None, None
        x = torch.full((1, 3), 1.0 + part)
        (nn.functional.linear(x, dense_weight(weight.values, weight)) ** 2).sum().backward()
        (nn.functional.linear(x, reference) ** 2).sum().backward()
        assert reference.grad is not None
        assert torch.equal(kept.value(), reference.grad)
        assert torch.equal(weight.values.grad, gather(reference.grad, weight.indices))
    weight.values.grad.zero_()
    uses = [nn.functional.linear(x, dense_weight(weight.values, weight)) for _ in range(2)]
    torch.stack(uses).sum().backward()
    assert torch.equal(kept.value(), torch.full((2, 3), 6.0)), "two uses in one pass add up"


def test_scatter_on_its_own() -> None:
    assert scatter(torch.tensor([1.0]), torch.tensor([2]), (2, 2), fill=7.0).tolist() == [[7.0, 7.0], [1.0, 7.0]]
    assert indices_of(torch.ones(2, 2, dtype=torch.bool)).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("shape", [(3, 4), (5, 2, 3, 3), (7,), (1, 70_000), (2, 65_536)])
def test_positions_take_two_bytes_where_rows_are_short(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    mask = torch.rand(shape) < 0.3
    mask.view(-1)[-1] = True
    indices = indices_of(mask)
    positions = Positions.of(indices, shape)
    assert torch.equal(positions.indices, indices)
    assert positions.indices.dtype == indices.dtype
    assert len(positions) == len(indices)
    wide = mask[0].numel() > 65_536
    assert positions.bytes == len(indices) * (8 if wide else 2) + (0 if wide else 8 * (len(mask) + 1))


@pytest.mark.parametrize("assign", [False, True])
def test_to_dense_gives_the_parameter_its_shape_back(assign: bool) -> None:
    mask = torch.tensor([[True, False, True], [False, True, True]])
    weight, dense = compacted(mask)
    parameter = weight.values
    if assign:
        parameter.grad = torch.ones(4)
    assert weight.to_dense() is parameter
    assert torch.equal(parameter.detach(), dense)
    assert parameter.grad is None if not assign else torch.equal(parameter.grad, mask.float())
