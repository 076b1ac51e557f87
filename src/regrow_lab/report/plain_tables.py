"""A plain table: text that lines up, Markdown, CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from regrow_lab.report.columns import MISSING
from regrow_lab.store.escaping import in_csv, in_markdown


@dataclass(frozen=True)
class Grid:
    """A title, column heads, rows of as many texts, and the notes that belong below."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    def without_empty_columns(self) -> Grid:
        """The same without columns that hold nothing."""
        kept = [i for i in range(len(self.head)) if any(row[i] not in ("", MISSING) for row in self.rows)]
        rows = tuple(tuple(row[i] for i in kept) for row in self.rows)
        return Grid(self.title, tuple(self.head[i] for i in kept), rows, self.notes)


def to_text(grid: Grid, width: int | None = None, whole: str = "") -> str:
    """Lines that stand under each other; the first column to the left, numbers to the right.

    In a terminal of `width` letters the last columns are left out that it has no room for, and a note says that they
    are in the file `whole`.
    """
    kept, widths = len(grid.head), _widths(grid)
    while width and kept > 1 and sum(widths[:kept]) + 2 * (kept - 1) > width:
        kept -= 1
    widths[0] = min(widths[0], width or widths[0])
    left_out = f"No room for {', '.join(grid.head[kept:])}: see {whole}." if kept < len(grid.head) else ""
    lines = [_padded(line[:kept], widths[:kept], "  ").rstrip() for line in (grid.head, *grid.rows)]
    rule = "-" * max(map(len, lines))
    title, *notes = [
        textwrap.fill(text, width) if width else text for text in (grid.title, *grid.notes, left_out) if text
    ]
    return "\n".join([title, "", lines[0], rule, *lines[1:], "", *notes])


def to_markdown(grid: Grid) -> str:
    """A Markdown table, lined up in the source too, with its notes."""
    grid = Grid("", _each(grid.head), tuple(map(_each, grid.rows)), _each(grid.notes))
    widths = _widths(grid)
    rule = [("-" * (width - 1) + (":" if i else "-")) for i, width in enumerate(widths)]
    lines = [f"| {_padded(line, widths, ' | ')} |" for line in grid.rows]
    head = f"| {_padded(grid.head, widths, ' | ')} |"
    return "\n".join([head, f"| {' | '.join(rule)} |", *lines, "", *(f"{note}  " for note in grid.notes)]) + "\n"


def _each(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(in_markdown, texts))


def to_csv(grid: Grid) -> str:
    """Heads and rows, as they are shown."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(in_csv, line) for line in (grid.head, *grid.rows))
    return text.getvalue()


def _widths(grid: Grid) -> list[int]:
    return [max(2, *map(len, column)) for column in zip(grid.head, *grid.rows, strict=True)]


def _padded(line: Sequence[str], widths: Sequence[int], between: str) -> str:
    return between.join(
        text.rjust(width) if i else _cut(text, width).ljust(width)
        for i, (text, width) in enumerate(zip(line, widths, strict=True))
    )


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"
