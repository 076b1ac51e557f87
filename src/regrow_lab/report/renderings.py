"""A study's table set for the terminal, in Markdown and in LaTeX; and all numbers as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from regrow_lab.report.columns import MISSING
from regrow_lab.report.summary import Summary
from regrow_lab.report.tables import Table
from regrow_lab.store.escaping import in_csv, in_markdown

GAP, LEAST = 2, 14
"""Characters between the columns of the text, and those that a label has where there is no room for it whole."""


def to_text(table: Table, width: int | None = None, styled: bool = False) -> str:
    """The table as lines that stand under each other.

    Args:
        table: what to set.
        width: characters in a line; sparsities that do not fit beside each other go below. None: as wide as need be.
        styled: mark the best of a group in bold with the escape codes of a terminal; without, with an asterisk.
    """
    console = Console(
        file=io.StringIO(), width=width or 10_000, force_terminal=styled, color_system="standard" if styled else None
    )
    console.print(Text(table.title, style="bold"))
    for columns in _blocks(_columns(table, styled), width, _longest_label(table)):
        console.print()
        console.print(_rich_table(table, columns, width))
    console.print()
    for note in table.notes if styled else (*table.notes, "* best of its group."):
        console.print(Text(textwrap.fill(note, min(width or 120, 120)), style="dim"))
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


@dataclass(frozen=True)
class _Column:
    """Heads above each other, and the texts of all rows."""

    heads: tuple[str, str]
    texts: tuple[Text, ...]
    justify: Literal["left", "right"] = "right"
    alone: str = ""
    """The upper head where the column stands without those that it belongs to."""

    @property
    def width(self) -> int:
        return max(GAP + len(text) for text in (*self.heads, *(text.plain for text in self.texts)))


def _columns(table: Table, styled: bool) -> list[list[_Column]]:
    """Those of each sparsity, then the costs."""
    rows = [row for group in table.groups for row in group]
    found = []
    for i, head in enumerate(table.heads):
        cells = [row.cells[i] for row in rows]
        accuracies = (
            Text(cell.accuracy + "*" * (cell.best and not styled), style="bold" if cell.best else "") for cell in cells
        )
        of = f"S = {head}"
        density, flops = ((Text(cell.density) for cell in cells), (Text(cell.flops) for cell in cells))
        found.append(
            [
                _Column((of, "accuracy"), tuple(accuracies), "left", of),
                _Column(("", "density"), tuple(density), alone=of),
                _Column(("FLOPs", "train, test"), tuple(flops), alone=f"{of}: FLOPs"),
            ]
        )
    costs = zip(table.costs, zip(*(row.costs for row in rows), strict=True), strict=True)
    return [*found, [_Column(("", head), tuple(map(Text, texts))) for head, texts in costs]]


def _blocks(groups: Iterable[list[_Column]], width: int | None, label: int) -> list[list[_Column]]:
    """What `width` characters hold side by side, with labels of `label`; too wide a group of columns is split."""
    width = width or 10_000
    blocks: list[list[_Column]] = []
    left = 0
    for group in groups:
        whole = sum(column.width for column in group) <= width - min(label, LEAST)
        single = [[dataclasses.replace(each, heads=(each.alone, each.heads[1]))] for each in group]
        for part in [group] if whole else single:
            needed = sum(column.width for column in part)
            if not blocks or needed > left:
                blocks.append([])
                left = width - label
            blocks[-1] += part
            left -= needed
    return blocks


def _longest_label(table: Table) -> int:
    return max(len(row.label) for group in table.groups for row in group)


def _rich_table(table: Table, columns: Sequence[_Column], width: int | None) -> RichTable:
    grid = RichTable(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, GAP - 1, 0, 0), pad_edge=False, header_style="")
    room = (width or 10_000) - sum(column.width for column in columns)
    grid.add_column("\nMethod", overflow="fold", min_width=max(1, min(_longest_label(table), LEAST, room)))
    for column in columns:
        grid.add_column("\n".join(column.heads), no_wrap=True, justify=column.justify)
    texts = zip(*(column.texts for column in columns), strict=True)
    for group in table.groups:
        for row, of_row in zip(group, texts, strict=False):
            if any(text.plain not in ("", MISSING) for text in of_row):
                grid.add_row(Text(row.label), *of_row)
        grid.add_section()
    return grid


def to_markdown(table: Table) -> str:
    """The table in Markdown, lined up in the source too, the best of each group bold."""
    header = ["Method"]
    for sparsity in table.heads:
        header += [f"S = {sparsity}: accuracy", "density", "FLOPs (train, test)"]
    header += table.costs
    lines = [header]
    for number, group in enumerate(table.groups, 1):
        lines.append([f"*({number})*", *[""] * (len(header) - 1)])
        for row in group:
            texts = [in_markdown(row.label)]
            for cell in row.cells:
                accuracy = " ".join(cell.accuracy.split())
                texts += [f"**{accuracy}**" if cell.best else accuracy, cell.density, cell.flops]
            lines.append([*texts, *row.costs])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    text = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines]
    return "\n".join([*text, "", *(f"{in_markdown(note)}  " for note in table.notes)]) + "\n"


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
        " & ".join(["Method", *[r"Accuracy $\uparrow$", "Density", r"FLOPs $\downarrow$"] * count, *table.costs])
        + r" \\",
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
        values = {"label": summary.label, **{field: getattr(summary, field) for field in fields}}
        writer.writerow({field: in_csv(value) if isinstance(value, str) else value for field, value in values.items()})
    return text.getvalue()
