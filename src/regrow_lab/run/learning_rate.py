"""The learning rate of every step: a plain function of the configuration, the step and the length of the run."""

from __future__ import annotations

import math
from collections.abc import Callable

from regrow_lab.config import RunConfig

RISE = 0.3
"""Share of a one-cycle run in which the rate rises."""
FIRST_SHARE, LAST_SHARE = 1 / 25, 1 / 250_000
"""First and last rate of a one-cycle run, as shares of the largest."""


def learning_rate(config: RunConfig, step: int, total_steps: int) -> float:
    """The rate of `step` (from 0) in a run of `total_steps`: warm-up × schedule × the configured rate.

    The warm-up is linear over `warmup_steps` and is not stretched by the run's multiplier; the schedule is.
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    return config.learning_rate * SCHEDULES[config.schedule](config, step, total_steps) * warmup


def _cosine(config: RunConfig, step: int, total_steps: int) -> float:
    return (1 + math.cos(math.pi * (step / total_steps))) / 2


def _constant(config: RunConfig, step: int, total_steps: int) -> float:
    return 1.0


def _step(config: RunConfig, step: int, total_steps: int) -> float:
    # At the nearest step: 100 × 1.1 is a little more than 110 in floating point, which would be one step late.
    return math.pow(config.decay, (step + 0.5) // (config.decay_steps * config.multiplier))


def _one_cycle(config: RunConfig, step: int, total_steps: int) -> float:
    """Smith & Topin 2018, with cosines instead of straight lines."""
    progress = step / total_steps
    if progress < RISE:
        return _between(FIRST_SHARE, 1.0, progress / RISE)
    return _between(1.0, LAST_SHARE, (progress - RISE) / (1 - RISE))


def _between(first: float, last: float, share: float) -> float:
    return last + (first - last) * (1 + math.cos(math.pi * share)) / 2


SCHEDULES: dict[str, Callable[[RunConfig, int, int], float]] = {
    "cosine": _cosine,
    "constant": _constant,
    "step": _step,
    "one-cycle": _one_cycle,
}
"""The rate as a share of the configured one, without warm-up."""
