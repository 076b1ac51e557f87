"""An attach that fails at any point leaves all as it was, and the next is that of a fresh process."""

import gc
import random
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from dead import both, loss_of, rigl
from nets import mlp, sgd, train
from torch import nn
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from wrappers import Lookahead

import regrow
from regrow.storage.attachments import attachments
from regrow.training.attached_layers import AttachedLayers

LIBRARY = str(Path(regrow.__file__).parent)


def trained(wrapped: bool = False) -> tuple[nn.Module, Optimizer]:
    """A net that has gradients and optimizer state, one weight that is frozen, and a hook of its own."""
    model = mlp()
    optimizer = Lookahead(sgd(model), every=1) if wrapped else sgd(model)
    train(model, optimizer, range(2))
    loss_of(model, 2).backward()
    model[2].weight.requires_grad_(False)
    model[0].weight.register_post_accumulate_grad_hook(lambda _: None)
    optimizer.register_step_pre_hook(lambda *_: None)
    return model, optimizer


def picture(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
    """Everything that an attach may touch."""
    holders = [optimizer, *([optimizer.base] if isinstance(optimizer, Lookahead) else [])]
    found: dict[str, Any] = {
        "attached": set(attachments()),
        "global hooks": (list(_global_optimizer_pre_hooks), list(_global_optimizer_post_hooks)),
    }
    for number, each in enumerate(holders):
        found[f"{number} attributes"] = set(vars(each))
        for name, table in vars(each).items():
            if name.endswith("_hooks"):
                found[f"{number} {name}"] = list(table.items())
    for name, module in model.named_modules():
        found[f"{name} module"] = type(module), module.__dict__.keys(), module.__dict__.get("forward")
    for name, weight in model.named_parameters():
        found[f"{name} itself"] = id(weight), weight.requires_grad, weight.data_ptr(), weight.detach().clone()
        found[f"{name} gradient"] = id(weight.grad), None if weight.grad is None else weight.grad.clone()
        found[f"{name} hooks"] = dict(weight._post_accumulate_grad_hooks or {})
        for number, each in enumerate(holders):
            for key, value in each.state.get(weight, {}).items():
                found[f"{name} {number} {key}"] = id(value), value.data_ptr(), value.clone()
    return found


def assert_same_picture(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert same(found[key], value), key


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return len(found) == len(expected) and all(map(same, found, expected))
    return torch.equal(found, expected) if isinstance(expected, torch.Tensor) else found == expected


class Interrupt:
    """Raises at the n-th line that the library runs; counts them if n is None."""

    def __init__(self, at: int | None, error: BaseException) -> None:
        self.at, self.error, self.lines = at, error, 0

    def __enter__(self) -> "Interrupt":
        self.before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: Any) -> None:
        sys.settrace(self.before)

    def _call(self, frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        return self._line if name.startswith(LIBRARY) and not name.endswith("undo.py") else None

    def _line(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "line":
            self.lines += 1
            if self.lines == self.at:
                sys.settrace(None)
                raise self.error
        return self._line


@both
@pytest.mark.parametrize("wrapped", [False, True], ids=["plain", "wrapped"])
def test_an_interrupt_at_any_line_leaves_everything_as_it_was(storage, wrapped, monkeypatch) -> None:
    model, optimizer = trained(wrapped)

    def attach() -> regrow.Sparsifier:
        return regrow.attach(model, optimizer, rigl(), storage=storage, strict=True)

    gc.collect()  # an attach looks at every sparsifier that there is
    fresh = trained(wrapped)
    regrow.attach(*fresh, rigl(), storage=storage, strict=True)
    before = picture(model, optimizer)
    zero_dead = AttachedLayers.zero_dead

    def interrupted_at_the_end(*arguments: Any) -> None:
        nonlocal lines
        zero_dead(*arguments)
        lines = counter.lines
        raise KeyboardInterrupt

    lines = 0
    with Interrupt(None, KeyboardInterrupt()) as counter, monkeypatch.context() as patch:
        patch.setattr(AttachedLayers, "zero_dead", interrupted_at_the_end)
        with pytest.raises(KeyboardInterrupt):
            attach()
    assert_same_picture(picture(model, optimizer), before)
    for at in {*random.Random(0).sample(range(1, lines), 20), *range(lines - 8, lines)}:
        with Interrupt(at, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
            attach()
        assert_same_picture(picture(model, optimizer), before)
    attach()
    for each, its_optimizer in ((model, optimizer), fresh):
        train(each, its_optimizer, range(3, 14))
    ours, theirs = model.state_dict(), fresh[0].state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())
