"""A model, data or method of somebody's own: imported by name, called with what it asks for, and looked at."""

from __future__ import annotations

import functools
import inspect
import random
import traceback
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from regrow_lab.data import Dataset
from regrow_lab.data.statistics import counts_of, statistics_of
from regrow_lab.methods import imported

SIGNATURES = {
    "model": "build(num_classes, input_shape) -> torch.nn.Module",
    "data": "load() -> (training inputs, training labels, test inputs, test labels)",
    "method": "recipe(sparsity, total_steps, every, drop_fraction, distribution, stop) -> regrow.Algorithm",
}
"""What is expected under each option of the command line."""


def call(what: str, name: str, kind: Any, offered: Mapping[str, Any], more: Mapping[str, Any] | None = None) -> Any:
    """What the function of that name returns, which is a `kind`.

    Args:
        what: model, data or method, for messages.
        name: its import string.
        kind: the type, or the types, of what it must return.
        offered: arguments by name; it is given those that it names, all if it takes ``**arguments``.
        more: arguments that it is given only if it names them.

    Raises ValueError, in one line, for what cannot be imported or called, fails or returns something else.
    """
    expected = f"package.module:function of {SIGNATURES[what]}"
    function = imported(name, expected)
    if not callable(function):
        raise ValueError(f"{what} {name} is a {type(function).__name__}, no function: give {expected}")
    arguments = asked_for(function, offered, more or {})
    unmet = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
        and parameter.name not in arguments
    ]
    if unmet:
        known = ", ".join([*offered, *(more or {})]) or "nothing"
        raise ValueError(f"{what} {name} asks for {', '.join(unmet)}, a run has {known}: give {expected}")
    try:
        found = function(**arguments)
    except Exception as error:
        raise ValueError(f"{what} {name} fails with {described(error)}") from error
    if not isinstance(found, kind):
        raise ValueError(f"{what} {name} returns a {type(found).__name__}: give {expected}")
    return found


def asked_for(function: Callable[..., Any], offered: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the arguments that a function takes: of the `offered` all if it takes any, of `more` what it names."""
    parameters = inspect.signature(function).parameters
    takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    found = {name: value for name, value in offered.items() if takes_any or name in parameters}
    return found | {name: value for name, value in more.items() if name in parameters}


def described(error: Exception) -> str:
    """An error in a line: its kind, what it says, and the line of the code that raised it.

    >>> described(KeyError("a"))
    "KeyError: 'a'"
    """
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())}{where}"


@functools.cache
def load(name: str, device: torch.device) -> Dataset:
    """The data that the function of that name returns, on `device`; called once a process, with its seeds set to 0.

    Raises ValueError as `call` does, and for what is not four tensors or arrays that fit each other.
    """
    torch.manual_seed(0)  # so that a split drawn at random is the same in every process of a study
    random.seed(0)
    np.random.seed(0)  # which is what others draw from
    parts = call("data", name, (tuple, list), {})
    given = f"data {name} returns"
    if len(parts) != 4 or not all(isinstance(part, (Tensor, np.ndarray)) for part in parts):
        kinds = ", ".join(type(part).__name__ for part in parts)
        raise ValueError(f"{given} ({kinds}): give four tensors or arrays, as in {SIGNATURES['data']}")
    train_inputs, train_labels, test_inputs, test_labels = tensors = [torch.as_tensor(part).detach() for part in parts]
    shapes = ", ".join(f"{str(part.dtype).removeprefix('torch.')} {tuple(part.shape)}" for part in tensors)
    for labels, inputs in ((train_labels, train_inputs), (test_labels, test_inputs)):
        whole = not labels.is_floating_point() and labels.dtype != torch.bool
        if not (whole and labels.dim() == 1 and inputs.dim() and len(inputs) == len(labels) > 0 and labels.min() >= 0):
            raise ValueError(f"{given} {shapes}: give each part as many labels as inputs, whole numbers from 0")
        if not (inputs.is_floating_point() or inputs.dtype == torch.int64 or is_image(inputs)):
            raise ValueError(
                f"{given} {shapes}: give inputs as floating-point numbers, as tokens (int64), or as images (uint8, "
                "N × height × width × channels)"
            )
        if not inputs.isfinite().all():
            raise ValueError(f"{given} inputs that are nan or infinite: give finite ones")
    if (train_inputs.dtype, train_inputs.shape[1:]) != (test_inputs.dtype, test_inputs.shape[1:]):
        raise ValueError(f"{given} {shapes}: give inputs of one kind and shape in both parts")
    mean, std = statistics_of(counts_of(train_inputs)) if is_image(train_inputs) else ((), ())

    def placed(inputs: Tensor) -> Tensor:
        return (inputs.float() if inputs.is_floating_point() else inputs).to(device)

    return Dataset(
        placed(train_inputs), train_labels.to(device, torch.int64), placed(test_inputs),
        test_labels.to(device, torch.int64), name=name, mean=mean, std=std,
    )  # fmt: skip


def is_image(inputs: Tensor) -> bool:
    """Whether inputs are images of bytes, N × height × width × channels."""
    return inputs.dtype == torch.uint8 and inputs.dim() == 4
