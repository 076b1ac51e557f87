"""Compact layers as operators of ``torch.library``, which is how ``torch.compile`` and ``torch.export`` see them.

A compiled graph holds one opaque operator for each compact layer; what stands between them is compiled as always. Run
uncompiled, a model is one operator a region instead, which is faster: nothing is left between the layers to compile.
"""

from contextlib import AbstractContextManager, nullcontext
from itertools import count
from typing import Any, Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from regrow.compaction.compact_weight import CompactWeight
from regrow.compaction.refused_tools import guard_saving
from regrow.engine.program import Convolution


class Layer(Protocol):
    """What the operators ask of a compact layer."""

    compact: CompactWeight
    bias: Tensor | None

    def operation(self, bias: int | None) -> Convolution:
        """Stride, padding and dilation."""

    def run(self, input: Tensor) -> Tensor:
        """The layer's output, with autograd behind it."""

    def gradients(self, input: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of input, values and bias, without autograd, given that of the output."""


_layers: "WeakValueDictionary[int, Layer]" = WeakValueDictionary()


_numbers = count()


def register(layer: Layer) -> int:
    """A number that stands for the layer in graphs; good in this process."""
    guard_saving()
    number = next(_numbers)
    _layers[number] = layer
    return number


def _layer(number: int) -> Layer:
    try:
        return _layers[number]
    except KeyError:
        raise RuntimeError(
            "this compiled or exported graph belongs to compact layers that are not in this process (any more): export "
            "regrow.to_dense(copy.deepcopy(model)), or compile and export again where it runs"
        ) from None


def cast_to() -> torch.dtype | None:
    """What autocast has layers compute in at the moment; None where it is off."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None


def _casting(cast: torch.dtype | None) -> AbstractContextManager[Any]:
    """Autocast as it was where the graph was made: a compiled graph has its casts written out and runs without."""
    return nullcontext() if cast is None else torch.autocast("cpu", cast, cache_enabled=False)


@torch.library.custom_op("regrow::layer", mutates_args=())
def layer(input: Tensor, values: Tensor, bias: Tensor | None, number: int, cast: torch.dtype | None) -> Tensor:
    """The output of compact layer ``number``; values and bias are the layer's own, named for autograd's sake."""
    with torch.no_grad(), _casting(cast):
        return _layer(number).run(input)


@layer.register_fake
def _(input: Tensor, values: Tensor, bias: Tensor | None, number: int, cast: torch.dtype | None) -> Tensor:
    uncast = cast is None or values.dtype == torch.float64  # which autocast leaves alone
    return output_like(_layer(number), input).to(input.dtype if uncast else cast)


@torch.library.custom_op("regrow::layer_backward", mutates_args=())
def layer_backward(
    gradient: Tensor, input: Tensor, values: Tensor, number: int, cast: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of input, values and bias (empty where there is none)."""
    with _casting(cast):
        of_input, of_values, of_bias = _layer(number).gradients(input, gradient)
    return of_input.contiguous(), of_values, values.new_empty(0) if of_bias is None else of_bias


@layer_backward.register_fake
def _(
    gradient: Tensor, input: Tensor, values: Tensor, number: int, cast: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    bias = _layer(number).bias
    return (
        torch.empty_like(input, memory_format=torch.contiguous_format),
        torch.empty_like(values),
        values.new_empty(0) if bias is None else values.new_empty(len(bias), dtype=bias.dtype),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], inputs[1])
    ctx.has_bias, ctx.number, ctx.cast = inputs[2] is not None, inputs[3], inputs[4]


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
    source, values, bias = layer_backward(gradient, *ctx.saved_tensors, ctx.number, ctx.cast)
    return source, values, bias if ctx.has_bias else None, None, None


layer.register_autograd(_backward, setup_context=_setup)


def output_like(owner: Layer, input: Tensor) -> Tensor:
    """An empty tensor of the shape of the layer's output."""
    shape = owner.compact.shape
    if len(shape) == 2:
        return input.new_empty((*input.shape[:-1], shape[0]))
    operation = owner.operation(None)
    sizes = [
        (size + 2 * pad - step * (kernel - 1) - 1) // stride + 1
        for size, pad, step, kernel, stride in zip(
            input.shape[-2:], operation.padding, operation.dilation, shape[2:], operation.stride, strict=True
        )
    ]
    return input.new_empty((*input.shape[:-3], shape[0], *sizes))
