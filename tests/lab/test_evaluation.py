"""Accuracy is right answers over all, not a mean over batches."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow_lab.data.batches import Vectors
from regrow_lab.run.evaluation import evaluate


class Said(nn.Module):
    """Its outputs are its inputs."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("batch_size", [1, 3, 4, 7, 10])
def test_uneven_batches_weigh_as_their_samples_do(batch_size: int) -> None:
    labels = torch.zeros(10, dtype=torch.int64)
    outputs = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    right = torch.tensor([True] * 8 + [False] * 2)  # the last, smaller batch is the worst
    outputs[right, 0], outputs[~right, 0] = 9.0, -9.0
    found = evaluate(Said(), Vectors(outputs, labels), batch_size, nullcontext())
    assert found is not None
    assert found.accuracy == 80.0
    assert found.loss == pytest.approx(float(F.cross_entropy(outputs, labels)), rel=1e-6)


def test_an_output_that_is_not_finite_has_no_accuracy() -> None:
    outputs = torch.zeros(10, 3)
    outputs[9, 1] = torch.nan
    assert evaluate(Said(), Vectors(outputs, torch.zeros(10, dtype=torch.int64)), 4, nullcontext()) is None
