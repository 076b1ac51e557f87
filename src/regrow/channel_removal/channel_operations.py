"""What one operation on one tensor does with its channels."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
SUMS = {"add", "iadd", "add_", "mul", "imul", "mul_"}
SCALINGS = {*SUMS, "sub", "truediv", "div", "clamp"}
RESHAPES = {"flatten", "view", "reshape", "squeeze"}
CHANNELWISE = {
    *("relu", "relu_", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh"),
    *("hardtanh", "hardswish", "hardsigmoid", "softplus", "softsign", "logsigmoid", "clamp", "identity"),
    *("dropout", "dropout1d", "dropout2d", "dropout3d", "alphadropout", "featurealphadropout"),
    *("contiguous", "clone", "to", "float"),
    *("neg", "sub", "truediv", "div"),  # of a tensor and a number
}
"""What maps each number by itself: names of functions and methods, and of modules in lower case."""
AVERAGES = {f"{kind}{n}d" for kind in ("avgpool", "avg_pool") for n in (1, 2, 3)}
POSITIONS = {
    f"{kind}{n}d": n
    for kind in (
        *("maxpool", "avgpool", "adaptiveavgpool", "adaptivemaxpool", "zeropad"),
        *("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool"),
    )
    for n in (1, 2, 3)
}
RESIZES = {"upsample", "interpolate", "pad"}
"""What maps each channel by itself along its positions: of these along how many dimensions, of those along any."""


@dataclass(frozen=True)
class Channels:
    """The channels of one tensor: their dimension, the atom of each, and which are the same whatever the input.

    Of these, ``sized`` are those that may be another image or constant for inputs of another size; the others hold one
    number at every position of inputs of every size.
    """

    dim: int
    atoms: list[int]
    fixed: Tensor
    sized: Tensor

    @classmethod
    def varying(cls, dim: int, atoms: list[int]) -> "Channels":
        """All of them depend on the input."""
        none = torch.zeros(len(atoms), dtype=torch.bool)
        return cls(dim, atoms, none, none)


def name_of(node: fx.Node, interpreter: fx.Interpreter) -> str:
    """The name by which an operation is known."""
    if node.op == "call_module":
        return type(interpreter.fetch_attr(str(node.target))).__name__.lower()
    target: str | Callable[..., Any] = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def is_zero_padded(module: nn.Module) -> bool:
    """Whether a convolution's outputs at the border see zeros that are none of the input's."""
    if not isinstance(module, CONVOLUTIONS) or module.padding_mode != "zeros":
        return False
    return any(module._reversed_padding_repeated_twice)  # also of padding="same"


def nonzero(value: Tensor, source: Channels) -> Tensor:
    """Which channels hold anything but zeros."""
    return value.movedim(source.dim, 0).flatten(1).any(dim=1).cpu()


def along_positions(
    operation: str, node: fx.Node, module: nn.Module | None, value: Tensor, source: Channels, result: Tensor
) -> Channels | None:
    """Channels of what a pool, a padding or a resizing gives, where it does not run along them."""
    dimensions = POSITIONS.get(operation, max(1, value.dim() - 2))
    if source.dim != 1 or value.dim() != dimensions + 2 or result.shape[:2] != value.shape[:2]:
        return None

    def setting(name: str, position: int, default: Any) -> Any:
        if module is not None:
            return getattr(module, name, default)
        return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)

    bordered = torch.zeros_like(source.sized)
    if operation in AVERAGES:
        padding = setting("padding", 3, 0)
        padded = any(padding) if isinstance(padding, (tuple, list)) else bool(padding)
        # A divisor of one's own is wrong for a window that stands over the edge, as ceil_mode lets it.
        if (padded and setting("count_include_pad", 5, True)) or setting("divisor_override", 6, None) is not None:
            bordered = nonzero(value, source)
    elif "pad" in operation and setting("mode", 2, "constant") == "constant":
        bordered = nonzero(value, source) if not setting("value", 3, None) else ~bordered
    return Channels(1, source.atoms, source.fixed, source.sized | (source.fixed & bordered))


def same_channels(operation: str, node: fx.Node, value: Tensor, source: Channels, result: Tensor) -> Channels | None:
    """Channels of what an operation on one tensor gives, where it keeps them apart."""
    if operation in SCALINGS and len(node.all_input_nodes) > 1:  # with a number that is taken from the input's shape
        return None
    if operation in CHANNELWISE | SUMS:
        kept = result.shape[:2] == value.shape[:2] if source.dim == 1 else result.shape == value.shape
        return source if kept else None
    if operation == "mean" and source.dim == 1:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        listed = [dims] if isinstance(dims, int) else dims
        if not isinstance(listed, (list, tuple)) or not listed or not all(isinstance(d, int) for d in listed):
            return None
        over = {int(d) % value.dim() for d in listed if isinstance(d, int)}
        return source if min(over) > 1 else None
    if operation in RESHAPES and source.dim == 1 and result.shape[0] == value.shape[0]:
        if result.shape == value.shape:
            return source
        if result.dim() == 2 and result.numel() == value.numel():
            times = math.prod(value.shape[2:])
            atoms = [atom for atom in source.atoms for _ in range(times)]
            return Channels(1, atoms, source.fixed.repeat_interleave(times), source.sized.repeat_interleave(times))
    return None
