"""What the convolutional networks share: bias-free convolutions and their initial values."""

from torch import nn


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    """A bias-free convolution that keeps the size of the image at stride 1."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)


def initialise(model: nn.Module) -> None:
    """Convolutions He-normal by fan-out, linear biases 0; the rest stays as PyTorch made it.

    He et al. 2015, section 2.2.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def scaled(widths: tuple[int, ...], multiplier: float) -> list[int]:
    """Widths times the multiplier, rounded down, at least 1."""
    return [max(1, int(width * multiplier)) for width in widths]
