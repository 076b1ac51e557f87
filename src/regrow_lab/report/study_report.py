"""What the report of a study has besides the tables and figures of any folder of runs: a part of the study's record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from regrow_lab.report.paper import Published
from regrow_lab.report.plain_tables import Grid
from regrow_lab.report.summary import Summary, summarise
from regrow_lab.store.stored_run import StoredRun

if TYPE_CHECKING:  # a study is known before anything is drawn
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Results:
    """What a folder holds, as tables and figures take it: the stored runs, and their cells."""

    runs: Sequence[StoredRun]

    @cached_property
    def cells(self) -> tuple[Summary, ...]:
        """Without the runs with another order of the data, which are there for the line that they end with alone."""
        return summarise(run for run in self.runs if not run.config.get("data_order"))


@dataclass(frozen=True)
class Picture:
    """A figure: the name of its file without the ending, its caption, and what draws it (None: nothing to draw)."""

    file: str
    caption: str
    draw: Callable[[Results], Figure | None]


@dataclass(frozen=True, kw_only=True)
class StudyReport:
    """What a study's report has of its own."""

    printed: tuple[Published, ...] = ()
    """Tables of the paper that its rows are set beside."""
    notes: tuple[str, ...] = ()
    """Lines of the page below the tables."""
    tables: tuple[Callable[[Results], Grid], ...] = ()
    """Its own tables; one without rows is left out."""
    figures: tuple[Picture, ...] = ()
    """Its own figures."""
    usual_figures: bool = True
    """Whether the figures of any folder of runs fit it: it is about methods at a few sparsities."""
