"""A study's table in the form of the report's Table 2: for the terminal, in Markdown, in LaTeX; and all numbers as CSV.

`make_tables` lays out the text of every cell once; the renderers only set it.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from regrow_lab.summary import GROUPS, Summary, mebibytes

MISSING = "–"
MOST_SPARSITIES = 6
APART = 10
"""Points of accuracy between seeds beyond which a table says more than their mean."""
USUAL, EXACT = 6, 17
"""Digits of a sparsity: of most, and of any."""
GAP = 2
"""Characters between the columns of the text."""


@dataclass(frozen=True)
class Cell:
    """Accuracy, achieved density and FLOPs of one row at one sparsity, as text; `best`: the best of its group there."""

    accuracy: str = MISSING
    density: str = MISSING
    flops: str = MISSING
    best: bool = False


COSTS = ("hours", "peak MiB")
"""Heads of the columns of what a run took: wall time and peak memory."""


@dataclass(frozen=True)
class Row:
    """One method: a cell for each sparsity of the table, and what a run took, on average over them."""

    label: str
    cells: tuple[Cell, ...]
    hours: str
    memory: str

    @property
    def costs(self) -> tuple[str, str]:
        """Under `COSTS`."""
        return self.hours, self.memory


@dataclass(frozen=True)
class Table:
    """One model on one data set: rows in groups of like FLOP requirement, and the notes that belong below."""

    title: str
    sparsities: tuple[float, ...]
    groups: tuple[tuple[Row, ...], ...]
    notes: tuple[str, ...]

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
        sparsities = sorted({summary.sparsity for summary in cells if summary.method != "dense"})
        parts = [sparsities[i : i + MOST_SPARSITIES] for i in range(0, len(sparsities), MOST_SPARSITIES)] or [[]]
        for number, part in enumerate(parts, 1):
            title = f"{model} on {data}" + (f", part {number} of {len(parts)}" if len(parts) > 1 else "")
            shown = [each for each in cells if each.method == "dense" or each.sparsity in part]
            tables.append(_table(title, shown, notes))
    return tuple(tables)


def _table(title: str, summaries: Sequence[Summary], notes: Sequence[str]) -> Table:
    sparsities = tuple(sorted({summary.sparsity for summary in summaries if summary.method != "dense"})) or (0.0,)
    seeds = max(summary.n + summary.diverged for summary in summaries)
    best = best_of_groups(summaries)
    groups = []
    for _, group in itertools.groupby(summaries, key=lambda summary: summary.group):
        rows = []
        for _, row in itertools.groupby(group, key=lambda summary: summary.row):
            same = list(row)
            # The dense net has no sparsity of its own: as in the report, it stands in the first column.
            by_sparsity = {sparsities[0] if each.method == "dense" else each.sparsity: each for each in same}
            cells = (
                Cell(_accuracy(each, seeds), f"{each.density:.3g}", _flops(each), each in best)
                if (each := by_sparsity.get(sparsity))
                else Cell()
                for sparsity in sparsities
            )
            rows.append(Row(same[0].label, tuple(cells), _hours(same), _memory(same)))
        groups.append(tuple(rows))
    return Table(title, sparsities, tuple(groups), (*notes, *_notes(summaries, seeds)))


def _hours(cells: Sequence[Summary]) -> str:
    hours = statistics.fmean(cell.hours for cell in cells)
    return f"{hours:.2f}" if hours >= 0.1 else f"{hours:.2g}" if hours >= 1e-4 else f"{hours:.5f}"


def _memory(cells: Sequence[Summary]) -> str:
    known = [cell.peak_memory_mib for cell in cells if cell.peak_memory_mib is not None]
    return mebibytes(statistics.fmean(known)) if known else MISSING


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


def _flops(summary: Summary) -> str:
    if summary.method == "dense":
        flops = (f"{value:.2e}".split("e+") for value in (3 * summary.dense_flops, summary.dense_flops))
        return ", ".join(f"{digits}e{int(exponent)}" for digits, exponent in flops)
    return f"{_ratio(summary.train_ratio)}, {_ratio(summary.test_ratio)}"


def _ratio(ratio: float) -> str:
    """As in the report; below a hundredth to three digits.

    >>> _ratio(1.2345), _ratio(0.0512), _ratio(0.00512), _ratio(1.2345e-5)
    ('1.23x', '0.051x', '0.00512x', '1.23e-05x')
    """
    return f"{ratio:.2f}x" if ratio >= 0.0995 else f"{ratio:.3f}x" if ratio >= 0.0095 else f"{ratio:.3g}x"


def _apart(summary: Summary) -> bool:
    return summary.min is not None and summary.max is not None and summary.max - summary.min > APART


def _notes(summaries: Sequence[Summary], seeds: int) -> Iterable[str]:
    over = f", mean ± sample standard deviation over {seeds} seeds" if seeds > 1 else ", one seed"
    lost = any(summary.diverged for summary in summaries)
    yield f"Test accuracy in percent{over}{'; (2/3; 1 diverged): over the 2 runs of 3 that did not diverge' * lost}."
    yield "Hours and peak memory: of one run, mean over the row; memory above what torch and the data take."
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


def to_text(table: Table, width: int | None = None, styled: bool = False) -> str:
    """The table as lines that stand under each other.

    Args:
        table: what to set.
        width: characters in a line; sparsities that do not fit beside each other go below. None: as wide as need be.
        styled: mark the best of a group in bold with the escape codes of a terminal; without, with an asterisk.
    """
    console = Console(
        file=io.StringIO(), width=10_000, force_terminal=styled, color_system="standard" if styled else None
    )
    console.print(Text(table.title, style="bold"))
    for columns in _blocks(table, width):
        console.print()
        console.print(_rich_table(table, columns, styled))
    console.print()
    for note in table.notes if styled else (*table.notes, "* best of its group."):
        console.print(Text(textwrap.fill(note, min(width or 120, 120)), style="dim"))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


def _blocks(table: Table, width: int | None) -> list[list[int]]:
    """The columns of the table, by index, a list for each block that `width` characters hold; the costs come last."""
    rows = [row for group in table.groups for row in group]
    room = (width or 10_000) - max(len(row.label) for row in rows)
    columns = [
        (
            max(len("accuracy"), *(len(row.cells[i].accuracy) + row.cells[i].best for row in rows)),
            max(len("density"), *(len(row.cells[i].density) for row in rows)),
            max(len("train, test"), *(len(row.cells[i].flops) for row in rows)),
        )
        for i in range(len(table.sparsities))
    ]
    costs = [max(map(len, texts)) for texts in zip(COSTS, *(row.costs for row in rows), strict=True)]
    blocks: list[list[int]] = []
    left = 0
    for i, lengths in enumerate([*columns, costs]):
        needed = sum(lengths) + len(lengths) * GAP
        if not blocks or needed > left:
            blocks.append([])
            left = room
        blocks[-1].append(i)
        left -= needed
    return blocks


def _rich_table(table: Table, columns: Sequence[int], styled: bool) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), pad_edge=False, header_style="")
    grid.add_column("\nMethod", no_wrap=True)
    shown = [i for i in columns if i < len(table.sparsities)]
    with_costs = len(shown) < len(columns)
    for i in shown:
        grid.add_column(f"S = {table.heads[i]}\naccuracy", no_wrap=True)
        grid.add_column("\ndensity", no_wrap=True, justify="right")
        grid.add_column("FLOPs\ntrain, test", no_wrap=True, justify="right")
    for head in COSTS if with_costs else ():
        grid.add_column(f"\n{head}", no_wrap=True, justify="right")
    for group in table.groups:
        for row in group:
            cells = [row.cells[i] for i in shown]
            if with_costs or any(cell != Cell() for cell in cells):
                texts = [Text(row.label)]
                for cell in cells:
                    accuracy = cell.accuracy + ("*" if cell.best and not styled else "")
                    texts += [Text(accuracy, style="bold" if cell.best else ""), Text(cell.density), Text(cell.flops)]
                grid.add_row(*texts, *(map(Text, row.costs) if with_costs else ()))
        grid.add_section()
    return grid


def to_markdown(table: Table) -> str:
    """The table in Markdown, lined up in the source too, the best of each group bold."""
    header = ["Method"]
    for sparsity in table.heads:
        header += [f"S = {sparsity}: accuracy", "density", "FLOPs (train, test)"]
    header += COSTS
    lines = [header]
    for number, group in enumerate(table.groups, 1):
        lines.append([f"*({number})*", *[""] * (len(header) - 1)])
        for row in group:
            texts = [row.label]
            for cell in row.cells:
                accuracy = " ".join(cell.accuracy.split())
                texts += [f"**{accuracy}**" if cell.best else accuracy, cell.density, cell.flops]
            texts += row.costs
            lines.append([text.replace("|", "\\|") for text in texts])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([*text, "", *(f"{note}  " for note in table.notes)]) + "\n"


def to_latex(table: Table) -> str:
    """The table as a LaTeX float with booktabs rules, the best of each group bold."""
    count = len(table.sparsities)
    heads = [rf"\multicolumn{{3}}{{c}}{{$S = {sparsity}$}}" for sparsity in table.heads]
    rules = [rf"\cmidrule(lr){{{3 * i + 2}-{3 * i + 4}}}" for i in range(count)]
    body = []
    for group in table.groups:
        body.append(r"\midrule")
        for row in group:
            texts = [re.sub(r"\\_([\d.]+)x", r"$_{\1\\times}$", _escape(row.label))]
            for cell in row.cells:
                accuracy = _escape(" ".join(cell.accuracy.split()))
                texts += [
                    rf"\textbf{{{accuracy}}}" if cell.best else accuracy,
                    _escape(cell.density),
                    _escape(cell.flops),
                ]
            texts += map(_escape, row.costs)
            body.append(" & ".join(texts) + r" \\")
    lines = [
        r"% needs \usepackage{booktabs} and \usepackage{graphicx}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_escape(table.title)}. {_escape(' '.join(table.notes))} Best of each group in bold.}}",
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
        rf"\begin{{tabular}}{{l{'lrr' * count}rr}}",
        r"\toprule",
        " & ".join(["", *heads, "", ""]) + r" \\",
        " ".join(rules),
        " & ".join(["Method", *[r"Accuracy $\uparrow$", "Density", r"FLOPs $\downarrow$"] * count, *COSTS]) + r" \\",
        *body,
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {character: f"\\{character}" for character in "&%$#_{}"}
LATEX |= {"±": r"$\pm$", "×": r"$\times$", "–": "--", "−": "$-$", "†": r"$^\dagger$"}


def _escape(text: str) -> str:
    return "".join(LATEX.get(character, character) for character in text)


def to_csv(summaries: Iterable[Summary]) -> str:
    """One line for each of `summaries`, with all its numbers in full; an empty field is a number that there is not."""
    said = ("layer_densities", "start")  # in figures, and where it tells rows apart in `variant`
    fields = [field.name for field in dataclasses.fields(Summary) if field.name not in said]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["label", *fields], lineterminator="\n")
    writer.writeheader()
    for summary in summaries:
        writer.writerow({"label": summary.label, **{field: getattr(summary, field) for field in fields}})
    return text.getvalue()
