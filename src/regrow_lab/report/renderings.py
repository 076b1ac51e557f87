"""A study's table set for the terminal, in Markdown and in LaTeX; and all numbers as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import re
import textwrap
from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from regrow_lab.report.summary import Summary
from regrow_lab.report.tables import COSTS, Cell, Table
from regrow_lab.store.escaping import in_csv, in_markdown

GAP = 2
"""Characters between the columns of the text."""


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
        values = {"label": summary.label, **{field: getattr(summary, field) for field in fields}}
        writer.writerow({field: in_csv(value) if isinstance(value, str) else value for field, value in values.items()})
    return text.getvalue()
