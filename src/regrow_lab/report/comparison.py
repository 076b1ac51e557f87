"""Ours beside the paper's: every row of a study with the printed value, the difference, and what the runs took."""

from __future__ import annotations

from collections.abc import Sequence

from regrow_lab.report.columns import MISSING, aligned, times
from regrow_lab.report.paper import Published, Value
from regrow_lab.report.plain_tables import Grid
from regrow_lab.report.summary import Summary

HEAD = (
    "Method",
    "S",
    "n",
    "accuracy",
    "paper",
    "difference",
    "bits/char.",
    "FLOPs train, test",
    "paper",
    "time train, test",
    "paper",
    "time ÷ RigL's",
)
SAME_DATA = {"cifar10-jpeg": "cifar10"}
"""Data set -> the one whose images it holds in another form."""


def comparisons(
    summaries: Sequence[Summary], published: Sequence[Published] = (), scale: str = "small"
) -> tuple[Grid, ...]:
    """A table for each model and data set of ours, and for each printed table that it can be set beside.

    Args:
        summaries: of a study's runs, as `summarise` leaves them.
        published: what is printed.
        scale: at which the study was done.
    """
    kinds = list(dict.fromkeys((summary.model, summary.data) for summary in summaries))
    grids = []
    for model, data in kinds:
        same = [summary for summary in summaries if (summary.model, summary.data) == (model, data)]
        alike = [table for table in published if table.net.model == model]
        beside: Sequence[Published | None] = alike or published or [None]
        grids += [comparison(same, table, scale) for table in beside]
    return tuple(grids)


def comparison(summaries: Sequence[Summary], table: Published | None, scale: str) -> Grid:
    """Ours, all of one model and data set, beside one printed table (None: there is none)."""
    printed = {} if table is None else table.rows
    memory = aligned([summary.peak_memory_mib for summary in summaries], most=1)
    unit, took = times([summary.seconds for summary in summaries])
    rows, slips, known = [], [], set()
    for summary, *costs in zip(summaries, memory, took, strict=True):
        value = printed.get(summary.label, {}).get(summary.sparsity)
        known.add((summary.label, summary.sparsity))
        rows.append((*_row(summary, value, table, _rigl_of(summary, summaries)), *costs))
    for label, cells in printed.items():
        for sparsity, value in cells.items():
            if (label, sparsity) not in known:
                rows.append((*_row_without_ours(label, sparsity, value), MISSING, MISSING))
            if value.slip:
                slips.append(f"‡ {label}, S = {sparsity:g}: {value.slip}.")
    first = summaries[0]
    beside = ": memory and time too" if table is None else f", beside {table.name} of the report"
    title = f"{first.model} on {first.data}{beside}"
    notes = (*_notes(scale, summaries, table), *slips)
    return Grid(title, (*HEAD, "peak MiB", unit), tuple(rows), notes).without_empty_columns()


def is_same(summary: Summary, table: Published) -> bool:
    """Whether ours is the net and the images of the printed table."""
    return (summary.model, SAME_DATA.get(summary.data, summary.data)) == (table.net.model, table.net.data)


def _rigl_of(summary: Summary, summaries: Sequence[Summary]) -> Summary | None:
    """RigL with the same distribution and sparsity, beside a method that is not a row of it."""
    where = (summary.distribution, summary.sparsity, 1)
    alike = (each for each in summaries if (each.distribution, each.sparsity, each.multiplier) == where)
    return next((each for each in alike if each.method == "rigl" != summary.method), None)


def _row(summary: Summary, value: Value | None, table: Published | None, rigl: Summary | None) -> tuple[str, ...]:
    wall = (summary.wall_train, summary.wall_test)
    of_rigl = (rigl.wall_train, rigl.wall_test) if rigl is not None else (None, None)
    alike = table is not None and is_same(summary, table)  # else a difference would measure the data
    difference = f"{summary.mean - value.accuracy:+.1f}" if alike and value and summary.mean is not None else MISSING
    flops = f"{summary.train_ratio:.3f}x, {summary.test_ratio:.3f}x"
    if summary.method == "dense":
        flops = f"{3 * summary.dense_flops:.2e}, {summary.dense_flops:.2e}"
    printed_flops = _flops(value)
    if summary.method == "dense" and table is not None:
        printed_flops = "{:.2e}, {:.2e}".format(*table.net.dense_flops)
    return (
        summary.label,
        f"{summary.sparsity:g}",
        f"{summary.n}" + (f" ({summary.diverged} div.)" if summary.diverged else ""),
        _number(summary.mean, summary.std, 1),
        _printed(value),
        difference,
        _number(summary.bits, summary.bits_std, 3),
        flops,
        printed_flops,
        _times(*wall),
        MISSING if value is None or value.wall is None else f"{value.wall:.2f}x",
        _times(*(a / b if a is not None and b else None for a, b in zip(wall, of_rigl, strict=True))),
    )


def _row_without_ours(label: str, sparsity: float, value: Value) -> tuple[str, ...]:
    wall = MISSING if value.wall is None else f"{value.wall:.2f}x"
    ours = (MISSING, MISSING, _printed(value), MISSING, MISSING, MISSING, _flops(value), MISSING, wall)
    return (label, f"{sparsity:g}", *ours, MISSING)


def _times(train: float | None, test: float | None) -> str:
    return MISSING if train is None or test is None else f"{train:.2f}x, {test:.2f}x"


def _number(mean: float | None, std: float | None, places: int) -> str:
    if mean is None:
        return MISSING
    return f"{mean:.{places}f}" + ("" if std is None else f" ± {std:.{max(2, places)}f}")


def _printed(value: Value | None) -> str:
    if value is None:
        return MISSING
    return _number(value.accuracy, value.std, 1) + ("‡" if value.slip else "")


def _flops(value: Value | None) -> str:
    return MISSING if value is None or value.train is None else f"{value.train:.2f}x, {value.test:.2f}x"


def _notes(scale: str, summaries: Sequence[Summary], table: Published | None) -> list[str]:
    ours = summaries[0]
    notes = [f"Ours: scale {scale}, {ours.model} on {ours.data}."]
    if table is not None:
        same = is_same(ours, table)
        theirs = f"The paper's: {table.net.model} on {table.net.data}, 250 epochs, 3 seeds."
        if same and scale == "paper":
            said = "The same net and schedule" + (
                "." if ours.data == table.net.data else f", its images as {ours.data}: not the paper's bytes."
            )
        elif same:
            said = "The same net on the same images, another schedule: FLOPs can be compared, accuracies hardly."
        else:
            said = "Another net or other data: FLOPs and accuracies stand side by side, and are not subtracted."
        notes += [theirs, said]
    if any(summary.wall_train is not None for summary in summaries):
        notes.append(
            "Time of a step relative to a dense net's, measured in turns: the median over the seeds of a run's median "
            "ratio; the dense row, one such net against another, tells how far to trust them."
        )
    notes.append("Accuracy: test, percent, mean ± sample standard deviation. FLOPs relative to dense; dense: a sample.")
    notes.append("Of one run: time (mean) and peak memory (median), above what torch and the data take.")
    return notes
