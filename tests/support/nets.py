"""Small nets and a plain training loop that several tests share."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def mlp(seed: int = 0, width: int = 24) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(12, width), nn.ReLU(), nn.Linear(width, 16), nn.ReLU(), nn.Linear(16, 5))


def convnet(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, stride=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 5),
    )


def batch(step: int, shape: tuple[int, ...] = (32, 12), classes: int = 5) -> tuple[Tensor, Tensor]:
    """The data of one step, a function of the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(shape, generator=generator), torch.randint(classes, shape[:1], generator=generator)


def train(
    model: nn.Module,
    optimizer: Optimizer,
    steps: range,
    each: Callable[[int], None] = lambda step: None,
    shape: tuple[int, ...] = (32, 12),
) -> None:
    """The loop a user would write; ``each`` looks at the state after every step."""
    for step in steps:
        inputs, targets = batch(step, shape)
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        each(step)


def sgd(model: nn.Module, **options: float | bool) -> Optimizer:
    settings: dict[str, float | bool] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    return torch.optim.SGD(model.parameters(), **(settings | options))  # type: ignore[arg-type]
