"""The threshold of a long list, found between two bounds that a sample gives, is exactly that of a sort."""

import math

import pytest
import torch
from torch import Tensor

from regrow.parts import topk
from regrow.parts.topk import _nth_largest, select

SIZE = 3 * topk.LONG + 17


def lists() -> dict[str, Tensor]:
    torch.manual_seed(0)
    normal = torch.randn(SIZE)
    tied = torch.randint(5, (SIZE,)).float()
    misleading = torch.zeros(SIZE)
    misleading[1::2] = torch.rand(SIZE // 2)
    misleading[:: SIZE // topk.SAMPLE] = 2.0  # the sample sees nothing else
    sparse = torch.full((SIZE,), -math.inf)
    sparse[::7] = torch.rand(len(sparse[::7]))
    return {"normal": normal, "sorted": normal.sort().values, "tied": tied, "misleading": misleading, "sparse": sparse}


@pytest.mark.parametrize("name", lists())
def test_it_is_the_one_of_a_sort(name: str) -> None:
    values = lists()[name]
    ordered = values.sort(descending=True).values
    for count in (1, 2, 100, SIZE // 10, SIZE // 2, SIZE - 100, SIZE - 1, SIZE):
        assert _nth_largest(values, count) == ordered[count - 1], count


@pytest.mark.parametrize("name", lists())
def test_a_long_selection_takes_the_first_of_the_largest(name: str) -> None:
    values = lists()[name]
    among = torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) < 0.3
    order = torch.where(among, values, math.nan).nan_to_num(nan=-1e30, neginf=-1e29).sort(descending=True, stable=True)
    for count in (1, 77, SIZE // 10, int(among.sum())):
        expected = torch.zeros(SIZE, dtype=torch.bool)
        expected[order.indices[:count]] = True
        assert torch.equal(select(values, count, among), expected), count
