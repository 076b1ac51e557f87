"""Stored runs as pandas frames, for questions that no report asks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from regrow_lab.store import schema
from regrow_lab.store.folders import read_runs, study_folders
from regrow_lab.store.stored_run import StoredRun

if TYPE_CHECKING:
    import pandas


def frame(directory: str | os.PathLike[str]) -> pandas.DataFrame:
    """Every run under a folder, a row each: study, run, its configuration, and what came of it.

    Args:
        directory: a folder that `regrow study`, `tune` or `train` wrote, packed or not; or a folder of several studies.

    Returns:
        Columns `study` (the folder's name) and `run`; then every field of the configuration, and every field of the
        result, by its name. `sparsity` is what was asked for, `sparsity_reached` the result's. Of a run that is not
        finished the result's fields are missing.

    Raises:
        ValueError: there are no runs, or a file of them is damaged.
    """
    import pandas  # takes a second to import

    named = list(_named_runs(directory))
    nothing = dict.fromkeys(schema.RESULT)
    names = pandas.DataFrame([{"study": study, "run": run.folder.name} for study, run in named])
    configs = pandas.DataFrame([run.whole_config for _, run in named])
    results = pandas.DataFrame([nothing | (run.result or {}) for _, run in named])
    return names.join(configs).join(results.rename(columns={"sparsity": "sparsity_reached"}))


def epochs(directory: str | os.PathLike[str]) -> pandas.DataFrame:
    """Every epoch of every run under a folder, a row each: study, run, and the epoch's line of metrics.

    Args and raises as :func:`frame`; a run of which the metrics are not kept has no row.
    """
    import pandas

    return pandas.DataFrame(
        [
            {"study": study, "run": run.folder.name, **row}
            for study, run in _named_runs(directory)
            for row in run.metrics
        ]
    )


def _named_runs(directory: str | os.PathLike[str]) -> Iterator[tuple[str, StoredRun]]:
    """Each run, after the name of the folder that it is of."""
    for folder in study_folders(Path(directory)) or [Path(directory)]:
        yield from ((folder.resolve().name, run) for run in read_runs(folder))
