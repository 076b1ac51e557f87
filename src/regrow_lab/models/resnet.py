"""ResNet-18, -34, -50 and -101 for CIFAR and for ImageNet; bottlenecks stride on the 3×3. He et al. 2016."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn import functional as F

from regrow_lab.models.initialization import convolution, initialise, scaled


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, each with BN, beside the identity or a 1×1 projection; the last BN starts at 0."""

    expansion = 1

    def __init__(self, inputs: int, channels: int, stride: int, *, project: bool) -> None:
        super().__init__()
        self.conv1 = convolution(inputs, channels, 3, stride)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3)
        self.norm2 = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut = _projection(inputs, channels, stride) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(residual)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolution, each with BN, beside the identity or a 1×1 projection; the last BN starts at 0."""

    expansion = 4

    def __init__(self, inputs: int, channels: int, stride: int, *, project: bool) -> None:
        super().__init__()
        outputs = self.expansion * channels
        self.conv1 = convolution(inputs, channels, 1)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = convolution(channels, channels, 3, stride)
        self.norm2 = nn.BatchNorm2d(channels)
        self.conv3 = convolution(channels, outputs, 1)
        self.norm3 = nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.norm3.weight)
        self.shortcut = _projection(inputs, outputs, stride) if project else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        residual = F.relu(self.norm1(self.conv1(x)))
        residual = F.relu(self.norm2(self.conv2(residual)))
        return F.relu(self.norm3(self.conv3(residual)) + self.shortcut(x))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(conv=convolution(inputs, outputs, 1, stride), norm=nn.BatchNorm2d(outputs)))


Kind = tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]

RESNET_18: Kind = (BasicBlock, (2, 2, 2, 2))
RESNET_34: Kind = (BasicBlock, (3, 4, 6, 3))
RESNET_50: Kind = (Bottleneck, (3, 4, 6, 3))
RESNET_101: Kind = (Bottleneck, (3, 4, 23, 3))


def resnet_cifar(kind: Kind, *, channels: int = 3, num_classes: int = 100, multiplier: float = 1.0) -> nn.Sequential:
    """A ResNet for 32×32 images: the stem is one 3×3 convolution of stride 1, without pooling.

    Args:
        kind: block and number of blocks in each stage, such as RESNET_50.
        channels: of the images.
        num_classes: outputs.
        multiplier: of the stages' widths, rounded down; the stem keeps its 64 channels.

    With RESNET_50 the net of the CIFAR-100 experiments of Sundar & Dwaraknath 2021 (its supplementary, section 1).
    """
    stem = OrderedDict(conv=convolution(channels, 64, 3), norm=nn.BatchNorm2d(64), relu=nn.ReLU())
    return _resnet(kind, nn.Sequential(stem), num_classes, multiplier)


def resnet_imagenet(
    kind: Kind, *, channels: int = 3, num_classes: int = 1000, multiplier: float = 1.0
) -> nn.Sequential:
    """A ResNet for 224×224 images: the stem is a 7×7 convolution of stride 2 and a max-pool. Arguments as above."""
    stem = OrderedDict(
        conv=convolution(channels, 64, 7, stride=2),
        norm=nn.BatchNorm2d(64),
        relu=nn.ReLU(),
        pool=nn.MaxPool2d(3, 2, padding=1),
    )
    return _resnet(kind, nn.Sequential(stem), num_classes, multiplier)


def resnet50_cifar(*, channels: int = 3, num_classes: int = 100, multiplier: float = 1.0) -> nn.Sequential:
    """ResNet-50 for 32×32 images. Arguments as above."""
    return resnet_cifar(RESNET_50, channels=channels, num_classes=num_classes, multiplier=multiplier)


def resnet50_imagenet(*, channels: int = 3, num_classes: int = 1000, multiplier: float = 1.0) -> nn.Sequential:
    """ResNet-50 for 224×224 images. Arguments as above."""
    return resnet_imagenet(RESNET_50, channels=channels, num_classes=num_classes, multiplier=multiplier)


def _resnet(kind: Kind, stem: nn.Sequential, num_classes: int, multiplier: float) -> nn.Sequential:
    block, depths = kind
    modules: OrderedDict[str, nn.Module] = OrderedDict(stem=stem)
    inputs = 64
    widths = scaled((64, 128, 256, 512), multiplier)
    for number, (channels, num_blocks) in enumerate(zip(widths, depths, strict=True), start=1):
        stage = nn.Sequential()
        for position in range(num_blocks):
            stride = 2 if number > 1 and position == 0 else 1
            keeps_shape = stride == 1 and inputs == channels
            project = position == 0 and not (block is BasicBlock and keeps_shape)
            stage.append(block(inputs, channels, stride, project=project))
            inputs = block.expansion * channels
        modules[f"stage{number}"] = stage
    modules["pool"] = nn.AdaptiveAvgPool2d(1)
    modules["flatten"] = nn.Flatten()
    modules["fc"] = nn.Linear(inputs, num_classes)
    model = nn.Sequential(modules)
    initialise(model)
    return model
