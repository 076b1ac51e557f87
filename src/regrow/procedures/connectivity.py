"""Linear mode connectivity: the error on the straight line between two solutions."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from regrow.layers import unwrap
from regrow.procedures.snapshot import Snapshot


@dataclass(frozen=True)
class Line:
    """Errors at evenly spaced positions from one solution (0) to the other (1), both included.

    >>> line = Line((0.0, 0.5, 1.0), (5.0, 20.0, 7.0))
    >>> line.above_mean, line.above_worst
    (14.0, 13.0)
    """

    positions: tuple[float, ...]
    errors: tuple[float, ...]

    @property
    def above_mean(self) -> float:
        """Instability: the largest error on the line less the mean of the two ends. Frankle et al. 2020, section 2."""
        return max(self.errors) - (self.errors[0] + self.errors[-1]) / 2

    @property
    def above_worst(self) -> float:
        """The largest error on the line less the larger of the two ends."""
        return max(self.errors) - max(self.errors[0], self.errors[-1])


def error_along_line(
    model: nn.Module,
    one: Mapping[str, Tensor],
    other: Mapping[str, Tensor],
    error: Callable[[nn.Module], float],
    *,
    points: int = 11,
    batches: Iterable[Any] | None = None,
) -> Line:
    """Errors of w(a) = (1 − a) · w_one + a · w_other, a from 0 to 1; the model itself is left as it was.

    The running statistics of batch norm are no weights, and their mean fits no net on the line: at each point, the ends
    included, they are taken anew from ``batches`` (their mean over the batches).

    Args:
        model: any net of the two solutions' shapes.
        one: its ``state_dict()``, copied, after one training.
        other: after the other.
        error: measures a net, which it is given in eval mode and without autograd: percent of wrong answers, or a loss.
        points: positions on the line, 2 or more.
        batches: inputs of training data (or tuples that begin with them); needed where the net has batch norm.

    Raises:
        ValueError: the solutions do not fit the model; batches are missing or empty; fewer than two points.

    Frankle, Dziugaite, Roy & Carlin 2020, section 2. Statistics anew: Izmailov et al. 2018 (SWA).
    """
    if points < 2:
        raise ValueError(f"points is {points}; expected at least the two ends")
    model = unwrap(model)
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    inputs = [batch[0] if isinstance(batch, (tuple, list)) else batch for batch in batches or ()]
    if norms and not inputs:
        raise ValueError(
            "the net has batch norm, whose running statistics do not hold between two solutions: pass batches= of "
            "training inputs to take them anew from"
        )
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for solution in (one, other):
        if {name: tuple(value.shape) for name, value in solution.items()} != expected:
            raise ValueError("a solution has other names or shapes than model.state_dict(): pass states of this model")
    # Either may be the model's own state, which the walk writes to.
    one, other = ({name: value.clone() for name, value in solution.items()} for solution in (one, other))
    positions = tuple(number / (points - 1) for number in range(points))
    before, errors = Snapshot(model), []
    try:
        for position in positions:
            model.load_state_dict({name: _between(one[name], other[name], position) for name in expected})
            _renew_statistics(model, norms, inputs)
            model.eval()
            with torch.no_grad():
                errors.append(float(error(model)))
    finally:
        before.restore()
    return Line(positions, tuple(errors))


def _between(one: Tensor, other: Tensor, position: float) -> Tensor:
    if not one.is_floating_point():
        return one
    return torch.lerp(one, other.to(one), position)


@torch.no_grad()
def _renew_statistics(model: nn.Module, norms: list[_BatchNorm], inputs: list[Any]) -> None:
    """Running mean and variance over the inputs, as the mean over batches; dropout and the like stay off."""
    if not norms:
        return
    model.eval()
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        for batch in inputs:
            model(batch)
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
