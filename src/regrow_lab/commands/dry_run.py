"""What a study would do: its runs, how long they take here, the data they need."""

from __future__ import annotations

import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from regrow_lab.commands.estimate import estimated
from regrow_lab.config import RunConfig
from regrow_lab.launch.outcome import unfinished
from regrow_lab.methods import is_import
from regrow_lab.report.plain_tables import Grid, to_text
from regrow_lab.report.summary import row_label, variants

WITHOUT_FILES = ("digits", "digits-images")
"""Data sets that come with scikit-learn. To ask for the others' files torch has to be imported."""
MOST_SPARSITIES = 4


def print_dry_run(title: str, runs: Sequence[RunConfig], out: Path, device: str, at_a_time: int) -> bool:
    """Print what is to be trained, for how long, and on which data; whether the data are there."""
    from regrow_lab.data.source import data_root

    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    left = unfinished(runs, out)
    print(to_text(_rows(f"{title}: {len(runs)} runs, {len(runs) - len(left)} of them finished in {out}", runs), width))
    names = dict.fromkeys(run.data for run in left)
    missing = {name: missing_data(run for run in left if run.data == name) for name in names}
    for data, problems in missing.items():
        there = "comes with scikit-learn" if data in WITHOUT_FILES else f"is there ({data_root()})"
        print(f"data {data}: {'; '.join(problems) or there}")
    if left:
        from regrow_lab.run.timed_step import seconds_of_a_step

        def step(run: RunConfig) -> tuple[float, int] | None:
            return seconds_of_a_step(run, device, noise=bool(missing[run.data]))

        estimate = estimated(left, [out], device, step)
        print(f"time for the {len(left)} runs that are left: {estimate.in_words(at_a_time)}")
        for reason in estimate.because:
            print(f"  {reason}")
    return not any(missing.values())


def _rows(title: str, runs: Sequence[RunConfig]) -> Grid:
    """Each row of the study's table: the net, the data, at which sparsities, how many runs."""
    rows: dict[tuple[str, str, str, str | None, float], list[RunConfig]] = defaultdict(list)
    for run in runs:
        rows[run.model, run.data, run.method, run.distribution, run.multiplier].append(run)
    found: dict[tuple[str, str, str], list[RunConfig]] = defaultdict(list)
    for (model, data, method, distribution, multiplier), same in rows.items():
        for run, variant in zip(same, variants([run.to_dict() for run in same]), strict=True):
            found[row_label(method, distribution, multiplier, variant), model, data].append(run)
    lines = [
        (label, model, data, _sparsities({run.sparsity for run in same} - {0.0}), str(len(same)))
        for (label, model, data), same in found.items()
    ]
    return Grid(title, ("Method", "model", "data", "S", "runs"), tuple(lines))


def _sparsities(found: set[float]) -> str:
    """In a row where they are few, else from which to which.

    >>> _sparsities({0.9, 0.8}), _sparsities({0.1, 0.2, 0.3, 0.4, 0.5}), _sparsities(set())
    ('0.8, 0.9', '0.1 to 0.5', '–')
    """
    texts = [f"{sparsity:.3g}" for sparsity in sorted(found)]
    return f"{texts[0]} to {texts[-1]}" if len(texts) > MOST_SPARSITIES else ", ".join(texts) or "–"


def missing_data(runs: Iterable[RunConfig]) -> list[str]:
    """What is wrong with the files of the data sets of these runs, and with what is somebody's own, in words."""
    wanted: dict[tuple[object, ...], RunConfig] = {}
    for run in runs:
        names = (run.model, run.data, run.method)
        if own := tuple(name for name in names if is_import(name)):
            wanted.setdefault((run.model, run.data, *own), run)
        elif run.data not in WITHOUT_FILES:
            wanted.setdefault((run.data, run.image_size), run)
    if not wanted:
        return []
    from regrow_lab.run.build import check

    missing = []
    for run in wanted.values():
        try:
            check(run)
        except ValueError as error:
            missing.append(str(error))
    return missing
