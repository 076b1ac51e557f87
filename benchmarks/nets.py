"""The nets of the benchmarks, by name, with the shape of a sample and the batch they are measured at."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from regrow_lab.models import find_model


@dataclass(frozen=True)
class Net:
    build: Callable[[], nn.Module]
    sample: tuple[int, ...]
    batch: int
    classes: int = 10


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        same = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if same
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18() -> nn.Sequential:
    """ResNet-18 in its ImageNet form. He et al. 2016."""
    modules: list[nn.Module] = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    ]
    inputs = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        modules += [BasicBlock(inputs, width, stride), BasicBlock(width, width, 1)]
        inputs = width
    return nn.Sequential(*modules, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


NETS = {
    "wrn-22-2": Net(find_model("wrn-22-2"), (3, 32, 32), 128),
    "resnet50-cifar": Net(find_model("resnet50-cifar"), (3, 32, 32), 128, 100),
    "resnet18": Net(resnet18, (3, 224, 224), 16, 1000),
    "mlp-3072": Net(lambda: mlp(3072, 1024, 1024, 10), (3072,), 128),
    "lenet-300-100": Net(lambda: mlp(784, 300, 100, 10), (784,), 128),
    "lenet-digits": Net(lambda: mlp(64, 300, 100, 10), (64,), 64),
}
