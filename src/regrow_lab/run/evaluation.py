"""What a net is worth on data that it was not trained on."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regrow_lab.data.batches import IGNORED, Part

MOST_SAMPLES = 1000
MOST_NUMBERS = 3_072_000
"""Bounds on an evaluation batch: samples, and numbers in its inputs or outputs."""


@dataclass(frozen=True)
class Measured:
    """Mean cross-entropy in nats and percent of right answers, over every sample (or character)."""

    loss: float
    accuracy: float


def loss_of(outputs: Tensor, labels: Tensor, *, label_smoothing: float = 0.0, reduction: str = "mean") -> Tensor:
    """Cross-entropy of the logits (batch × classes, or batch × length × classes) of one or many labels a sample."""
    return F.cross_entropy(
        outputs.flatten(0, -2), labels.flatten(), label_smoothing=label_smoothing, reduction=reduction
    )


@torch.no_grad()
def evaluate(
    model: nn.Module, part: Part, batch_size: int, precision: AbstractContextManager[object]
) -> Measured | None:
    """Loss and accuracy of `model`, set to evaluation mode, on `part`; None if an output is not finite."""
    model.eval()
    loss, correct, counted, finite = 0.0, 0, 0, True
    for inputs, labels in part.batches(torch.arange(len(part)), batch_size):
        with precision:
            outputs = model(inputs)
        outputs = outputs.float()
        known = labels != IGNORED
        loss += float(loss_of(outputs, labels, reduction="sum").double())
        correct += int((outputs.argmax(-1) == labels)[known].sum())
        counted += int(known.sum())
        finite &= bool(outputs.isfinite().all())
    return Measured(loss / counted, 100 * correct / counted) if finite else None


def batch_size_for(numbers: int) -> int:
    """Samples in an evaluation batch, where each sample has so many numbers in its inputs or outputs."""
    return max(1, min(MOST_SAMPLES, MOST_NUMBERS // numbers))
