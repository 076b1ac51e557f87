"""What a study is: one frozen record, which its file in this folder makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from regrow_lab.config import RunConfig
from regrow_lab.report.claims import Claims
from regrow_lab.report.study_report import StudyReport

SCALES = ("small", "paper")


@dataclass(frozen=True, kw_only=True)
class Study:
    """The runs of a study and all that the rest of the lab knows of it."""

    name: str
    about: str
    """What it rebuilds or asks, in half a line."""
    runs: Callable[[int, str, str | None], list[RunConfig]]
    """From a number of seeds (0 to seeds - 1), a scale and a data set (None: the study's own) to its runs. Raises
    ValueError for data that it is not for."""
    cost: str
    """Runs a seed, and what they took where."""
    expected: str
    """What comes out, with numbers."""
    scales: tuple[str, ...] = SCALES
    """small: minutes to hours on a few cores. paper: the paper's nets, data and epochs, for a GPU."""
    other_images: bool = False
    """Whether it is done on other images where all studies are, or where a folder of data is named."""
    report: StudyReport = field(default_factory=StudyReport)
    claims: Claims = field(default_factory=dict)
    """Sentences that it was made to test."""
