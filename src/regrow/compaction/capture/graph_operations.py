"""Which nodes of a traced graph a program can say, and how."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from regrow.compaction import compact_modules
from regrow.engine.program import (
    Add,
    AveragePool,
    BatchNorm,
    Convolution,
    Dropout,
    Flatten,
    MaxPool,
    Operation,
    Relu,
)


@dataclass(eq=False)
class Writer:
    """A program while it is written, and the modules that its numbers mean."""

    operations: list[Operation] = field(default_factory=list)
    layers: list[nn.Module] = field(default_factory=list)
    offsets: list[nn.Module] = field(default_factory=list)
    norms: list[nn.Module] = field(default_factory=list)

    def add(self, operation: Operation) -> int:
        """Number of the value that the operation makes."""
        self.operations.append(operation)
        return len(self.operations) - 1


@dataclass(frozen=True)
class Step:
    """A node as operations: the nodes it reads, and what writes it, given the numbers of their values."""

    sources: tuple[fx.Node, ...]
    write: Callable[[Writer, tuple[int, ...]], int]

    @property
    def is_identity(self) -> bool:
        """Whether the value is the source's."""
        return self.write is _as_it_is


def recognise(node: fx.Node, modules: Mapping[str, nn.Module], training: bool) -> Step | None:
    """A node as a step of a program; None where torch must run it.

    Args:
        node: with ``meta["shape"]`` and ``meta["dtype"]``, as have its inputs; None for what is no tensor.
        modules: the model's, by name.
        training: the mode of the region; a module in the other one is left to torch.
    """
    if node.op == "call_module":
        module = modules[str(node.target)]
        own = has_hooks(module) or "forward" in module.__dict__
        rule = None if own else _MODULES.get(type(module))
        step = None if rule is None else rule(node, module, training)
    elif node.op in ("call_function", "call_method"):
        function = _FUNCTIONS.get(node.target)
        step = None if function is None else function(node)
        if node.target is F.dropout and not training and _drops(node):
            step = None  # in evaluation too, where regions do not
    else:
        step = None
    if step is None or not _fits(node) or not all(_fits(source) for source in step.sources):
        return None
    return step


FORWARD, FORWARD_PRE, BACKWARD, BACKWARD_PRE = HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def has_hooks(module: nn.Module) -> bool:
    """Whether someone listens to the module's calls."""
    return any(module.__dict__[kind] for kind in HOOKS)


def shape(node: Any) -> tuple[int, ...] | None:
    """Shape of a node's tensor; None where it is none."""
    found = node.meta.get("shape") if isinstance(node, fx.Node) else None
    return found if isinstance(found, tuple) else None


def _fits(node: fx.Node) -> bool:
    return len(shape(node) or ()) in (2, 4) and node.meta["dtype"].is_floating_point


def _same(node: fx.Node, operation: Callable[[int], Operation] | None) -> Step | None:
    """A step with one source; without an operation it is the source itself."""
    source = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(source, fx.Node):
        return None
    if operation is None:
        return Step((source,), _as_it_is)
    return Step((source,), lambda writer, numbers: writer.add(operation(numbers[0])))


def _as_it_is(writer: Writer, numbers: tuple[int, ...]) -> int:
    return numbers[0]


def _arguments(node: fx.Node, **defaults: Any) -> dict[str, Any]:
    """The arguments after the first, by name, with their defaults."""
    given = dict(zip(defaults, node.args[1:], strict=False))
    return {**defaults, **given, **{key: value for key, value in node.kwargs.items() if key != "input"}}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


# Modules


def _convolution(node: fx.Node, module: nn.Module, training: bool) -> Step | None:
    known = compact_modules.obstacle(module) is None or isinstance(module, compact_modules.CompactLayer)
    linear = isinstance(module, nn.Linear)
    if not known or len(shape(node) or ()) != (2 if linear else 4):
        return None
    geometry = () if not isinstance(module, nn.Conv2d) else compact_modules.convolution_geometry(module)

    def write(writer: Writer, numbers: tuple[int, ...]) -> int:
        weight, bias = len(writer.layers), None
        writer.layers.append(module)
        if module.bias is not None:
            bias = len(writer.offsets)
            writer.offsets.append(module)
        return writer.add(Convolution(numbers[0], weight, bias, *geometry))

    source = node.args[0] if node.args else None
    return Step((source,), write) if isinstance(source, fx.Node) else None


def _norm(node: fx.Node, module: nn.Module, training: bool) -> Step | None:
    assert isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))
    plain = module.affine and module.track_running_stats and module.momentum is not None
    if not plain or module.training != training:
        return None

    def write(writer: Writer, numbers: tuple[int, ...]) -> int:
        writer.norms.append(module)
        return writer.add(BatchNorm(numbers[0], len(writer.norms) - 1))

    source = node.args[0] if node.args else None
    return Step((source,), write) if isinstance(source, fx.Node) else None


def _dropout_module(node: fx.Node, module: nn.Module, training: bool) -> Step | None:
    assert isinstance(module, nn.Dropout)
    return _dropout(node, module.p, module.training, training)


def _dropout(node: fx.Node, probability: Any, drops: Any, training: bool = True) -> Step | None:
    if not isinstance(drops, bool) or not isinstance(probability, (int, float)):
        return None
    if not drops or probability == 0:
        return _same(node, None)
    return _same(node, lambda source: Dropout(source, float(probability))) if training and probability < 1 else None


def _average(node: fx.Node, kernel: Any, stride: Any, padding: Any, *others: Any) -> Step | None:
    if others != (False, True, None) or len(shape(node) or ()) != 4:  # ceil_mode, count_include_pad, divisor_override
        return None
    sizes = (_pair(kernel), _pair(kernel if stride is None else stride), _pair(padding))
    return _same(node, lambda source: AveragePool(source, *sizes))


def _maximum(node: fx.Node, kernel: Any, stride: Any, padding: Any, *others: Any) -> Step | None:
    if others != (1, False, False) or len(shape(node) or ()) != 4:  # dilation, ceil_mode, return_indices
        return None
    sizes = (_pair(kernel), _pair(kernel if stride is None else stride), _pair(padding))
    return _same(node, lambda source: MaxPool(source, *sizes))


def _whole(node: fx.Node) -> Step | None:
    """Average over the whole image, (1, 1) remaining."""
    known = shape(node)
    return _same(node, lambda source: AveragePool(source, None)) if known is not None and known[2:] == (1, 1) else None


def _flatten(node: fx.Node) -> Step | None:
    """Whatever makes (batch, C · H · W) of (batch, C, H, W), by its shapes."""
    source = node.args[0] if node.args else None
    before, after = shape(source), shape(node)
    if before is None or after is None or len(after) != 2 or before[0] != after[0]:
        return None
    return _same(node, Flatten if len(before) == 4 else None)


_MODULES: dict[type[nn.Module], Callable[[fx.Node, Any, bool], Step | None]] = {
    nn.Conv2d: _convolution,
    nn.Linear: _convolution,
    compact_modules.CompactConv2d: _convolution,
    compact_modules.CompactLinear: _convolution,
    nn.BatchNorm1d: _norm,
    nn.BatchNorm2d: _norm,
    nn.ReLU: lambda node, module, training: _same(node, Relu),
    nn.Dropout: _dropout_module,
    nn.Identity: lambda node, module, training: _same(node, None),
    nn.Flatten: lambda node, module, training: _flatten(node),
    nn.AdaptiveAvgPool2d: lambda node, module, training: _whole(node),
    nn.AvgPool2d: lambda node, m, training: _average(
        node, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
    ),
    nn.MaxPool2d: lambda node, m, training: _maximum(
        node, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode, m.return_indices
    ),
}


# Functions and methods


def _add(node: fx.Node) -> Step | None:
    extra = {key: value for key, value in node.kwargs.items() if key not in ("input", "other")}
    operands = [*node.args, *(node.kwargs[key] for key in ("input", "other") if key in node.kwargs)]
    if extra or len(operands) != 2 or not all(isinstance(operand, fx.Node) for operand in operands):
        return None
    left, right = operands
    assert isinstance(left, fx.Node)
    assert isinstance(right, fx.Node)
    if shape(left) is None or shape(left) != shape(right):
        return None
    return Step((left, right), lambda writer, numbers: writer.add(Add(*numbers)))


def _mean(node: fx.Node) -> Step | None:
    over = _arguments(node, dim=None, keepdim=False)
    dims, source = over["dim"], node.args[0] if node.args else None
    before = shape(source)
    if before is None or len(before) != 4 or not isinstance(dims, (tuple, list)) or not set(over) <= {"dim", "keepdim"}:
        return None
    if sorted(dim % 4 for dim in dims) != [2, 3] or not isinstance(source, fx.Node):
        return None
    if over["keepdim"]:
        return Step((source,), lambda writer, numbers: writer.add(AveragePool(numbers[0], None)))
    return Step((source,), lambda writer, numbers: writer.add(Flatten(writer.add(AveragePool(numbers[0], None)))))


def _function_dropout(node: fx.Node) -> Step | None:
    given = _arguments(node, p=0.5, training=True, inplace=False)
    return _dropout(node, given["p"], given["training"])


def _drops(node: fx.Node) -> bool:
    return bool(_arguments(node, p=0.5, training=True, inplace=False)["training"])


def _function_pool(node: fx.Node, rule: Callable[..., Step | None], **defaults: Any) -> Step | None:
    given = _arguments(node, kernel_size=None, stride=None, padding=0, **defaults)
    found = fx.node.map_arg([*given.values()], lambda argument: None)  # what the graph works out is not known yet
    return rule(node, *given.values()) if found == [*given.values()] and given["kernel_size"] is not None else None


def _maximum_function(node: fx.Node) -> Step | None:
    return _function_pool(node, _maximum, dilation=1, ceil_mode=False, return_indices=False)


def _average_function(node: fx.Node) -> Step | None:
    return _function_pool(node, _average, ceil_mode=False, count_include_pad=True, divisor_override=None)


def _relu(node: fx.Node) -> Step | None:
    return _same(node, Relu)


_FUNCTIONS: dict[Any, Callable[[fx.Node], Step | None]] = {
    F.relu: _relu,
    F.relu_: _relu,
    torch.relu: _relu,
    torch.relu_: _relu,
    "relu": _relu,
    "relu_": _relu,
    operator.add: _add,
    operator.iadd: _add,
    torch.add: _add,
    "add": _add,
    "add_": _add,
    F.dropout: _function_dropout,
    F.adaptive_avg_pool2d: _whole,
    F.avg_pool2d: _average_function,
    F.max_pool2d: _maximum_function,
    torch.max_pool2d: _maximum_function,
    torch.mean: _mean,
    "mean": _mean,
    torch.flatten: _flatten,
    "flatten": _flatten,
    "view": _flatten,
    "reshape": _flatten,
    torch.reshape: _flatten,
    "contiguous": lambda node: _same(node, None),
}
