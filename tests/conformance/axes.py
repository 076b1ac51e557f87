"""The axes of the conformance matrix: what users combine, each value a few lines."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import combinations, product

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow
from regrow.parts.patterns import output_blocks

SPARSITY, EVERY, STOP, CALLS = 0.8, 3, 12, 20
_dynamic = {"sparsity": SPARSITY, "total_steps": 100, "every": EVERY, "stop": STOP}


@dataclass(frozen=True)
class Recipe:
    """A record, and what must hold of it, said again in plain numbers."""

    algorithm: regrow.Algorithm
    updates: tuple[int, ...] = ()
    """Weight steps at which an update is due."""
    in_place: bool = False
    """Whether an update takes the place of a weight step."""
    keeps: str = "layers"
    """What stays constant: the number of each layer, their sum, or neither (it follows a ramp or a first update)."""


_periodic = tuple(range(EVERY, STOP + 1, EVERY))
RECIPES = {
    "static": Recipe(regrow.static(sparsity=SPARSITY)),
    "set": Recipe(regrow.set_(**_dynamic), _periodic),
    "rigl": Recipe(regrow.rigl(**_dynamic), _periodic, in_place=True),
    "rigl-with-step": Recipe(replace(regrow.rigl(**_dynamic), step_on_update=True), _periodic),
    "rigl-blocks": Recipe(replace(regrow.rigl(**_dynamic), pattern=output_blocks(2)), _periodic, in_place=True),
    "snfs": Recipe(regrow.snfs(**_dynamic), _periodic, keeps="sum"),
    "rigl-sg": Recipe(regrow.rigl_sg(**_dynamic), _periodic, in_place=True, keeps="sum"),
    "rigl-sm": Recipe(regrow.rigl_sm(**_dynamic), _periodic, in_place=True, keeps="sum"),
    "pruning": Recipe(regrow.gradual_pruning(start=EVERY, **_dynamic), _periodic, keeps="nothing"),
    "snip": Recipe(regrow.snip(sparsity=SPARSITY), (0,), in_place=True, keeps="nothing"),
}

Parameters = Iterable[nn.Parameter] | Iterable[dict[str, object]]
_sgd, _adam, _adamw = torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW
OPTIMIZERS: dict[str, Callable[[Parameters], Optimizer]] = {
    "sgd": lambda p: _sgd(p, lr=0.05),
    "sgd-momentum": lambda p: _sgd(p, lr=0.05, momentum=0.9),
    "sgd-nesterov": lambda p: _sgd(p, lr=0.05, momentum=0.9, nesterov=True),
    "sgd-decay": lambda p: _sgd(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "sgd-maximize-dampened": lambda p: _sgd(p, lr=1e-3, momentum=0.9, dampening=0.5, maximize=True),
    "sgd-foreach": lambda p: _sgd(p, lr=0.05, momentum=0.9, weight_decay=0.1, foreach=True),
    "sgd-fused": lambda p: _sgd(p, lr=0.05, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": lambda p: _adam(p, lr=0.01, weight_decay=0.1),
    "adam-amsgrad": lambda p: _adam(p, lr=0.01, amsgrad=True),
    "adam-foreach": lambda p: _adam(p, lr=0.01, foreach=True),
    "adam-fused": lambda p: _adam(p, lr=0.01, fused=True),
    "adamw": lambda p: _adamw(p, lr=0.01, weight_decay=0.1),
    "adamw-foreach": lambda p: _adamw(p, lr=0.01, foreach=True),
    "adamw-fused": lambda p: _adamw(p, lr=0.01, weight_decay=0.1, fused=True),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01, initial_accumulator_value=0.1),
    "adagrad-foreach": lambda p: torch.optim.Adagrad(p, lr=0.01, foreach=True),
    "adagrad-fused": lambda p: torch.optim.Adagrad(p, lr=0.01, fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.005),
    "rmsprop-centered": lambda p: torch.optim.RMSprop(p, lr=0.005, momentum=0.9, centered=True),
    "rmsprop-foreach": lambda p: torch.optim.RMSprop(p, lr=0.005, weight_decay=0.1, foreach=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.005, weight_decay=0.1, decoupled_weight_decay=True),
    "nadam-foreach": lambda p: torch.optim.NAdam(p, lr=0.005, foreach=True),
}
if hasattr(torch.optim, "Muon"):  # torch >= 2.9
    OPTIMIZERS["muon"] = lambda p: torch.optim.Muon(p, lr=0.01)


@dataclass(frozen=True)
class Precision:
    """How numbers are kept: the weights' type, the type of autocast, and whether losses are scaled."""

    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None
    scaled: bool = False

    def context(self) -> AbstractContextManager[object]:
        """What the forward pass runs in."""
        return nullcontext() if self.autocast is None else torch.autocast("cpu", self.autocast)


PRECISIONS = {
    "fp32": Precision(),
    "bf16-autocast": Precision(autocast=torch.bfloat16),
    "bf16-weights": Precision(weights=torch.bfloat16),
    "scaler": Precision(scaled=True),
}
OVERFLOWS = (2, 3, 7)
"""Calls at which the loss is infinite under a scaler: 3 brings RigL's first update."""


@dataclass(frozen=True)
class Loop:
    """The shape of a training loop."""

    micro_batches: int = 1
    clip: Callable[[list[nn.Parameter]], object] | None = None
    scheduler: str | None = None
    """Whether an LR scheduler is made before or after attaching."""
    groups: bool = False
    frozen: range = range(0)
    """Calls during which one layer is frozen."""
    set_to_none: bool = True


LOOPS = {
    "plain": Loop(),
    "zeroed": Loop(set_to_none=False),
    "accumulate-2": Loop(micro_batches=2),
    "accumulate-4": Loop(micro_batches=4),
    "clip-norm": Loop(micro_batches=2, clip=lambda p: nn.utils.clip_grad_norm_(p, 0.5)),
    "clip-value": Loop(clip=lambda p: nn.utils.clip_grad_value_(p, 0.01)),
    "scheduler-before": Loop(scheduler="before"),
    "scheduler-after": Loop(scheduler="after"),
    "groups": Loop(groups=True),
    "frozen": Loop(frozen=range(5, 11)),
    "everything": Loop(2, lambda p: nn.utils.clip_grad_norm_(p, 0.5), "after", True, range(4, 8), False),
}


def net(only_matrices: bool = False) -> nn.Sequential:
    """A convolution, norms and linear layers of some 900 weights; only matrices where the optimizer takes no others."""
    torch.manual_seed(0)
    if only_matrices:
        layers = [nn.Linear(12, 24, bias=False), nn.ReLU(), nn.Linear(24, 16, bias=False), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(16, 5, bias=False))
    return nn.Sequential(
        nn.Unflatten(1, (1, 12)),
        nn.Conv1d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.LayerNorm(16),
        nn.ReLU(),
        nn.Linear(16, 5),
    )


def data(call: int, micro_batch: int) -> tuple[Tensor, Tensor]:
    """One micro-batch, a function of its place in the run."""
    generator = torch.Generator().manual_seed(100 * call + micro_batch)
    return torch.randn((8, 12), generator=generator), torch.randint(5, (8,), generator=generator)


def covering(*axes: Sequence[str]) -> list[tuple[str, ...]]:
    """Cases in which every two values of any two axes meet; the first two axes in full."""
    pairs = list(combinations(range(len(axes)), 2))

    def met(case: tuple[str, ...]) -> set[tuple[int, int, str, str]]:
        return {(i, j, case[i], case[j]) for i, j in pairs}

    missing = {(i, j, a, b) for i, j in pairs for a, b in product(axes[i], axes[j])}
    rest, cases = list(product(*axes[2:])), []
    for number, head in enumerate(product(*axes[:2])):
        turn = number % len(rest)
        candidates = [head + tail for tail in rest[turn:] + rest[:turn]]
        cases.append(max(candidates, key=lambda case: len(met(case) & missing)))
        missing -= met(cases[-1])
    while missing:
        cases.append(max(product(*axes), key=lambda case: len(met(case) & missing)))
        missing -= met(cases[-1])
    return cases
