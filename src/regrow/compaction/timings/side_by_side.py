"""Times ways to do the same side by side, so that what else goes on in the machine does not decide which is faster."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median, quantiles

import torch

SECONDS = 0.5
"""Time that a comparison takes where its runs are short."""
MOST_SECONDS = 3.0
"""The same where they are long, but for the fewest rounds."""
ROUNDS, FEWEST = 5, 3
"""Rounds of a comparison at least: of short runs, and of long ones."""
LARGEST_SPREAD = 0.5
"""Quartiles of a ratio that lie further apart than so many medians tell nothing. Of a quiet machine it is .1 to .3."""
ATTEMPTS = 3
"""Comparisons before the spread is put down to the machine."""
QUIET = 0.75
"""Runnable processes a core, up to which a machine counts as quiet: this one alone, on two cores, is .5."""


@dataclass(frozen=True)
class Timing:
    """How many times faster than the first of several runs the others are.

    Attributes:
        ratios: time of the first ÷ time of each other, the median over rounds in which all take turns.
        spread: largest distance between the quartiles of a ratio, in medians.
        rounds: number of them.
    """

    ratios: tuple[float, ...]
    spread: float
    rounds: int


def clock() -> Callable[[], float]:
    """The thread's processor time, which does not go on while others run; for several threads the wall's."""
    return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter


def compare(runs: Sequence[Callable[[], object]]) -> Timing:
    """Times runs in turns, each once a round, after one round that is not counted.

    Args:
        runs: two or more.
    """
    now, rounds = clock(), list[list[float]]()
    _round(runs, now)
    began = time.perf_counter()
    while len(rounds) < FEWEST or time.perf_counter() - began < (MOST_SECONDS if len(rounds) < ROUNDS else SECONDS):
        rounds.append(_round(runs, now))
    return summary(rounds)


@contextmanager
def alone() -> Iterator[None]:
    """With gradients, without autocast, and without a trace in the generator: a step as training takes it."""
    with (
        torch.random.fork_rng(devices=[]),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False),
    ):
        yield


def _round(runs: Sequence[Callable[[], object]], now: Callable[[], float]) -> list[float]:
    moments = [now()]
    for run in runs:
        run()
        moments.append(now())
    return [max(end - begin, 1e-9) for begin, end in pairwise(moments)]


def summary(rounds: Sequence[Sequence[float]]) -> Timing:
    """What rounds of times show.

    >>> summary([[6.0, 2.0], [12.0, 4.0], [6.0, 2.1], [6.3, 2.1], [6.0, 1.0]])
    Timing(ratios=(3.0,), spread=0.524, rounds=5)
    """
    ratios, spread = [], 0.0
    for times in zip(*([first / other for other in others] for first, *others in rounds), strict=True):
        middle = median(times)
        low, _, high = quantiles(times)
        ratios.append(round(middle, 2))
        spread = max(spread, (high - low) / middle)
    return Timing(tuple(ratios), round(spread, 3), len(rounds))


def attempts(measure: Callable[[], Timing], is_plausible: Callable[[Timing], bool]) -> tuple[Timing, bool]:
    """Measures until a timing is narrow and plausible, a few times at most.

    Args:
        measure: makes a timing.
        is_plausible: whether its ratios can be.

    Returns:
        It and True; or the narrowest of those that were not to be trusted and False.
    """
    found = []
    for _ in range(ATTEMPTS):
        timing = measure()
        if timing.spread <= LARGEST_SPREAD and is_plausible(timing):
            return timing, True
        found.append(timing)
    return min(found, key=lambda timing: timing.spread), False


def load() -> float:
    """Processes a core that want to run, of the last minute; 0 where the system does not tell."""
    try:
        return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)
    except (OSError, AttributeError):
        return 0.0
