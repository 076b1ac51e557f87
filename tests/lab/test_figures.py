"""The figures show what is stored: every method, its deviation, what diverged; and their labels can be read."""

import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from stored import LAYERS, store_run, store_study

from regrow_lab.report.figures import _apart, accuracy_against_flops, accuracy_against_sparsity, layer_densities
from regrow_lab.report.summary import Summary, summarise
from regrow_lab.store.folders import read_runs

Draw = Callable[[Sequence[Summary]], Figure | None]

PANELS = ["uniform", "ERK", "own densities, small dense, longer training"]


@pytest.fixture
def study(tmp_path: Path) -> tuple[Summary, ...]:
    store_study(tmp_path)
    return summarise(read_runs(tmp_path))


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    FigureCanvasAgg(figure).draw()
    return figure


def lines(axes: Axes) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {
        str(line.get_label()): (np.asarray(line.get_xdata()), np.asarray(line.get_ydata()))
        for line in axes.lines
        if not str(line.get_label()).startswith("_")
    }


def crosses(axes: Axes) -> int:
    return sum(line.get_marker() == "x" for line in axes.lines)


def texts(figure: Figure) -> list[Text]:
    """Every text that is seen: of the ticks, those in view."""
    found = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            low, high = sorted(axis.get_view_interval())
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                if not low <= tick.get_loc() <= high:
                    found = [text for text in found if text not in (tick.label1, tick.label2)]
    return found


def test_accuracy_against_sparsity_has_every_method_in_its_panel(study: tuple[Summary, ...]) -> None:
    figure = drawn(accuracy_against_sparsity(study))
    assert [axes.get_title() for axes in figure.axes] == PANELS
    assert [set(lines(axes)) for axes in figure.axes] == [
        {"SET", "RigL", "SNFS", "Dense 98.0"},
        {"SET (ERK)", "RigL (ERK)", "SNFS (ERK)", "Dense 98.0"},
        {"Small Dense", "SNIP", "RigL_2x", "RigL_2x (ERK)", "Pruning", "Dense 98.0"},
    ]
    for axes in figure.axes:
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.9", "0.99"]
        assert "Dense 98.0" in [text.get_text() for text in axes.texts]
    assert lines(figure.axes[0])["RigL"][1] == pytest.approx([96, 90])


def test_the_axis_spreads_what_is_near_the_dense_net(study: tuple[Summary, ...]) -> None:
    axes = drawn(accuracy_against_sparsity(study)).axes[0]
    height = {accuracy: axes.transData.transform((0, accuracy))[1] for accuracy in (50, 60, 96, 98)}
    assert height[98] - height[96] > height[60] - height[50]
    low, high = axes.get_ylim()
    assert low < 89
    assert 98 < high < 100
    ticks = [float(tick.get_text()) for tick in axes.get_yticklabels()]
    assert len(ticks) >= 4
    assert all(low <= tick <= high for tick in ticks)


def test_deviation_is_drawn(study: tuple[Summary, ...]) -> None:
    axes = drawn(accuracy_against_sparsity(study)).axes[2]
    bars = [segment[:, 1] for bars in axes.collections for segment in bars.get_segments()]
    assert any(np.allclose(bar, [97 - 0.2, 97 + 0.2]) for bar in bars)


@pytest.mark.parametrize("draw", [accuracy_against_sparsity, accuracy_against_flops])
def test_what_diverged_is_crossed(draw: Draw, study: tuple[Summary, ...], tmp_path: Path) -> None:
    figure = drawn(draw(study))
    assert [crosses(axes) for axes in figure.axes] == [1, 0, 0]
    assert any("diverged" in text.get_text() for text in texts(figure))
    store_run(tmp_path / "all", accuracy=None)
    figure = drawn(draw(summarise(read_runs(tmp_path / "all"))))
    assert [crosses(axes) for axes in figure.axes] == [1]
    assert np.isnan(lines(figure.axes[0])["RigL (ERK)"][1]).all()


def test_accuracy_against_flops(study: tuple[Summary, ...]) -> None:
    figure = drawn(accuracy_against_flops(study))
    assert [axes.get_title() for axes in figure.axes] == PANELS
    ratios, accuracies = lines(figure.axes[2])["RigL_2x"]
    assert ratios == pytest.approx([0.2, 0.02])
    assert accuracies == pytest.approx([97, 91])
    assert figure.axes[0].get_xscale() == "log"
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        assert {text.get_text() for text in legend.get_texts()} == set(lines(axes))


def test_layer_densities(study: tuple[Summary, ...]) -> None:
    figure = drawn(layer_densities(study))
    assert [axes.get_title() for axes in figure.axes] == ["S = 0.9", "S = 0.99"]
    for axes, density in zip(figure.axes, (0.1, 0.01), strict=True):
        assert list(lines(axes)) == ["uniform", "ERK", "SNIP", "SNFS (from uniform)", "Pruning"]
        assert all(values == pytest.approx([density] * 3) for _, values in lines(axes).values())
        assert [tick.get_text() for tick in axes.get_xticklabels()] == ["fc1", "fc2", "fc3"]


def test_densities_of_a_method_are_those_it_found(tmp_path: Path) -> None:
    found = dict(zip(LAYERS, (0.05, 0.1, 0.9), strict=True))
    store_run(tmp_path, "snfs", distribution="uniform", result={"densities": found})
    store_run(tmp_path, "snfs", distribution="erk")
    figure = drawn(layer_densities(summarise(read_runs(tmp_path))))
    assert lines(figure.axes[0])["SNFS (from uniform)"][1] == pytest.approx([0.05, 0.1, 0.9])


@pytest.mark.parametrize("draw", [accuracy_against_sparsity, accuracy_against_flops, layer_densities])
def test_nothing_to_draw(draw: Draw, tmp_path: Path) -> None:
    store_run(tmp_path, "dense", 0.0)
    assert draw(summarise(read_runs(tmp_path))) is None


@pytest.mark.parametrize("draw", [accuracy_against_sparsity, accuracy_against_flops, layer_densities])
def test_no_text_lies_on_another_or_is_cut_off(draw: Draw, tmp_path: Path) -> None:
    for sparsity in (0.9, 0.95, 0.98, 0.99):
        for distribution in ("uniform", "erk"):
            for method in ("static", "set", "rigl", "snfs", "rigl-sg", "rigl-sm"):
                store_run(tmp_path, method, sparsity, 97.0, distribution=distribution)  # every line ends at one place
    store_run(tmp_path, "dense", 0.0, 98.0)
    figure = drawn(draw(summarise(read_runs(tmp_path))))
    boxes = [(text.get_text(), Text.get_window_extent(text)) for text in texts(figure)]  # without the leader
    for (one, box), (two, other) in itertools.combinations(boxes, 2):
        assert not box.overlaps(other), f"{one!r} lies on {two!r}"
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in boxes:
        inside = box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
        assert inside, f"{text!r} is cut off"


def test_a_legend_is_no_wider_than_its_figure(tmp_path: Path) -> None:
    found = dict(zip(LAYERS, (0.05, 0.1, 0.9), strict=True))
    for method in ("rigl", "snfs", "rigl-sg", "rigl-sm"):
        for distribution in ("uniform", "erk"):
            store_run(tmp_path, method, 0.9, 97.0, distribution=distribution, result={"densities": found})
    figure = drawn(layer_densities(summarise(read_runs(tmp_path))))
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.get_size_inches()[0] * figure.dpi


@given(st.lists(st.floats(0, 1), max_size=12).map(sorted))
def test_labels_are_moved_apart(places: list[float]) -> None:
    moved = _apart(places, 0.05)
    assert len(moved) == len(places)
    assert all(second - first >= 0.05 - 1e-9 for first, second in itertools.pairwise(moved))
    assert all(0 - 1e-9 <= place <= 1 + 1e-9 for place in moved)
