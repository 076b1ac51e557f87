"""What the sparsifier must know of torch optimizers, each fact in one place."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from regrow.storage.distributed import is_cut, whole

REFUSED = {
    "LBFGS": "its line search evaluates several points in one step and its state mixes all weights; take SGD or AdamW",
    "SparseAdam": "it takes sparse gradients of embeddings, not masked dense ones; take SGD or AdamW",
    "ZeroRedundancyOptimizer": "it keeps the state of a weight on another rank, where no mask reaches it; take the "
    "optimizer itself, or fully_shard, which cuts weights, masks and state alike",
}


def check(optimizer: Any) -> None:
    """Refuses, by name, the optimizers that cannot keep dead weights dead, alone or in a wrapper."""
    if not isinstance(optimizer, Optimizer):
        inside = [f"its .{name}" for name, value in getattr(optimizer, "__dict__", {}).items() if inner(value)]
        remedy = f": pass {' or '.join(inside)}" if inside else ""
        raise ValueError(f"optimizer is a {type(optimizer).__name__}; expected a torch.optim.Optimizer{remedy}")
    for kind in (kind for each in with_inner(optimizer) for kind in type(each).__mro__):
        if kind.__name__ in REFUSED:
            raise ValueError(f"{kind.__name__} cannot train a sparse net: {REFUSED[kind.__name__]}")


def parameters(optimizer: Optimizer) -> Iterator[nn.Parameter]:
    """Every parameter that the optimizer steps."""
    for group in optimizer.param_groups:
        yield from group["params"]


def inner(value: Any) -> list[Optimizer]:
    """The optimizers that an attribute of an optimizer holds, alone or in containers."""
    if isinstance(value, Optimizer):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    return [found for each in value for found in inner(each)] if isinstance(value, (list, tuple)) else []


def with_inner(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer, those that it wraps, and those that they wrap."""
    found, waiting = list[Optimizer](), [optimizer]
    while waiting:
        each = waiting.pop(0)
        if not any(each is known for known in found):
            found.append(each)
            waiting += [other for value in vars(each).values() for other in inner(value)]
    return found


def holds(optimizer: Optimizer, weights: Iterable[nn.Parameter]) -> bool:
    """Whether an optimizer steps all of these."""
    return {id(weight) for weight in weights} <= {id(parameter) for parameter in parameters(optimizer)}


def stepper(optimizer: Optimizer, weights: Iterable[nn.Parameter]) -> Optimizer:
    """The optimizer whose step is the weight step: the innermost that holds all weights, where there is one."""
    weights = list(weights)
    inside = [each for each in with_inner(optimizer)[1:] if holds(each, weights)]
    reached = {id(each): [other for other in with_inner(each)[1:] if other is not optimizer] for each in inside}
    innermost = [each for each in inside if not any(other in reached[id(each)] for other in inside)]
    return innermost[0] if len(innermost) == 1 else optimizer


def group_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """The parameter group that holds a parameter."""
    for group in optimizer.param_groups:
        if any(member is parameter for member in group["params"]):
            return group
    raise LookupError("the optimizer does not hold the parameter")


def has_gradients(optimizer: Optimizer) -> bool:
    """Whether there is anything to step on."""
    return any(parameter.grad is not None for parameter in parameters(optimizer))


def skips_step(optimizer: Optimizer) -> bool:
    """Whether no weight moves: a GradScaler makes a fused optimizer skip a step, and its hooks run all the same."""
    found = getattr(optimizer, "found_inf", None)
    return (found is not None and bool(found)) or only_fills_state(optimizer)


def only_fills_state(optimizer: Optimizer) -> bool:
    """Whether this is the step by which torch.distributed.checkpoint has an optimizer create its state.

    It comes before a state is read or loaded, with learning rates and gradients of 0; counted, it would shift a run
    that goes on from a checkpoint.
    """
    if any(group.get("lr", 1.0) for group in optimizer.param_groups):
        return False
    gradients = [parameter.grad for parameter in parameters(optimizer) if parameter.grad is not None]
    return bool(gradients) and not any(bool(whole(gradient.abs().sum())) for gradient in gradients)


def gradient_scale(optimizer: Optimizer) -> float:
    """What a GradScaler has multiplied the gradients by, where a fused optimizer undoes it itself; else 1."""
    scale = getattr(optimizer, "grad_scale", None)
    return 1.0 if scale is None else float(scale)


def momentum_factor(optimizer: Optimizer, parameter: nn.Parameter) -> float | None:
    """The optimizer's momentum or first beta for a parameter; None where it keeps no momentum."""
    group = group_of(optimizer, parameter)
    factor = group.get("momentum") or (group.get("betas") or (0.0,))[0]
    return float(factor) or None


def momentum(optimizer: Optimizer, parameter: nn.Parameter) -> Tensor | None:
    """The optimizer's first-moment buffer of a parameter; None before its first step, or where it keeps none."""
    found = state_of(optimizer, parameter)
    for key in ("momentum_buffer", "exp_avg"):
        buffer = found.get(key)
        if isinstance(buffer, Tensor):
            return buffer.dequantize() if is_quantised(buffer) else buffer
    return None


def elementwise_state(optimizer: Optimizer, parameter: nn.Parameter) -> Iterator[tuple[Tensor, float]]:
    """State tensors with one entry a weight, each with the value that the optimizer starts it with."""
    for _, value, initial in named_state(optimizer, parameter):
        yield value, initial


def state_of(optimizer: Optimizer, parameter: nn.Parameter) -> dict[str, Any]:
    """What the optimizer keeps of a parameter, by its own names."""
    found = getattr(optimizer, "state", {}).get(parameter)
    return found if isinstance(found, dict) else {}


def named_state(optimizer: Optimizer, parameter: nn.Parameter) -> Iterator[tuple[str, Tensor, float]]:
    """The same with the optimizer's name for each."""
    for key, value in state_of(optimizer, parameter).items():
        if is_elementwise(value, parameter):
            yield key, value, initial_value(optimizer, parameter, key)


def is_elementwise(value: Any, parameter: nn.Parameter) -> bool:
    """Whether a state has one number a weight, at the weight's own place."""
    if not isinstance(value, Tensor) or value.shape != parameter.shape:
        return False
    return value.is_floating_point() or value.is_complex()


def is_quantised(value: Tensor) -> bool:
    """Whether a state is of a class that keeps its numbers as codes, with no memory that holds them as they are."""
    return type(value) not in (Tensor, nn.Parameter) and not is_cut(value) and value.data_ptr() == 0


def initial_value(optimizer: Optimizer, parameter: nn.Parameter, key: str) -> float:
    """What the optimizer starts a state tensor with."""
    if isinstance(optimizer, torch.optim.Rprop) and key == "step_size":
        return float(group_of(optimizer, parameter)["lr"])
    if isinstance(optimizer, torch.optim.Adagrad) and key == "sum":
        return float(group_of(optimizer, parameter)["initial_accumulator_value"])
    return 0.0


def uncompiled(hook: Callable[..., Any]) -> Callable[..., Any]:
    """A hook on a step that torch.compile leaves alone, without what torch wraps around one for that at every step."""
    disabled = torch.compiler.disable(hook)

    def run(*args: Any) -> Any:
        return disabled(*args) if torch.compiler.is_compiling() else hook(*args)

    return run
