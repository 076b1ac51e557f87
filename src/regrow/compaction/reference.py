"""What a program computes, said in torch's own operations: the reference for the engine, and what runs without it."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from regrow.engine.program import (
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dropout,
    Flatten,
    Input,
    MaxPool,
    Norm,
    Operation,
    Program,
    Relu,
)


def interpret(
    program: Program,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    norms: Sequence[Norm],
    training: bool,
) -> tuple[Tensor, ...]:
    """The region's outputs, with torch's autograd behind them.

    Args:
        program: what to compute.
        inputs: (batch, channels, height, width), or (batch, features) where height = width = 1.
        weights: dense, of two or four dimensions.
        biases: (out,) each.
        norms: batch normalisations; the running statistics are updated in training.
        training: as ``nn.Module.training``.

    Returns:
        Tensors of four dimensions, or of two where the value comes from a linear layer, a flattening or such an input.
    """
    values: list[Tensor] = []
    for operation in program.operations:
        values.append(_step(operation, values, inputs, weights, biases, norms, training))
    return tuple(values[number] for number in program.outputs)


def _step(
    operation: Operation,
    values: Sequence[Tensor],
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    norms: Sequence[Norm],
    training: bool,
) -> Tensor:
    match operation:
        case Input(position):
            return inputs[position]
        case Convolution(source, weight, bias):
            offset = None if bias is None else biases[bias]
            return _convolution(operation, values[source], weights[weight], offset)
        case BatchNorm(source, norm):
            it = norms[norm]
            return F.batch_norm(
                values[source],
                it.running_mean,
                it.running_var,
                it.weight,
                it.bias,
                training,
                0.0 if it.momentum is None else it.momentum,
                it.eps,
            )
        case Relu(source):
            return F.relu(values[source])
        case Dropout(source, probability):
            return F.dropout(values[source], probability, training)
        case Add(left, right):
            return values[left] + values[right]
        case AveragePool(source, None):
            return F.adaptive_avg_pool2d(values[source], 1)
        case AveragePool(source, kernel, stride, padding):
            assert kernel is not None
            return F.avg_pool2d(values[source], kernel, stride, padding)
        case MaxPool(source, kernel, stride, padding):
            return F.max_pool2d(values[source], kernel, stride, padding)
        case Flatten(source):
            return torch.flatten(values[source], 1)


def output_dtypes(program: Program, inputs: Sequence[torch.dtype], cast: torch.dtype | None) -> tuple[torch.dtype, ...]:
    """What the outputs would be of if torch ran the program.

    Args:
        program: what is computed.
        inputs: dtype of each.
        cast: what autocast has convolutions and linear layers compute in; None where it is off.
    """
    values: list[torch.dtype] = []
    for operation in program.operations:
        match operation:
            case Input(position):
                values.append(inputs[position])
            case Add(left, right):
                values.append(torch.promote_types(values[left], values[right]))
            case Convolution(source):
                values.append(values[source] if cast is None else cast)
            case _:
                values.append(values[operation.source])
    return tuple(values[number] for number in program.outputs)


def convolution_gradients(
    operation: Convolution, x: Tensor, weight: Tensor, gradient: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of a convolution's (or linear layer's) input, dense weight and bias, without autograd."""
    if x.dim() == 2:
        return gradient @ weight, gradient.T @ x, gradient.sum(0)
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.aten.convolution_backward(
        gradient,
        x,
        weight,
        [len(weight)],
        operation.stride,
        operation.padding,
        operation.dilation,
        False,
        [0, 0],
        1,
        [True, True, True],
    )
    return found


def _convolution(operation: Convolution, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.dim() == 2:
        return F.linear(x, weight.flatten(1), bias)
    if weight.dim() == 2:
        weight = weight[:, :, None, None]
    return F.conv2d(x, weight, bias, operation.stride, operation.padding, operation.dilation)
