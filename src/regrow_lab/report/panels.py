"""What the figures of single studies are drawn with: panels side by side, lines of cells, one legend below.

For lines that are told apart by something else than the method; those of methods are in `figures`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib import color_sequences
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from regrow_lab.report.accuracy_axis import whiskers
from regrow_lab.report.summary import Summary

COLOURS, MARKERS = color_sequences["Dark2"], "os^Dv<P"
"""Of lines that are no methods, such as sparsities: no method has these colours."""


def side_by_side(number: int, width: float = 4.4) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels with one y axis, each so many inches wide."""
    figure = Figure(figsize=(width * number + 0.4, 4.4), layout="constrained")
    all_axes = [*figure.subplots(1, number, sharey=True, squeeze=False)[0]]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, axis="y", color="#eeeeee")
    return figure, all_axes


def line(
    axes: Axes,
    x: Sequence[float],
    cells: Sequence[Summary],
    number: int,
    label: str,
    *,
    width: float = 1.4,
    alpha: float = 1.0,
    style: str = "-",
    colour: Any = None,
) -> None:
    """The accuracies of `cells` at `x` with their error bars; without a label, a line alone.

    `number` among the lines gives the marker, and the colour where none is given.
    """
    colour, marker = colour or COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    means = [cell.mean or 0.0 for cell in cells]
    if label:
        bars = np.transpose([whiskers(cell) for cell in cells])
        axes.errorbar(x, means, bars, color=colour, marker=marker, ms=5, lw=width, ls=style, capsize=2, label=label)
    else:
        axes.plot(x, means, color=colour, lw=width, alpha=alpha)


def log_axis(axes: Axes, ticks: Sequence[float], in_words: Callable[[float], str]) -> None:
    """A logarithmic x axis that shows these numbers."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: in_words(value)))


def finished(
    figure: Figure,
    all_axes: Sequence[Axes],
    note: str = "",
    y: str = "test accuracy [%], spaced by the log of the error",
) -> Figure:
    """The same figure with the name of its y axis, a legend (one for all panels that show the same) and a note."""
    all_axes[0].set_ylabel(y)
    entries: dict[str, Artist] = {}
    for handle, label in itertools.chain(*(zip(*axes.get_legend_handles_labels(), strict=True) for axes in all_axes)):
        entries.setdefault(label, handle)
    same = all(axes.get_legend_handles_labels()[1] == list(entries) for axes in all_axes)
    if same:
        # The note is the legend's title: constrained layout lets two things below the axes overlap.
        figure.legend(
            [*entries.values()], [*entries], loc="outside lower center", ncols=4, frameon=False, fontsize=8,
            title=note or None, title_fontsize=8,
        )  # fmt: skip
    else:
        for axes in all_axes:
            axes.legend(fontsize=8, frameon=False)
        figure.supxlabel(note, fontsize=8, color="#555555")
    return figure
