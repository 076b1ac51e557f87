"""Networks by name. A builder takes keywords alone, ``num_classes`` and a ``multiplier`` of widths among them."""

import difflib
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from regrow_lab.models.char_gru import char_gru
from regrow_lab.models.lenet import lenet_5, lenet_300_100
from regrow_lab.models.mobilenet import mobilenet_v1, mobilenet_v1_cifar
from regrow_lab.models.resnet import (
    RESNET_18,
    RESNET_34,
    RESNET_101,
    resnet50_cifar,
    resnet50_imagenet,
    resnet_cifar,
    resnet_imagenet,
)
from regrow_lab.models.transformer import gpt, vit
from regrow_lab.models.vgg import vgg16_bn
from regrow_lab.models.wide_resnet import wide_resnet

Builder = Callable[..., nn.Module]

MODELS: dict[str, Builder] = {
    "lenet-300-100": lenet_300_100,
    "lenet-5": lenet_5,
    "wrn-22-2": wide_resnet,
    "resnet18-cifar": partial(resnet_cifar, RESNET_18),
    "resnet34-cifar": partial(resnet_cifar, RESNET_34),
    "resnet50-cifar": resnet50_cifar,
    "resnet101-cifar": partial(resnet_cifar, RESNET_101),
    "resnet18-imagenet": partial(resnet_imagenet, RESNET_18),
    "resnet34-imagenet": partial(resnet_imagenet, RESNET_34),
    "resnet50-imagenet": resnet50_imagenet,
    "resnet101-imagenet": partial(resnet_imagenet, RESNET_101),
    "vgg16-bn": vgg16_bn,
    "mobilenet-v1": mobilenet_v1,
    "mobilenet-v1-cifar": mobilenet_v1_cifar,
    "vit-12-384-16": vit,
    "gpt-4-128": gpt,
    "char-gru": char_gru,
}

FAMILIES: dict[str, tuple[str, Callable[..., nn.Module], tuple[str, ...]]] = {
    "wrn-DEPTH-WIDTH": (r"wrn-(\d+)-(\d+)", wide_resnet, ("depth", "width")),
    "vit-DEPTH-WIDTH-PATCH": (r"vit-(\d+)-(\d+)-(\d+)", vit, ("depth", "width", "patch")),
    "gpt-DEPTH-WIDTH": (r"gpt-(\d+)-(\d+)", gpt, ("depth", "width")),
}
"""Names with numbers in them: the pattern, the builder, and the keywords that the numbers are."""

INPUT_SHAPES: dict[str, tuple[int, ...]] = {
    "lenet-300-100": (64,),
    "lenet-5": (1, 28, 28),
    "wrn-22-2": (3, 32, 32),
    **dict.fromkeys(("resnet18-cifar", "resnet34-cifar", "resnet50-cifar", "resnet101-cifar"), (3, 32, 32)),
    **dict.fromkeys(
        ("resnet18-imagenet", "resnet34-imagenet", "resnet50-imagenet", "resnet101-imagenet"), (3, 224, 224)
    ),
    "vgg16-bn": (3, 32, 32),
    "mobilenet-v1": (3, 224, 224),
    "mobilenet-v1-cifar": (3, 32, 32),
    "vit-12-384-16": (3, 224, 224),
    "gpt-4-128": (512,),
    "char-gru": (512,),
}
"""One sample of what each builder's defaults are made for, without the batch dimension."""

OF_TEXT = ("gpt", "char-gru")
OF_ANY_SHAPE = ("lenet-300-100",)
OF_ONE_SIZE = ("lenet-5", "vit")
WITH_DROPOUT = ("wrn-",)
"""What the names begin with of networks whose builders take `dropout`."""
SMALLEST = {"vgg16-bn": 32}
"""Images must have so many pixels a side, for the poolings."""


def find_model(name: str) -> Builder:
    """The builder of a network, by its name or by that of its family, such as wrn-16-4.

    Raises:
        ValueError: there is no network of that name.
    """
    if name in MODELS:
        return MODELS[name]
    for pattern, build, keywords in FAMILIES.values():
        numbers = re.fullmatch(pattern, name)
        if numbers:
            if not all(map(int, numbers.groups())):
                raise ValueError(f"model '{name}' has a size of 0; expected numbers of 1 or more")
            return partial(build, **dict(zip(keywords, map(int, numbers.groups()), strict=True)))
    near = difflib.get_close_matches(name, MODELS, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(f"unknown model '{name}'; expected one of {', '.join([*MODELS, *FAMILIES])}{hint}")


def input_shape(name: str) -> tuple[int, ...]:
    """One sample of what the builder's defaults are made for, families included.

    Raises:
        ValueError: there is no network of that name.
    """
    find_model(name)
    if name in INPUT_SHAPES:
        return INPUT_SHAPES[name]
    family = name.partition("-")[0]
    return next(shape for known, shape in INPUT_SHAPES.items() if known.startswith(f"{family}-"))


def example_input(name: str, batch_size: int = 1, device: torch.device | str = "meta") -> Tensor:
    """Zeros of the shape that the network's defaults are made for; int64 for one that reads text."""
    dtype = torch.int64 if name.startswith(OF_TEXT) else torch.float32
    return torch.zeros(batch_size, *input_shape(name), dtype=dtype, device=device)


def fit(name: str, shape: tuple[int, ...], *, text: bool, data: str) -> dict[str, Any]:
    """The keywords that make a network take samples of another shape than its defaults' do.

    Args:
        name: of the network.
        shape: of one sample: channels × height × width, (numbers,), or (length,) of a text.
        text: whether samples are tokens.
        data: name of the data, for the message.

    Raises:
        ValueError: the network cannot take such samples.
    """
    default = input_shape(name)
    is_image = len(shape) == 3
    if text == name.startswith(OF_TEXT):
        if text:
            return {"context": max(shape[0], default[0])} if name.startswith("gpt") else {}
        if name in OF_ANY_SHAPE:
            return {} if shape == default else {"inputs": math.prod(shape)}
        if is_image and min(shape[1:]) >= SMALLEST.get(name, 1):
            channels = {} if shape[0] == default[0] else {"channels": shape[0]}
            if not name.startswith(OF_ONE_SIZE):
                return channels
            if shape[1] == shape[2]:
                return channels if shape[1:] == default[1:] else channels | {"image_size": shape[1]}
    raise ValueError(f"model {name} takes inputs of shape {default}, data {data} has {shape}: choose another")
