"""The accuracy axis of every figure: spaced by the logarithm of the error, wide enough for all cells and their bars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike, NDArray

from regrow_lab.report.summary import Summary

FEWEST_TICKS = 4


def by_error(accuracy: ArrayLike) -> NDArray[np.float64]:
    """Place of an accuracy in percent on the axis: minus the logarithm of the error, which counts as .1 at least."""
    return -np.log(np.maximum(100 - np.asarray(accuracy, dtype=np.float64), 0.1))


def whiskers(cell: Summary) -> tuple[float, float]:
    """How far the error bar goes down and up: the deviation; where that is beyond 0 or 100, to the seed at that end."""
    if cell.mean is None or cell.std is None or cell.min is None or cell.max is None:
        return 0.0, 0.0
    down = cell.std if cell.mean >= cell.std else cell.mean - cell.min
    up = cell.std if cell.mean + cell.std <= 100 else cell.max - cell.mean
    return down, up


def accuracy_scale(axes: Axes, summaries: Sequence[Summary]) -> None:
    """The same accuracy axis for every panel: all cells and their error bars lie in it."""
    ends = [cell.mean + side for cell in summaries if cell.mean is not None for side in _ends(cell)]
    places = by_error(ends or [0.0, 99.0])
    margin = 0.05 * (places.max() - places.min()) + 0.05
    bottom, top = places.min() - margin, places.max() + margin
    axes.set_yscale("function", functions=(by_error, lambda place: 100 - np.exp(-np.asarray(place))))
    axes.set_ylim(*(100 - np.exp([-bottom, -top])))
    axes.yaxis.set_major_locator(FixedLocator(_ticks(float(bottom), float(top))))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda accuracy, _: f"{accuracy:g}"))
    axes.grid(True, axis="y", color="#eeeeee")


def accuracy_axis(axes: Axes, summaries: Sequence[Summary]) -> list[Summary]:
    """The accuracy's scale, and each dense net as a line across, with its name for a legend; those nets."""
    accuracy_scale(axes, summaries)
    nets = [cell for cell in summaries if cell.is_dense and cell.mean is not None]
    for net in nets:
        axes.axhline(net.mean or 0.0, color=net.style[0], lw=1, ls=(0, (4, 3)), zorder=1, label=dense_label(net))
    return nets


def dense_label(net: Summary) -> str:
    """A dense net's name and mean accuracy."""
    return f"{net.label} {net.mean:.1f}"


def _ends(cell: Summary) -> tuple[float, float]:
    down, up = whiskers(cell)
    return -down, up


def _ticks(bottom: float, top: float) -> list[float]:
    """Round accuracies between two places on the axis that keep a distance from each other, the roundest first."""
    round_ones = [*range(0, 100, 10), 95, 98, 99, 97, *range(5, 100, 10), *range(100), *np.arange(90, 100, 0.5)]
    finer = [[round(float(accuracy), 1) for accuracy in np.arange(0, 100, step)] for step in (0.5, 0.2, 0.1)]
    ticks: dict[float, float] = {}
    for candidates in (round_ones, *finer):
        if len(ticks) >= FEWEST_TICKS:
            break
        for accuracy in candidates:
            place = float(by_error(accuracy))
            if bottom <= place <= top and all(abs(place - other) > (top - bottom) / 14 for other in ticks.values()):
                ticks[float(accuracy)] = place
    return sorted(ticks)
