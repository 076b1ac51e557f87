"""Optimizers around optimizers, in the forms that people write them."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

TABLES = ("step_pre", "step_post", "state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post")


class Bare(Optimizer):
    """Hands everything on to ``base``; has no hook tables, as it never calls ``super().__init__``."""

    def __init__(self, base: Optimizer) -> None:
        self.base = base

    param_groups = property(lambda self: self.base.param_groups)  # type: ignore[assignment]
    state = property(lambda self: self.base.state)  # type: ignore[assignment]
    defaults = property(lambda self: self.base.defaults)  # type: ignore[assignment]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        return self.base.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)


class Lookahead(Optimizer):
    """Slow weights in its own state, hook tables of its own (Zhang et al. 2019)."""

    def __init__(self, base: Optimizer, every: int = 3) -> None:
        for name in TABLES:
            setattr(self, f"_optimizer_{name}_hooks", OrderedDict())
        self.base, self.param_groups, self.defaults = base, base.param_groups, base.defaults
        self.state, self.every, self.steps = defaultdict(dict), every, 0
        self._patch_step_function()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = self.base.step(closure)
        self.steps += 1
        if self.steps % self.every == 0:
            for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
                if parameter.grad is not None:
                    slow = self.state[parameter].setdefault("slow", parameter.detach().clone())
                    parameter.copy_(slow.add_(parameter - slow, alpha=0.5))
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.base.zero_grad(set_to_none)


class SAM(Optimizer):
    """Sharpness-aware minimisation (Foret et al. 2021) by two calls or a closure."""

    def __init__(self, parameters: Iterable[nn.Parameter], base: type[Optimizer], **options: Any) -> None:
        super().__init__(parameters, dict(rho=0.05, **options))
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self) -> None:
        moved = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([parameter.grad.norm() for parameter in moved]).norm()
        for parameter in moved:
            self.state[parameter]["old"] = parameter.detach().clone()
            parameter.add_(parameter.grad, alpha=float(0.05 / norm))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter in (parameter for group in self.param_groups for parameter in group["params"]):
            if parameter.grad is not None:
                parameter.data = self.state[parameter]["old"]
        self.base.step()
        self.zero_grad()

    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        self.first_step()
        closure()
        self.second_step()


class LonelySAM(Optimizer):
    """SAM that takes the weight step itself."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> None:  # type: ignore[override]
        held = [parameter for group in self.param_groups for parameter in group["params"]]
        before = [parameter.detach().clone() for parameter in held]
        for parameter in held:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=0.05)
        with torch.enable_grad():
            closure()
        for parameter, old in zip(held, before, strict=True):
            parameter.copy_(old - 0.05 * parameter.grad)


class Chain(Optimizer):
    """Two optimizers, each of a part of the weights, stepped one after the other."""

    def __init__(self, *parts: Optimizer) -> None:
        super().__init__(
            [parameter for part in parts for group in part.param_groups for parameter in group["params"]], {}
        )
        self.parts = parts

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for part in self.parts:
            part.step()


class Keeper(torch.optim.SGD):
    """Keeps something for all weights outside of ``.state``, from its first step on."""

    def __init__(self, parameters: Iterable[nn.Parameter], make: Callable[["Keeper"], None], lr: float = 0.05) -> None:
        super().__init__(parameters, lr=lr)
        self.make: Callable[[Keeper], None] | None = make

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        if self.make is not None:
            self.make(self)
            self.make = None
        return super().step(closure)

    def held(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]
