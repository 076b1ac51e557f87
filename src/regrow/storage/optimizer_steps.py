"""The steps of every torch optimizer in the process: who watches them, and whether one is under way."""

import inspect
import traceback
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from regrow.storage.optimizers import uncompiled


class Watcher(Protocol):
    """What is told of every step."""

    def before_step_of(self, optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
        """May give other arguments for the step, as torch's hooks do."""

    def after_step_of(self, optimizer: Optimizer) -> None:
        """The step has ended without an exception."""


_watchers: WeakSet[Any] = WeakSet()
_handles: list[RemovableHandle] = []


def watchers() -> list[Any]:
    """Those that watch at the moment."""
    return list(_watchers)


def watch(watcher: Watcher) -> None:
    """Tells a watcher of every step from now on, for as long as it lives."""
    _watchers.add(watcher)
    if not _handles:
        _handles.append(register_optimizer_step_pre_hook(uncompiled(_before)))
        _handles.append(register_optimizer_step_post_hook(uncompiled(_after)))


def unwatch(watcher: Watcher) -> None:
    """Tells it no more; the last takes the hooks away."""
    _watchers.discard(watcher)
    while _handles and not _watchers:
        _handles.pop().remove()


def _before(optimizer: Optimizer, args: Any, kwargs: dict[str, Any]) -> Any:
    changed = None
    for watcher in watchers():
        found = watcher.before_step_of(optimizer, *(changed or (args, kwargs)))
        changed = found or changed
    return changed


def _after(optimizer: Optimizer, *_: Any) -> None:
    for watcher in watchers():
        watcher.after_step_of(optimizer)


class StepUnderWay:
    """A step of one optimizer, from its first hook to its last; one that an exception ended is over as well.

    A class that calls ``super().step()`` runs the hooks of a step within those of the same step.
    """

    def __init__(self) -> None:
        self._frame: FrameType | None = None

    def __bool__(self) -> bool:
        return self._frame is not None and any(frame is self._frame for frame, _ in traceback.walk_stack(None))

    def begins(self) -> bool:
        """Whether the pre-hook that calls this belongs to a new step."""
        if self:
            return False
        self._frame = _step_frame()
        return True

    def ends(self) -> bool:
        """Whether the post-hook that calls this is the step's last."""
        if _step_frame() is not self._frame and self:
            return False
        self._frame = None
        return True


def _step_frame() -> FrameType | None:
    """Torch's frame around the step, given that a hook made by ``uncompiled`` calls a method that calls this."""
    frame = inspect.currentframe()
    for _ in range(4):  # this function, the method, the hook, what stands around the hook
        frame = frame.f_back if frame is not None else None
    return frame


def with_closure(
    args: Any,
    kwargs: dict[str, Any],
    prepare: Callable[[], None],
    watch_closure: Callable[[], Callable[[], None]] = lambda: lambda: None,
) -> Any:
    """Runs ``prepare`` once the gradients of a step exist: at once, or after the closure. The step's new arguments.

    The gradient of a closure exists only once it has run, inside the optimizer's own step. What ``watch_closure``
    gives at the start of such a step is called before the closure is.
    """
    closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
    if closure is None:
        prepare()
        return None

    check = watch_closure()

    def closure_then_hook() -> Any:
        check()
        loss = closure()
        prepare()
        return loss

    return args[:1], {**kwargs, "closure": closure_then_hook}


class ClosureCheck:
    """Refuses, as a closure is about to run, an optimizer that evaluates it where an update could not take its place.

    Args:
        optimizer: whose step has begun.
        weights: that it steps; one stands for all.
    """

    def __init__(self, optimizer: Optimizer, weights: Iterable[nn.Parameter]) -> None:
        self.optimizer, self.calls = optimizer, 0
        self.weight = min(weights, key=Tensor.numel)
        self.before = self.weight.detach().clone()

    def __call__(self) -> None:
        name, self.calls = type(self.optimizer).__name__, self.calls + 1
        if self.calls > 1:
            self._refuse(f"{name} evaluates its closure more than once a step")
        if not torch.allclose(self.weight, self.before, rtol=0, atol=0, equal_nan=True):
            self._refuse(f"{name} moves the weights before it evaluates its closure")

    def _refuse(self, what: str) -> None:
        raise RuntimeError(
            f"{what}, and regrow cannot tell which of its gradients is the step's: keep the optimizer that takes the "
            "weight step in an attribute of it (as SAM's base_optimizer is) and step that, or attach to that optimizer"
        )
