"""When a topology changes, and by how much: schedules and triggers.

A schedule is any function of the weight step that returns a number; a trigger is a schedule of moments. Both are frozen
records, so that two equal ones compare equal and print as what they are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from regrow.arguments import whole_number

Schedule = Callable[[int], float]
"""A number at each weight step."""


@dataclass(frozen=True)
class Constant:
    """The same value at every step."""

    value: float

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True)
class Cosine:
    """Cosine decay: f(t) = initial / 2 · (1 + cos(pi · t / end)), and 0 after ``end``.

    Evci et al. 2020, section 3; equation 1 of Sundar & Dwaraknath 2021.

    >>> [round(Cosine(0.3, end=100)(t), 5) for t in (0, 25, 50, 75, 100)]
    [0.3, 0.25607, 0.15, 0.04393, 0.0]
    """

    initial: float
    end: int

    def __call__(self, step: int) -> float:
        if step >= self.end:
            return 0.0
        return self.initial / 2 * (1 + math.cos(math.pi * step / self.end))


@dataclass(frozen=True)
class Cubic:
    """Cubic ramp from 0 to ``final``: final · (1 − (1 − (t − start) / (end − start))³), constant outside.

    Zhu & Gupta 2017, "To prune, or not to prune", equation 1.

    >>> [round(Cubic(0.9, start=0, end=100)(t), 4) for t in (0, 25, 50, 75, 100)]
    [0.0, 0.5203, 0.7875, 0.8859, 0.9]
    """

    final: float
    start: int
    end: int

    def __call__(self, step: int) -> float:
        if step >= self.end:
            return self.final
        if step <= self.start:
            return 0.0
        remaining = 1 - (step - self.start) / (self.end - self.start)
        return self.final * (1 - remaining**3)


class Trigger(Protocol):
    """Decides at which weight steps the topology is updated."""

    @property
    def interval(self) -> int | None:
        """Weight steps between two updates; None where there is at most one."""

    def __call__(self, step: int) -> bool:
        """Whether an update is due after ``step`` weight steps."""

    @property
    def last(self) -> int | None:
        """The weight step of the last update; None if there is none."""

    def following(self, step: int) -> int | None:
        """The first step >= ``step`` with an update; None if there is none."""


@dataclass(frozen=True)
class Every:
    """At ``start``, ``start + interval``, … up to and including ``stop``.

    >>> [t for t in range(12) if Every(3, start=3, stop=9)(t)]
    [3, 6, 9]
    """

    interval: int
    start: int
    stop: int

    def __post_init__(self) -> None:
        for name, least in (("interval", 1), ("start", 0), ("stop", 0)):
            object.__setattr__(self, name, whole_number(getattr(self, name), name, "weight steps", least))

    def __call__(self, step: int) -> bool:
        return self.start <= step <= self.stop and (step - self.start) % self.interval == 0

    @property
    def last(self) -> int | None:
        return self.stop - (self.stop - self.start) % self.interval if self.start <= self.stop else None

    def following(self, step: int) -> int | None:
        periods = max(0, math.ceil((step - self.start) / self.interval))
        due = self.start + periods * self.interval
        return due if due <= self.stop else None


@dataclass(frozen=True)
class Once:
    """At one step."""

    step: int

    @property
    def interval(self) -> None:
        return None

    def __call__(self, step: int) -> bool:
        return step == self.step

    @property
    def last(self) -> int:
        return self.step

    def following(self, step: int) -> int | None:
        return self.step if step <= self.step else None


@dataclass(frozen=True)
class Never:
    """At no step: the topology stays as it began."""

    @property
    def interval(self) -> None:
        return None

    def __call__(self, step: int) -> bool:
        return False

    @property
    def last(self) -> None:
        return None

    def following(self, step: int) -> None:
        return None
