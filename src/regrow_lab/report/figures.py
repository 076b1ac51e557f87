"""The figures of a study: accuracy against sparsity, accuracy against training FLOPs, the densities of the layers.

Each is a pure function from summaries to a matplotlib figure, None where there is nothing to draw; nothing is written,
and no global state is touched.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import NDArray

from regrow_lab.methods import method_of
from regrow_lab.report.accuracy_axis import accuracy_axis, by_error, dense_label, whiskers
from regrow_lab.report.summary import Summary

DASHES = ("-", "--", ":", "-.")
"""Of the lines in a panel that have a method in common, in their order."""
WIDE_LABEL = 17
"""Letters of a label beyond which a legend has one column."""
LETTER = 0.075
"""Inches that a letter takes."""
FOOT = 0.02
"""Height in the axes where diverged runs are marked."""

Line = list[Summary]
"""The cells of one row, sparsities ascending."""


def accuracy_against_sparsity(summaries: Sequence[Summary]) -> Figure | None:
    """Mean test accuracy with its standard deviation over the seeds, a line a method, a panel a kind of distribution.

    Sparsities stand side by side as categories; accuracy is spaced by the logarithm of the error, so that both a
    collapse and a tenth of a percent near the dense net can be seen.
    """
    panels = _panels(summaries)
    if not panels:
        return None
    sparsities = sorted({cell.sparsity for line in _lines(summaries) for cell in line})
    longest = max(len(line[0].label) for _, lines in panels for line in lines)
    figure, all_axes = _figure(len(panels), width=3.9 + LETTER * max(0, longest - 14))
    for axes, (title, lines) in zip(all_axes, panels, strict=True):
        axes.set_title(title)
        axes.set_xlabel("sparsity")
        axes.set_xticks(range(len(sparsities)), [f"{sparsity:g}" for sparsity in sparsities])
        axes.set_xlim(-0.4, len(sparsities) - 0.6)
        nets = accuracy_axis(axes, summaries)
        labels = [(dense_label(net), net.style[0], net.mean, len(sparsities) - 0.6) for net in nets]
        for i, (line, dashes) in enumerate(zip(lines, _dashes(lines), strict=True)):
            aside = 0.05 * (i - (len(lines) - 1) / 2)
            x = [sparsities.index(cell.sparsity) + aside for cell in line]
            _draw(axes, line, x, dashes)
            labels.append((line[-1].label, line[-1].style[0], line[-1].mean, x[-1]))
        _label_ends(axes, labels)
    _finish(figure, all_axes, summaries)
    return figure


def accuracy_against_flops(summaries: Sequence[Summary]) -> Figure | None:
    """Mean test accuracy against the FLOPs of training relative to the dense net, a line a method over its sparsities.

    The panels are those of `accuracy_against_sparsity`, on the same axes; each shows the lines of the others in grey.
    """
    panels = _panels(summaries)
    if not panels:
        return None
    rows = max(len(lines) for _, lines in panels) + 1
    longest = max(len(line[0].label) for _, lines in panels for line in lines)
    columns = 1 if longest > WIDE_LABEL else 2
    figure, all_axes = _figure(len(panels), width=3.8, legend=math.ceil(rows / columns))
    ratios = [cell.train_ratio for line in _lines(summaries) for cell in line]
    for axes, (title, lines) in zip(all_axes, panels, strict=True):
        axes.set_title(title)
        axes.set_xlabel("training FLOPs, relative to the dense net")
        axes.set_xscale("log")
        axes.set_xlim(min(ratios) / 1.2, max(*ratios, 1.0) * 1.2)
        axes.xaxis.set_major_locator(FixedLocator(_ratio_ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
        accuracy_axis(axes, summaries)
        for line in _lines(summaries):
            if line not in lines:
                axes.plot([cell.train_ratio for cell in line], _means(line), color="#dddddd", lw=1, zorder=1)
        for line, dashes in zip(lines, _dashes(lines), strict=True):
            _draw(axes, line, [cell.train_ratio for cell in line], dashes)
        # Below the panel: inside, some point or bar is always under it.
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=8, frameon=False, ncols=columns)
    _finish(figure, all_axes, summaries, *(["Grey: the rows of the other panels."] if len(panels) > 1 else []))
    return figure


def layer_densities(summaries: Sequence[Summary]) -> Figure | None:
    """Density of every layer at the end of training, set by a distribution or found by a method; a panel a sparsity."""
    shown = _density_lines(summaries)
    if not shown:
        return None
    sparsities = sorted({cell.sparsity for line in shown.values() for cell in line})
    lowest = min(density for line in shown.values() for cell in line for density in cell.layer_densities.values())
    layers = list(dict.fromkeys(layer for line in shown.values() for cell in line for layer in cell.layer_densities))
    width = max(2.9, 0.16 * len(layers) + 1)
    figure, all_axes = _figure(len(sparsities), width=width)
    for axes, sparsity in zip(all_axes, sparsities, strict=True):
        axes.set_title(f"S = {sparsity:g}")
        axes.set_yscale("log")
        axes.set_ylim(lowest / 1.5, 1.3)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda density, _: f"{density:g}"))
        names = [layer.removesuffix(".weight") for layer in layers]
        many = len(layers) > 6 or LETTER * max(map(len, names)) * len(layers) > width
        axes.set_xticks(range(len(layers)), names, rotation=90 if many else 0, fontsize=6 if len(layers) > 6 else 9)
        axes.grid(True, axis="y", color="#eeeeee")
        for i, (label, line) in enumerate(shown.items()):
            for cell in line:
                if cell.sparsity == sparsity:
                    colour, marker = cell.style
                    if label in ("uniform", "ERK"):
                        colour, marker = "#555555", "."
                    aside = 0.05 * (i - (len(shown) - 1) / 2) * (not many)
                    x = [layers.index(layer) + aside for layer in cell.layer_densities]
                    style = {"uniform": ":", "ERK": "--"}.get(label, "-")
                    axes.plot(
                        x,
                        list(cell.layer_densities.values()),
                        style,
                        color=colour,
                        marker=marker,
                        ms=5,
                        lw=1.2,
                        label=label,
                    )
    all_axes[0].set_ylabel("density of the layer")
    handles, labels = max((axes.get_legend_handles_labels() for axes in all_axes), key=lambda pair: len(pair[1]))
    room = int(72 * figure.get_figwidth() / (5 * max(map(len, labels)) + 45))  # points: 5 a letter, 45 a handle
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, room), frameon=False, fontsize=8)
    return figure


def _density_lines(summaries: Sequence[Summary]) -> dict[str, Line]:
    """What the figure of the densities shows: the two distributions, then the methods that find their own densities."""
    lines = [line for line in _lines(summaries) if line[0].multiplier == 1 and line[0].layer_densities]
    found: dict[str, Line] = {}
    for label, distribution in (("uniform", "uniform"), ("ERK", "erk")):
        kept = [line for line in lines if not method_of(line[0].method).finds_densities]
        fixed = [line for line in kept if line[0].distribution == distribution]
        if fixed:
            found[label] = fixed[0]
    own: dict[str, Line] = {}
    for line in lines:
        if method_of(line[0].method).finds_densities:
            own.setdefault(line[0].method, line)  # from uniform, where there are several: what it found is its own
    for method, line in own.items():
        begun = " (from uniform)" if line[0].distribution == "uniform" else ""
        found[method_of(method).label + begun] = line
    return found


def _lines(summaries: Sequence[Summary]) -> list[Line]:
    sparse = [summary for summary in summaries if not summary.is_dense]
    return [list(cells) for _, cells in itertools.groupby(sparse, key=lambda summary: summary.row)]


def _panels(summaries: Sequence[Summary]) -> list[tuple[str, list[Line]]]:
    """Titles and lines of the panels that have any."""
    panels: dict[str, list[Line]] = {"uniform": [], "ERK": [], "own densities, small dense, longer training": []}
    uniform, erk, rest = panels.values()
    for line in _lines(summaries):
        first = line[0]
        if first.distribution is None or first.multiplier > 1:
            rest.append(line)
        else:
            (uniform if first.distribution == "uniform" else erk).append(line)
    return [(title, lines) for title, lines in panels.items() if lines]


def _figure(panels: int, width: float, legend: int = 0) -> tuple[Figure, list[Axes]]:
    """Panels side by side, with room for legends of so many lines below them."""
    figure = Figure(figsize=(width * panels + 0.4, 4.4 + 0.17 * legend), layout="constrained")
    all_axes = list(np.atleast_1d(figure.subplots(1, panels, sharey=True)))
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def _dashes(lines: Sequence[Line]) -> list[str]:
    """How each line of a panel is drawn: those of one method have its colour, and differ in this."""
    methods = [line[0].method for line in lines]
    return [DASHES[methods[:number].count(method) % len(DASHES)] for number, method in enumerate(methods)]


def _ratio_ticks(lowest: float, highest: float) -> list[float]:
    """Round ratios for a logarithmic axis, about a factor of two apart; closer where it spans less than a decade."""
    decades = (0.001, 0.01, 0.1, 1.0, 10.0)
    steps = (1, 2, 5) if highest / lowest > 10 else (1, 1.5, 2, 3, 5, 7)
    return [round(decade * step, 4) for decade in decades for step in steps]


def _draw(axes: Axes, line: Line, x: Sequence[float], dashes: str) -> None:
    """One line with its error bars; a hollow marker where seeds diverged, a cross at the foot of the axes for them."""
    colour, marker = line[0].style
    axes.plot(x, _means(line), dashes, color=colour, marker=marker, ms=5, lw=1.4, label=line[0].label)
    axes.errorbar(
        x,
        _means(line),
        np.transpose([whiskers(cell) for cell in line]),
        color=colour,
        ls="none",
        elinewidth=0.8,
        capsize=2,
    )
    for at, cell in zip(x, line, strict=True):
        if cell.diverged:
            if cell.mean is not None:
                axes.plot([at], [cell.mean], marker, ms=5, color=colour, markerfacecolor="white", zorder=5)
            axes.plot([at], [FOOT], "x", ms=7, mew=2, color=colour, transform=axes.get_xaxis_transform(), zorder=5)


def _means(line: Line) -> NDArray[np.float64]:
    """Mean accuracies; a gap in the line (nan) where every seed diverged."""
    return np.array([cell.mean for cell in line], dtype=np.float64)


def _label_ends(axes: Axes, ends: Sequence[tuple[str, str, float | None, float]]) -> None:
    """The name of each line beside its last point, in its colour, moved apart where names would overlap.

    An end is name, colour, accuracy (None: all seeds diverged) and x.
    """
    bottom, top = by_error(axes.get_ylim())
    ends = sorted(ends, key=lambda end: -1.0 if end[2] is None else end[2])
    wanted = [FOOT if mean is None else float((by_error(mean) - bottom) / (top - bottom)) for _, _, mean, _ in ends]
    for (name, colour, _, x), place, height in zip(ends, _apart(wanted, 0.058), wanted, strict=True):
        axes.annotate(
            name,
            (x, height),
            xycoords=axes.get_xaxis_transform(),
            xytext=(1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=colour,
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-", "lw": 0.5, "color": "#bbbbbb", "shrinkA": 1, "shrinkB": 4, "relpos": (0, 0.5)
            },
        )  # fmt: skip


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending `places` in [0, 1], moved to be `gap` apart: those that would overlap, around their mean.

    >>> [round(place, 2) for place in _apart([0.5, 0.5, 0.95, 0.98], 0.1)]
    [0.45, 0.55, 0.9, 1.0]
    """
    groups: list[tuple[float, int]] = []  # the lowest place of each, and how many stand above each other in it
    for place in places:
        lowest, number = place, 1
        while True:
            lowest = max(0.0, min(lowest, 1.0 - gap * (number - 1)))
            if not groups or groups[-1][0] + gap * groups[-1][1] <= lowest:
                break
            below, count = groups.pop()
            lowest = (below * count + (lowest - gap * count) * number) / (count + number)
            number += count
        groups.append((lowest, number))
    return [lowest + gap * i for lowest, number in groups for i in range(number)]


def _finish(figure: Figure, all_axes: Sequence[Axes], summaries: Sequence[Summary], *more: str) -> None:
    all_axes[0].set_ylabel("test accuracy [%], spaced by the log of the error")
    notes = []
    if any(summary.std for summary in summaries):
        notes.append("Error bars: standard deviation over seeds.")
    if any(summary.diverged for summary in summaries):
        notes.append("Cross at the foot: seeds that diverged, in no mean (hollow marker: the mean of the others).")
    figure.supxlabel(" ".join([*notes, *more]), fontsize=8, color="#555555")
