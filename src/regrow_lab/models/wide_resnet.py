"""Wide residual networks for small images. Zagoruyko & Komodakis 2016."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from regrow_lab.models.initialization import convolution, initialise, scaled


class PreactivationBlock(nn.Module):
    """BN-ReLU-conv-BN-ReLU-dropout-conv beside the identity, or beside a 1×1 convolution of the activated input."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float, *, project: bool) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = convolution(inputs, outputs, 3, stride)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = convolution(outputs, outputs, 3)
        self.shortcut = convolution(inputs, outputs, 1, stride) if project else None

    def forward(self, x: Tensor) -> Tensor:
        activated = F.relu(self.norm1(x))
        residual: Tensor = self.conv2(self.dropout(F.relu(self.norm2(self.conv1(activated)))))
        return residual + (x if self.shortcut is None else self.shortcut(activated))


def wide_resnet(
    *,
    depth: int = 22,
    width: int = 2,
    channels: int = 3,
    num_classes: int = 10,
    multiplier: float = 1.0,
    dropout: float = 0.3,
) -> nn.Sequential:
    """WRN-depth-width: a 3×3 stem of 16 channels and three stages of (depth − 4) / 6 pre-activation blocks.

    Args:
        depth: number of convolutions on the longest path and the linear layer, 6 n + 4.
        width: factor on the stages' 16, 32 and 64 channels.
        channels: of the images.
        num_classes: outputs.
        multiplier: of the stages' channels, rounded down; the stem keeps its 16.
        dropout: probability, between the two convolutions of a block.

    Raises:
        ValueError: the depth is not 6 n + 4.

    With the defaults the net of the CIFAR-10 experiments of Sundar & Dwaraknath 2021.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth is {depth}; expected 6 n + 4: 10, 16, 22, 28, …")
    num_blocks = (depth - 4) // 6
    inputs = 16
    modules: OrderedDict[str, nn.Module] = OrderedDict(stem=convolution(channels, inputs, 3))
    for number, outputs in enumerate(scaled((16 * width, 32 * width, 64 * width), multiplier), start=1):
        stage = nn.Sequential()
        for block in range(num_blocks):
            stride = 2 if number > 1 and block == 0 else 1
            stage.append(PreactivationBlock(inputs, outputs, stride, dropout, project=block == 0))
            inputs = outputs
        modules[f"stage{number}"] = stage
    modules["norm"] = nn.BatchNorm2d(inputs)
    modules["relu"] = nn.ReLU()
    modules["pool"] = nn.AdaptiveAvgPool2d(1)
    modules["flatten"] = nn.Flatten()
    modules["fc"] = nn.Linear(inputs, num_classes)
    model = nn.Sequential(modules)
    initialise(model)
    return model
