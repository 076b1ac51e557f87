"""A study's table in the form of the report's Table 2: the text of every cell, laid out once."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from regrow_lab.report.columns import MISSING, aligned, times
from regrow_lab.report.summary import GROUPS, Summary

MOST_SPARSITIES = 6
APART = 10
"""Points of accuracy between seeds beyond which a table says more than their mean."""
USUAL, EXACT = 6, 17
"""Digits of a sparsity: of most, and of any."""


@dataclass(frozen=True)
class Cell:
    """Accuracy, achieved density and FLOPs of one row at one sparsity, as text; `best`: the best of its group there."""

    accuracy: str = MISSING
    density: str = MISSING
    flops: str = MISSING
    best: bool = False


@dataclass(frozen=True)
class Row:
    """One method: a cell for each sparsity of the table, and what a run took, on average over them."""

    label: str
    cells: tuple[Cell, ...]
    costs: tuple[str, str]
    """Wall time and peak memory, under the heads that the table has for them."""


@dataclass(frozen=True)
class Table:
    """One model on one data set: rows in groups of like FLOP requirement, and the notes that belong below."""

    title: str
    sparsities: tuple[float, ...]
    groups: tuple[tuple[Row, ...], ...]
    notes: tuple[str, ...]
    costs: tuple[str, str]
    """Heads of the columns of what a run took."""

    @property
    def heads(self) -> tuple[str, ...]:
        """The sparsities as text, with as many digits as tell them apart."""
        texts = ([f"{sparsity:.{digits}g}" for sparsity in self.sparsities] for digits in range(USUAL, EXACT + 1))
        return tuple(next(text for text in texts if len(set(text)) == len(text)))


def make_tables(summaries: Iterable[Summary], notes: Sequence[str] = ()) -> tuple[Table, ...]:
    """One table for each model and data set among `summaries`, which are ordered as `summarise` leaves them.

    Where there are more than `MOST_SPARSITIES` sparsities, they are split among several. `notes` come first below each.
    """
    tables = []
    for (model, data), same in itertools.groupby(summaries, key=lambda summary: (summary.model, summary.data)):
        cells = list(same)
        sparsities = sorted({summary.sparsity for summary in cells if not summary.is_dense})
        parts = [sparsities[i : i + MOST_SPARSITIES] for i in range(0, len(sparsities), MOST_SPARSITIES)] or [[]]
        for number, part in enumerate(parts, 1):
            title = f"{model} on {data}" + (f", part {number} of {len(parts)}" if len(parts) > 1 else "")
            shown = [each for each in cells if each.is_dense or each.sparsity in part]
            tables.append(_table(title, shown, notes))
    return tuple(tables)


def _table(title: str, summaries: Sequence[Summary], notes: Sequence[str]) -> Table:
    sparsities = tuple(sorted({summary.sparsity for summary in summaries if not summary.is_dense})) or (0.0,)
    seeds = max(summary.n + summary.diverged for summary in summaries)
    best = best_of_groups(summaries)
    cells = dict[tuple[int, tuple[object, ...], float], Cell]()
    for sparsity in sparsities:
        # The dense net has no sparsity of its own: as in the report, it stands in the first column.
        column = [each for each in summaries if (sparsities[0] if each.is_dense else each.sparsity) == sparsity]
        densities = aligned([each.density for each in column], digits=3, least=2, most=5)
        sparse = [each for each in column if not each.is_dense]
        ratios = iter(aligned([r for each in sparse for r in (each.train_ratio, each.test_ratio)], least=2, after="x"))
        for each, density in zip(column, densities, strict=True):
            flops = _dense_flops(each) if each.is_dense else f"{next(ratios)}, {next(ratios)}"
            cells[each.group, each.row, sparsity] = Cell(_accuracy(each, seeds), density, flops, each in best)
    rows = [list(row) for _, row in itertools.groupby(summaries, key=lambda each: (each.group, each.row))]
    unit, took = times([statistics.fmean(cell.seconds for cell in row) for row in rows])
    costs = list(zip(took, aligned([_memory(row) for row in rows], most=1), strict=True))
    groups = itertools.groupby(zip(rows, costs, strict=True), key=lambda row: row[0][0].group)
    return Table(
        title,
        sparsities,
        tuple(
            tuple(
                Row(row[0].label, tuple(cells.get((group, row[0].row, each), Cell()) for each in sparsities), cost)
                for row, cost in same
            )
            for group, same in groups
        ),
        (*notes, *_notes(summaries, seeds)),
        (unit, "peak MiB"),
    )


def _memory(cells: Sequence[Summary]) -> float | None:
    known = [cell.peak_memory_mib for cell in cells if cell.peak_memory_mib is not None]
    return statistics.fmean(known) if known else None


def best_of_groups(summaries: Iterable[Summary]) -> list[Summary]:
    """The highest mean accuracy of each group at each sparsity, and whatever equals it as it is shown (to 0.1).

    A cell with a diverged seed is never the best: its mean leaves out the seed that failed.
    """
    cells: dict[tuple[int, float], list[Summary]] = {}
    for summary in summaries:
        if summary.mean is not None and not summary.diverged:
            cells.setdefault((summary.group, summary.sparsity), []).append(summary)
    return [
        summary
        for cell in cells.values()
        for summary in cell
        if round(summary.mean or 0, 1) == max(round(each.mean or 0, 1) for each in cell)
    ]


def _accuracy(summary: Summary, seeds: int) -> str:
    """As in `97.2 ± 0.31`, with the number of runs where it is not `seeds`, and the diverged where there are some.

    A mark says that the seeds lie far apart, so that mean and deviation describe none of them.
    """
    runs = summary.n + summary.diverged
    if summary.mean is None:
        return f"diverged (0/{runs})"
    text = f"{summary.mean:5.1f}" + ("" if summary.std is None else f" ± {summary.std:5.2f}")
    text += "†" if _apart(summary) else ""
    if summary.diverged:
        return f"{text} ({summary.n}/{runs}; {summary.diverged} diverged)"
    return text if runs == seeds else f"{text} (n = {runs})"


def _dense_flops(summary: Summary) -> str:
    flops = (f"{value:.2e}".split("e+") for value in (3 * summary.dense_flops, summary.dense_flops))
    return ", ".join(f"{digits}e{int(exponent)}" for digits, exponent in flops)


def _apart(summary: Summary) -> bool:
    return summary.min is not None and summary.max is not None and summary.max - summary.min > APART


def _notes(summaries: Sequence[Summary], seeds: int) -> Iterable[str]:
    over = f", mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else ", one seed"
    lost = any(summary.diverged for summary in summaries)
    yield f"Test accuracy in percent{over}{'; (2/3; 1 diverged): over the 2 runs of 3 that did not diverge' * lost}."
    yield "Time and peak memory: of one run, mean over the row; memory above what torch and the data take."
    yield "FLOPs: of training and of one forward pass, relative to the dense net; for the dense net a sample, absolute."
    present = sorted({summary.group for summary in summaries})
    yield (
        "Groups, by FLOP requirement: "
        + "; ".join(f"({i}) {GROUPS[group]}" for i, group in enumerate(present, 1))
        + "."
    )
    apart = [summary for summary in summaries if _apart(summary)]
    if apart:
        by_row = itertools.groupby(apart, key=lambda summary: summary.label)
        ranges = (
            f"{row} "
            + ", ".join(f"{each.median:.1f} ({each.min:.1f} – {each.max:.1f}) at {each.sparsity:g}" for each in same)
            for row, same in by_row
        )
        yield f"† Seeds more than {APART} points apart; median (lowest – highest): " + "; ".join(ranges) + "."
