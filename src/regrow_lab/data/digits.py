"""scikit-learn's handwritten digits: 1,797 grey 8x8 images of ten digits."""

from __future__ import annotations

import torch

TEST_SAMPLES = 500


def digits() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Training inputs and labels, test inputs and labels.

    Inputs are 64 numbers in [0, 1]. The split into 1,297 and 500 samples is one fixed permutation, the same for every
    seed, not stratified.

    Alpaydin & Kaynak, Optical Recognition of Handwritten Digits (UCI, 1998), as scikit-learn ships it.
    """
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inputs = torch.as_tensor(images, dtype=torch.float32)[order] / 16
    targets = torch.as_tensor(labels, dtype=torch.int64)[order]
    return inputs[TEST_SAMPLES:], targets[TEST_SAMPLES:], inputs[:TEST_SAMPLES], targets[:TEST_SAMPLES]


def digits_images() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The same, its inputs as grey images (uint8, N × 8 × 8 × 1): for nets with convolutions."""
    train_inputs, train_labels, test_inputs, test_labels = digits()

    def images(inputs: torch.Tensor) -> torch.Tensor:
        return (inputs * 240).to(torch.uint8).view(-1, 8, 8, 1)

    return images(train_inputs), train_labels, images(test_inputs), test_labels
