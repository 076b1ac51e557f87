"""The nets of LeCun et al. 1998 for small grey images: LeNet-300-100, fully connected, and LeNet-5, convolutional."""

from collections import OrderedDict

from torch import nn

from regrow_lab.models.initialization import scaled


def lenet_300_100(*, inputs: int = 64, num_classes: int = 10, multiplier: float = 1.0) -> nn.Sequential:
    """Three linear layers with ReLU between them: inputs → 300 → 100 → classes, initialised as PyTorch does.

    Args:
        inputs: numbers in a sample, whatever its shape: 64 for scikit-learn's digits, 784 for MNIST.
        num_classes: outputs.
        multiplier: of the two hidden widths, rounded down.
    """
    first, second = scaled((300, 100), multiplier)
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(inputs, first),
            relu1=nn.ReLU(),
            fc2=nn.Linear(first, second),
            relu2=nn.ReLU(),
            fc3=nn.Linear(second, num_classes),
        )
    )


def lenet_5(
    *, channels: int = 1, image_size: int = 28, num_classes: int = 10, multiplier: float = 1.0
) -> nn.Sequential:
    """LeNet-5 as the pruning literature has it: 431,080 parameters on MNIST, initialised as PyTorch does.

    Two 5×5 convolutions of 20 and 50 channels without padding, each with ReLU and 2×2 max-pooling, then linear layers
    of 500 and num_classes. (The net of 1998 itself has 6 and 16 channels.)

    Args:
        channels: of the images.
        image_size: their side in pixels, 16 or more.
        num_classes: outputs.
        multiplier: of the three hidden widths, rounded down.

    Raises:
        ValueError: the images are too small for two convolutions and poolings.

    Han et al. 2015, Learning both Weights and Connections, section 4.1; the widths are those of Caffe's example.
    """
    if image_size < 16:
        raise ValueError(f"lenet-5 needs images of 16 pixels or more, given {image_size}")
    first, second, hidden = scaled((20, 50, 500), multiplier)
    side = ((image_size - 4) // 2 - 4) // 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(channels, first, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * side**2, hidden),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden, num_classes),
        )
    )
