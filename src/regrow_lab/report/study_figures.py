"""The figures of single studies: learning rates, equal FLOPs, redistribution over the steps, tickets, storages, ….

Pure functions from summaries or stored runs to a figure, None where there is nothing to draw.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import color_sequences
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from regrow_lab.methods import method_of
from regrow_lab.report.accuracy_axis import accuracy_axis, accuracy_scale, whiskers
from regrow_lab.report.figures import DASHES
from regrow_lab.report.plain_tables import Grid
from regrow_lab.report.summary import Summary
from regrow_lab.store.folders import StoredRun

COLOURS, MARKERS = color_sequences["Dark2"], "os^Dv<P"
"""Of lines that are no methods, such as sparsities: no method has these colours."""
KINDS = {
    (None, False): "rewound to step 0",
    (None, True): "rewound to {percent:g} %",
    ("trained", False): "not rewound: trained on",
    ("reinitialized", False): "re-initialised",
    ("shuffled", False): "masks shuffled",
}
"""(start, whether rewound to a later step) -> what a kind of iterative pruning is called."""
UNITS = ((3600, "hours"), (60, "minutes"), (1, "seconds"))
NAMES = {"uniform": "uniform", "erk": "ERK", "er": "ER", "flop-aware": "FLOP-aware"}


def learning_rates(summaries: Sequence[Summary]) -> Figure | None:
    """Accuracy against learning rate, a panel a distribution, a colour a sparsity, a thin line each (alpha, dT)."""
    cells = [cell for cell in summaries if cell.mean is not None and "learning_rate=" in cell.variant]
    if not cells:
        return None
    distributions = list(dict.fromkeys(cell.distribution for cell in cells))
    sparsities = sorted({cell.sparsity for cell in cells})
    figure, all_axes = _panels(len(distributions))
    rates = sorted({_rate(cell) for cell in cells})
    for axes, distribution in zip(all_axes, distributions, strict=True):
        axes.set_title(NAMES.get(str(distribution), str(distribution)))
        for number, sparsity in enumerate(sparsities):
            same = [cell for cell in cells if (cell.distribution, cell.sparsity) == (distribution, sparsity)]
            lines: dict[str, list[Summary]] = defaultdict(list)
            for cell in sorted(same, key=_rate):
                lines[cell.variant.replace(f"learning_rate={_rate(cell)}", "")].append(cell)
            for line in lines.values():
                _line(axes, [_rate(cell) for cell in line], line, number, "", width=0.7, alpha=0.35)
            best = [
                max((c for c in same if _rate(c) == rate), key=lambda c: c.mean or 0, default=None) for rate in rates
            ]
            _line(axes, [_rate(c) for c in best if c], [c for c in best if c], number, f"S = {sparsity:g}")
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(FixedLocator(rates))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f"{rate:g}"))
        axes.set_xlabel("learning rate")
        accuracy_axis(axes, cells)
    return _done(figure, all_axes, "Thick: the best (alpha, dT) at each rate; thin: each pair.")


def _rate(cell: Summary) -> float:
    return float(dict(part.split("=") for part in cell.variant.split(", "))["learning_rate"])


def equal_flops(summaries: Sequence[Summary]) -> Figure | None:
    """Accuracy against forward FLOPs by distribution; and against training FLOPs where training is longer.

    The colour is the distribution's in both.
    """
    cells = [cell for cell in summaries if cell.method == "rigl" and cell.mean is not None and not cell.variant]
    if not cells:
        return None
    figure, all_axes = _panels(2)
    names = list(dict.fromkeys(cell.distribution for cell in cells))
    stretched = dict.fromkeys((cell.distribution, cell.sparsity) for cell in cells if cell.multiplier != 1)
    once = [cell for cell in cells if (cell.distribution, cell.sparsity) not in stretched]
    for number, name in enumerate(names):
        line = sorted((cell for cell in once if cell.distribution == name), key=lambda cell: cell.test_ratio)
        aside = 1.015 ** (2 * number - len(names) + 1)  # so that deviations at the same FLOPs do not cover each other
        if line:
            at = [aside * cell.test_ratio for cell in line]
            _line(all_axes[0], at, line, number, NAMES.get(str(name), str(name)))
    all_axes[0].set_title("RigL at equal forward FLOPs")
    all_axes[0].set_xlabel("forward FLOPs, relative to dense")
    sparsities = sorted({sparsity for _, sparsity in stretched})
    for name, sparsity in stretched:
        line = [cell for cell in cells if (cell.distribution, cell.sparsity) == (name, sparsity)]
        line.sort(key=lambda cell: cell.multiplier)
        label = f"{NAMES.get(str(name), name)}, S = {sparsity:g}"
        style = DASHES[sparsities.index(sparsity) % len(DASHES)]
        _line(all_axes[1], [cell.train_ratio for cell in line], line, names.index(name), label, style=style)
    all_axes[1].set_title("RigL, trained longer")
    all_axes[1].set_xlabel("training FLOPs, relative to dense")
    for axes in all_axes:
        _ratio_axis(axes)
        accuracy_axis(axes, [cell for cell in summaries if cell.is_dense or cell in cells])
    return _done(figure, all_axes, "")


def flops_over_steps(runs: Sequence[StoredRun]) -> Figure | None:
    """Forward FLOPs relative to dense against the step: Figure 5, left. A panel a sparsity, one seed of each row.

    At step 0 every method has the densities of its distribution, which RigL keeps: its FLOPs are where all lines begin.
    """
    shown: dict[tuple[str, str | None, float], Mapping[str, Any]] = {}
    for run in runs:
        config, result = run.config, run.result or {}
        wanted = config["method"] in ("rigl", "rigl-sg", "rigl-sm", "snfs") and config["multiplier"] == 1
        if wanted and result.get("sparse_flops_by_epoch") and not config.get("start"):
            shown.setdefault((config["method"], config["distribution"], config["sparsity"]), result)
    if not shown:
        return None
    sparsities = sorted({sparsity for _, _, sparsity in shown})
    rows = list(dict.fromkeys((method, distribution) for method, distribution, _ in shown))
    figure, all_axes = _panels(len(sparsities))
    for axes, sparsity in zip(all_axes, sparsities, strict=True):
        axes.set_title(f"S = {sparsity:g}")
        for method, distribution in rows:
            found: Mapping[str, Any] = shown.get((method, distribution, sparsity), {})
            ratios = [flops / found["dense_flops"] for flops in found.get("sparse_flops_by_epoch", ())]
            if ratios:
                steps = [found["steps"] * (epoch + 1) / len(ratios) for epoch in range(len(ratios))]
                if (first := shown.get(("rigl", distribution, sparsity))) is not None:
                    steps, ratios = [0, *steps], [first["sparse_flops"] / first["dense_flops"], *ratios]
                label = f"{method_of(method).label} ({NAMES.get(str(distribution), distribution)})"
                style = "-" if distribution == "uniform" else "--"
                axes.plot(steps, ratios, style, color=method_of(method).colour, lw=1.4, label=label)
        axes.set_xlabel("optimizer step")
    _done(figure, all_axes, "")
    all_axes[0].set_ylabel("forward FLOPs, relative to dense")
    return figure


def tickets(summaries: Sequence[Summary]) -> Figure | None:
    """Accuracy against density of IMP's kinds; the dense net as a line across.

    Kinds that stop halfway, there for their instability alone, are left to the table.
    """
    found = [cell for cell in summaries if cell.method == "imp" and cell.mean is not None]
    if not found:
        return None
    last = max(cell.sparsity for cell in found)
    whole = {cell.variant for cell in found if cell.sparsity == last}
    cells = [cell for cell in found if cell.variant in whole]
    figure, (axes,) = _panels(1, width=6.5)
    for number, variant in enumerate(dict.fromkeys(cell.variant for cell in cells)):
        line = sorted((cell for cell in cells if cell.variant == variant), key=lambda cell: cell.sparsity)
        _line(axes, [1 - cell.sparsity for cell in line], line, number, _kind(variant))
    accuracy_axis(axes, [cell for cell in summaries if cell.is_dense or cell in found])
    axes.set_xscale("log")
    axes.invert_xaxis()
    axes.xaxis.set_major_locator(FixedLocator([1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda density, _: f"{100 * density:g} %"))
    axes.set_xlabel("weights left")
    return _done(figure, [axes], "")


def _kind(variant: str) -> str:
    fields = dict(part.split("=") for part in variant.split(", ") if part)
    rewind = float(fields.get("rewind", 0))
    name = KINDS.get((fields.get("start"), rewind > 0), variant)
    return name.format(percent=100 * rewind)


def instability(runs: Sequence[StoredRun]) -> Figure | None:
    """Largest test error on the line less the mean of its ends, against the rewind step: a line a net."""
    found: dict[float, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.result and run.result.get("line"):
            found[run.config["sparsity"]][run.config["rewind"]].append(run.result["line"]["above_mean"])
    if not found:
        return None
    figure, (axes,) = _panels(1, width=6.0)
    for number, (sparsity, points) in enumerate(sorted(found.items())):
        x = sorted(points)
        means = [statistics.fmean(points[rewind]) for rewind in x]
        spread = [statistics.stdev(points[rewind]) if len(points[rewind]) > 1 else 0.0 for rewind in x]
        label = "dense" if not sparsity else f"IMP, S = {sparsity:.3g}"
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        percent = [100 * rewind for rewind in x]
        axes.errorbar(percent, means, spread, color=colour, marker=marker, ms=5, lw=1.4, capsize=2, label=label)
    axes.axhline(0, color="#999999", lw=0.8)
    axes.set_xlabel("rewind step, percent of the training")
    _done(figure, [axes], "")
    axes.set_ylabel("instability: rise of the test error on the line [points]")
    return figure


def instability_table(runs: Sequence[StoredRun]) -> Grid:
    """Both definitions of the instability for each net and rewind step, in points of test error."""
    found: dict[tuple[float, float], list[tuple[float, float]]] = defaultdict(list)
    for run in runs:
        if run.result and (line := run.result.get("line")):
            where = (run.config["sparsity"], run.config["rewind"])
            found[where].append((line["above_mean"], line["above_worst"]))
    rows = []
    for (sparsity, rewind), values in sorted(found.items()):
        texts = [
            f"{statistics.fmean(each):.2f}" + (f" ± {statistics.stdev(each):.2f}" if len(each) > 1 else "")
            for each in zip(*values, strict=True)
        ]
        net = "dense" if not sparsity else f"IMP, S = {sparsity:.3g}"
        rows.append((net, f"{100 * rewind:g} %", str(len(values)), *texts))
    head = ("net", "rewind step", "n", "above the mean of the ends", "above the worse end")
    notes = ("Largest test error on the line between two trainings that part at the rewind step, in points.",)
    return Grid("Instability against the rewind step", head, tuple(rows), notes)


def bits(summaries: Sequence[Summary]) -> Figure | None:
    """Bits a character against training FLOPs relative to the dense net, a point a row."""
    cells = [cell for cell in summaries if cell.bits is not None]
    if not cells:
        return None
    figure, (axes,) = _panels(1, width=6.0)
    for cell in cells:
        colour, marker = cell.style
        label = cell.label if cell.is_dense else f"{cell.label}, S = {cell.sparsity:g}"
        inside = "white" if cell.multiplier > 1 else colour
        axes.errorbar(
            [cell.train_ratio], [cell.bits or 0.0], [cell.bits_std or 0.0], color=colour, marker=marker, ms=6, lw=0,
            markerfacecolor=inside, elinewidth=1, capsize=2, label=label,
        )  # fmt: skip
    axes.set_xlim(left=0)
    axes.set_xlabel("training FLOPs, relative to the dense net")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))
    _done(figure, [axes], "Error bars: standard deviation over seeds; hollow: longer training.")
    axes.set_ylabel("bits a character (lower is better)")
    return figure


def storages(summaries: Sequence[Summary]) -> Figure | None:
    """Accuracy against the wall time of a run by storage and precision, a panel a sparsity, the dense nets in each."""
    cells = [cell for cell in summaries if cell.mean is not None and "precision=" in cell.variant]
    sparsities = sorted({cell.sparsity for cell in cells if not cell.is_dense})
    if not sparsities:
        return None
    kinds = list(dict.fromkeys((cell.method, cell.variant) for cell in cells))
    longest = max(cell.seconds for cell in cells)
    unit, name = next((unit, name) for unit, name in UNITS if longest >= 2 * unit or unit == 1)
    figure, all_axes = _panels(len(sparsities))
    for axes, sparsity in zip(all_axes, sparsities, strict=True):
        axes.set_title(f"S = {sparsity:g}")
        for cell in cells:
            if cell.sparsity in (0.0, sparsity):
                label = f"{cell.label.split(' (')[0]}, {_words(cell.variant)}"
                number = kinds.index((cell.method, cell.variant))
                _line(axes, [cell.seconds / unit], [cell], number, label, colour=cell.style[0])
        axes.set_xlim(left=0)
        axes.set_xlabel(f"{name} a run")
        accuracy_scale(axes, cells)
    return _done(figure, all_axes, "Error bars: standard deviation over seeds.")


def _words(variant: str) -> str:
    """What sets storages apart, without the names of the fields."""
    fields = dict(part.split("=") for part in variant.split(", "))
    precision = {"float32": "fp32"}.get(fields["precision"], fields["precision"])
    return {"compact": "compact ", "dense": "masked "}.get(fields.get("storage", ""), "") + precision


def _panels(number: int, width: float = 4.4) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width * number + 0.4, 4.4), layout="constrained")
    all_axes = [*figure.subplots(1, number, sharey=True, squeeze=False)[0]]
    for axes in all_axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(True, axis="y", color="#eeeeee")
    return figure, all_axes


def _line(
    axes: Axes, x: Sequence[float], line: Sequence[Summary], number: int, label: str, *, width: float = 1.4,
    alpha: float = 1.0, style: str = "-", colour: Any = None,
) -> None:  # fmt: skip
    colour, marker = colour or COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
    means = [cell.mean or 0.0 for cell in line]
    if label:
        bars = np.transpose([whiskers(cell) for cell in line])
        axes.errorbar(x, means, bars, color=colour, marker=marker, ms=5, lw=width, ls=style, capsize=2, label=label)
    else:
        axes.plot(x, means, color=colour, lw=width, alpha=alpha)


def _ratio_axis(axes: Axes) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator([0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 1.0, 2.0]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda ratio, _: f"{ratio:g}x"))


def _done(figure: Figure, all_axes: Sequence[Axes], note: str) -> Figure:
    all_axes[0].set_ylabel("test accuracy [%], spaced by the log of the error")
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
