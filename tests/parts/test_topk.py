"""What C++ selects at an update, against torch's operations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from regrow.compaction.positions import Positions
from regrow.engine import native, selection
from regrow.parts import topk

pytestmark = pytest.mark.skipif(not native.available(), reason=str(native.unavailable_reason()))


def by_torch(monkeypatch: pytest.MonkeyPatch, scores: Tensor, count: int, among: Tensor) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(selection, "select", lambda *given: None)
        return topk.select(scores, count, among)


KINDS = {
    "any": lambda s: s,
    "ties": lambda s: s.round(),
    "zeros of both signs": lambda s: s.sign() * 0.0,
    "not finite": lambda s: torch.where(s > 1, math.nan, torch.where(s < -1, -math.inf, s.clamp(max=0.9) / 0)),
    "denormal": lambda s: s * 1e-40,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.1, 0.9])
@pytest.mark.parametrize("size", [1, 9, 1000, 12_000, 70_001])
def test_the_same_mask_as_torch(monkeypatch, kind, share, size):
    generator = torch.Generator().manual_seed(size)
    scores = KINDS[kind](torch.randn(size, generator=generator))
    among = torch.rand(size, generator=generator) < share
    alive = int(among.sum())
    for count in {0, 1, alive // 3, alive - 1, alive} & set(range(alive + 1)):
        found = selection.select(scores, count, among)
        assert torch.equal(found, by_torch(monkeypatch, scores, count, among))


@pytest.mark.parametrize("inside", [2.0, -2.0])
def test_a_sample_that_misleads_changes_nothing(monkeypatch, inside):
    """The scores at the places that the sample looks at stand for none of the others."""
    size, count = 200_000, 80_000  # large enough for a whole sample
    places = torch.tensor([((i * 0x9E3779B97F4A7C15 % 2**64 >> 32) * size) >> 32 for i in range(2**14)])
    scores = torch.rand(size, generator=torch.Generator().manual_seed(0))
    scores[places] += inside
    among = torch.ones(size, dtype=torch.bool)
    found = selection.select(scores, count, among)
    assert torch.equal(found, by_torch(monkeypatch, scores, count, among))


@pytest.mark.parametrize("shape", [(5, 7), (1, 65_536), (300, 64, 3, 3)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.9])
def test_positions_are_expanded_as_torch_does(monkeypatch, shape, share):
    indices = (
        (torch.rand(shape, generator=torch.Generator().manual_seed(1)) < share).flatten().nonzero().flatten().int()
    )
    positions = Positions.of(indices, shape)
    assert torch.equal(positions.indices, indices)
    monkeypatch.setattr(selection, "expand", lambda *given: None)
    assert torch.equal(positions.indices, indices)


def test_what_cpp_leaves_to_torch():
    scores, among = torch.rand(4, 6), torch.ones(4, 6, dtype=torch.bool)
    assert selection.select(scores.double(), 2, among) is None
    assert selection.select(scores.t(), 2, among.t()) is None


@settings(max_examples=50, deadline=None)
@given(mask=st.lists(st.booleans(), max_size=70), other=st.randoms(use_true_random=False))
def test_positions_and_overlaps(mask, other):
    first = torch.tensor(mask, dtype=torch.bool)
    second = torch.tensor([other.random() < 0.5 for _ in mask], dtype=torch.bool)
    a, b = selection.positions(first), selection.positions(second)
    assert a.tolist() == first.nonzero().flatten().tolist()
    stays, known = selection.overlap(a, b)
    assert torch.equal(stays, torch.isin(a, b))
    assert torch.equal(known, torch.isin(b, a))
