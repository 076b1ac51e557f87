"""One case of the matrix: the loop that a user would write, and what is checked after every call of ``step()``."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from conformance.axes import (
    CALLS,
    EVERY,
    LOOPS,
    OPTIMIZERS,
    OVERFLOWS,
    PRECISIONS,
    SPARSITY,
    STOP,
    Loop,
    Recipe,
    data,
    net,
)
from torch import Tensor, nn
from torch.optim import Optimizer

import regrow

Step = Callable[[int, bool], None]
"""Looks at the state after a call of ``step()``, told its number and whether a scaler skipped it."""


@dataclass
class Setup:
    """Model and optimizer of a case, before anything is attached."""

    model: nn.Module
    optimizer: Optimizer


def setup(optimizer: str, precision: str, loop: str) -> Setup:
    model = net(only_matrices=optimizer == "muon").to(PRECISIONS[precision].weights)
    parameters = list(model.parameters())
    if LOOPS[loop].groups:
        half = len(parameters) // 2
        groups = [{"params": parameters[:half]}, {"params": parameters[half:], "lr": 0.004, "weight_decay": 0.02}]
        return Setup(model, OPTIMIZERS[optimizer](groups))
    return Setup(model, OPTIMIZERS[optimizer](parameters))


def train(
    made: Setup,
    precision: str,
    loop: str,
    attach: Callable[[], object],
    before_clip: Callable[[], None] = lambda: None,
    each: Step = lambda call, skipped: None,
    forward: Callable[[Tensor], Tensor] | None = None,
    step: Callable[[], object] | None = None,
    calls: int = CALLS,
) -> None:
    """The training loop of a case; under a scaler some losses are infinite."""
    model, optimizer, numbers, shape = made.model, made.optimizer, PRECISIONS[precision], LOOPS[loop]
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=numbers.scaled)
    scheduler = _scheduler(optimizer) if shape.scheduler == "before" else None
    attach()
    scheduler = _scheduler(optimizer) if shape.scheduler == "after" else scheduler
    for call in range(calls):
        _freeze(model, shape, call)
        overflow = numbers.scaled and call in OVERFLOWS
        for micro_batch in range(shape.micro_batches):
            inputs, targets = data(call, micro_batch)
            with numbers.context():
                outputs = (forward or model)(inputs.to(numbers.weights))
                loss = nn.functional.cross_entropy(outputs.float(), targets) / shape.micro_batches
            loss = loss * torch.inf if overflow and micro_batch == 0 else loss
            scaler.scale(loss).backward()
        before_clip()
        if shape.clip is not None:
            scaler.unscale_(optimizer)
            shape.clip(list(model.parameters()))
        if numbers.scaled:
            scaler.step(optimizer)
        else:
            (step or optimizer.step)()
        scaler.update()
        each(call, overflow)
        optimizer.zero_grad(set_to_none=shape.set_to_none)
        if scheduler is not None and not overflow:
            scheduler.step()


def _scheduler(optimizer: Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, CALLS)


def _freeze(model: nn.Module, loop: Loop, call: int) -> None:
    last = list(regrow.find_layers(model))[-1]
    model.get_parameter(last).requires_grad_(call not in loop.frozen)


@dataclass
class Ledger:
    """What a sparsifier must have done by now, told from the calls of ``step()`` alone."""

    recipe: Recipe
    sparsifier: regrow.Sparsifier
    weight_steps: int = 0
    num_updates: int = 0
    _open: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._open = list(self.recipe.updates)
        self._start = self._units()
        self._masks = self._copies()
        self.changes = 0

    def __call__(self, call: int, skipped: bool) -> None:
        updated = self._advance(skipped)
        where = f"after call {call}"
        assert self.sparsifier.weight_steps == self.weight_steps, where
        assert self.sparsifier.num_updates == self.num_updates, where
        masks = self._copies()
        changed = [name for name, mask in masks.items() if not torch.equal(mask, self._masks[name])]
        assert updated or not changed, f"{changed} changed without an update {where}"
        self.changes += bool(changed)
        self._masks = masks
        self._check_counts(where)
        for what, dead, expected in dead_entries(self.sparsifier):
            assert bool((dead == expected).all()), f"{what} {where}: {dead[dead != expected][:3].tolist()}"

    def _advance(self, skipped: bool) -> bool:
        if skipped:
            return False
        if self.recipe.in_place and self._open and self.weight_steps >= self._open[0]:
            self._open.pop(0)
            self.num_updates += 1
            return True
        self.weight_steps += 1
        if self.recipe.in_place or not self._open or self.weight_steps < self._open[0]:
            return False
        self._open.pop(0)
        self.num_updates += 1
        return True

    def _check_counts(self, where: str) -> None:
        alive = {name: int(mask.sum()) for name, mask in self._masks.items()}
        assert alive == self.sparsifier.num_alive, where
        units, size = self._units(), sum(mask.numel() for mask in self._masks.values())
        if self.recipe.keeps == "layers":
            assert units == self._start, where
        elif self.recipe.keeps == "sum":
            assert sum(units.values()) == sum(self._start.values()), where
        else:
            assert sum(units.values()) == round((1 - self._ramp()) * size), where

    def _ramp(self) -> float:
        """The sparsity that pruning (a cubic ramp) or SNIP (one step) must have reached."""
        if not self.num_updates:
            return 0.0
        if self.recipe.algorithm.name == "snip":
            return SPARSITY
        last = self.recipe.updates[self.num_updates - 1]
        return SPARSITY * (1 - (1 - (last - EVERY) / (STOP - EVERY)) ** 3)

    def _units(self) -> dict[str, int]:
        reduce = self.recipe.algorithm.pattern.reduce
        return {name: int((reduce(mask.float()) > 0).sum()) for name, mask in self.sparsifier.masks.items()}

    def _copies(self) -> dict[str, Tensor]:
        return {name: mask.clone() for name, mask in self.sparsifier.masks.items()}


def dead_entries(sparsifier: regrow.Sparsifier) -> Iterator[tuple[str, Tensor, float]]:
    """Dead weights and the dead entries of every weight-shaped optimizer state, with what they must be."""
    for name, mask in sparsifier.masks.items():
        parameter = sparsifier.model.get_parameter(name)
        yield f"weight {name}", parameter.detach()[~mask], 0.0
        for key, value in sparsifier.optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                adagrad = isinstance(sparsifier.optimizer, torch.optim.Adagrad)
                start = sparsifier.optimizer.defaults["initial_accumulator_value"] if adagrad else 0.0
                yield f"{key} of {name}", value[~mask], torch.tensor(start, dtype=value.dtype).item()
