"""MobileNet-v1: depthwise and pointwise convolutions in turn. Howard et al. 2017."""

from collections import OrderedDict

from torch import nn

from regrow_lab.models.initialization import convolution, initialise, scaled

BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1))
"""Channels and stride of each pair of convolutions (Table 1)."""


def mobilenet_v1(
    *, channels: int = 3, num_classes: int = 1000, multiplier: float = 1.0, stem_stride: int = 2
) -> nn.Sequential:
    """A 3×3 stem of 32 channels, thirteen pairs of a depthwise 3×3 and a pointwise convolution, and a linear layer.

    Every convolution is followed by BN and ReLU. The depthwise kernels are sparsifiable layers like any other; they
    hold one weight in a hundred, and papers keep them dense (``exclude="*.depthwise"``).

    Args:
        channels: of the images.
        num_classes: outputs.
        multiplier: of all widths, rounded down (the paper's width multiplier).
        stem_stride: 2 for images of 224 pixels, 1 for those of 32.
    """
    stem_width, *widths = scaled((32, *(width for width, _ in BLOCKS)), multiplier)
    stem = OrderedDict(conv=convolution(channels, stem_width, 3, stem_stride), norm=nn.BatchNorm2d(stem_width))
    modules: OrderedDict[str, nn.Module] = OrderedDict(stem=nn.Sequential(stem | {"relu": nn.ReLU()}))
    inputs = stem_width
    for number, (width, (_, stride)) in enumerate(zip(widths, BLOCKS, strict=True), start=1):
        modules[f"block{number}"] = nn.Sequential(
            OrderedDict(
                depthwise=nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
                norm1=nn.BatchNorm2d(inputs),
                relu1=nn.ReLU(),
                pointwise=convolution(inputs, width, 1),
                norm2=nn.BatchNorm2d(width),
                relu2=nn.ReLU(),
            )
        )
        inputs = width
    modules["pool"] = nn.AdaptiveAvgPool2d(1)
    modules["flatten"] = nn.Flatten()
    modules["fc"] = nn.Linear(inputs, num_classes)
    model = nn.Sequential(modules)
    initialise(model)
    return model


def mobilenet_v1_cifar(*, channels: int = 3, num_classes: int = 10, multiplier: float = 1.0) -> nn.Sequential:
    """The same with a stem of stride 1, for 32×32 images. Arguments as above."""
    return mobilenet_v1(channels=channels, num_classes=num_classes, multiplier=multiplier, stem_stride=1)
