"""VGG-16 with batch normalisation, for small images. Simonyan & Zisserman 2015, configuration D."""

from collections import OrderedDict

from torch import nn

from regrow_lab.models.initialization import convolution, initialise, scaled

STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and number of convolutions between two poolings."""


def vgg16_bn(*, channels: int = 3, num_classes: int = 10, multiplier: float = 1.0) -> nn.Sequential:
    """Thirteen 3×3 convolutions with BN and ReLU, 2×2 max-pooling after each stage, and one linear layer.

    The form that CIFAR experiments use: the two hidden linear layers of 4096 are left out, convolutions have no bias.

    Args:
        channels: of the images, whose side is 32 pixels or more.
        num_classes: outputs.
        multiplier: of all widths, rounded down.
    """
    modules: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = channels
    widths = scaled(tuple(width for width, _ in STAGES), multiplier)
    for number, (width, (_, num_convolutions)) in enumerate(zip(widths, STAGES, strict=True), start=1):
        stage: OrderedDict[str, nn.Module] = OrderedDict()
        for position in range(1, num_convolutions + 1):
            stage[f"conv{position}"] = convolution(inputs, width, 3)
            stage[f"norm{position}"] = nn.BatchNorm2d(width)
            stage[f"relu{position}"] = nn.ReLU()
            inputs = width
        stage["pool"] = nn.MaxPool2d(2)
        modules[f"stage{number}"] = nn.Sequential(stage)
    modules["pool"] = nn.AdaptiveAvgPool2d(1)
    modules["flatten"] = nn.Flatten()
    modules["fc"] = nn.Linear(inputs, num_classes)
    model = nn.Sequential(modules)
    initialise(model)
    return model
