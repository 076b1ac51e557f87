"""What must hold of an attached model whoever steps it, and the small pieces that its tests share."""

import pytest
import torch
from nets import batch
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow

both = pytest.mark.parametrize("storage", ["dense", "compact"])


def rigl(**options) -> regrow.Algorithm:
    return regrow.rigl(**{"sparsity": 0.8, "total_steps": 60, "every": 4, **options})


def momentum_sgd(parameters, lr: float = 0.05) -> Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def loss_of(model: nn.Module, step: int) -> Tensor:
    inputs, targets = batch(step)
    return nn.functional.cross_entropy(model(inputs), targets)


def saved_state(optimizer: Optimizer, model: nn.Module, name: str) -> dict[str, Tensor]:
    """What an optimizer's ``state_dict`` has of a weight."""
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    number = next(at for at, parameter in enumerate(held) if parameter is model.get_parameter(name))
    found = optimizer.state_dict()["state"].get(number, {})
    return {key: value for key, value in found.items() if isinstance(value, Tensor) and value.dim() > 0}


def check_dead(sparsifier: regrow.Sparsifier, *others: Optimizer) -> None:
    """Dead weights are 0, and so is the state that any of the optimizers saves, in the dense shape."""
    model = sparsifier.model
    weights = model.state_dict()
    for name, mask in sparsifier.masks.items():
        assert not weights[name][~mask].any(), name
        for optimizer in others:
            held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
            if id(model.get_parameter(name)) in held:
                for key, value in saved_state(optimizer, model, name).items():
                    assert value.shape == mask.shape, (name, key)
                    assert not value[~mask].any(), (name, key)


def assert_same(first: nn.Module, second: nn.Module, tolerance: float = 0.0) -> None:
    ours, theirs = first.state_dict(), second.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=0, atol=tolerance, msg=lambda text, n=name: f"{n}: {text}")
