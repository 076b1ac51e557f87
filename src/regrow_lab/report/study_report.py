"""What a study's report has besides the tables and figures of any folder of runs; and the page over several studies.

Nothing here imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from regrow_lab.report import paper, study_figures
from regrow_lab.report.claims import claims_page
from regrow_lab.report.comparison import comparisons
from regrow_lab.report.plain_tables import Grid
from regrow_lab.report.summary import Summary, summarise
from regrow_lab.store import folders
from regrow_lab.store.folders import StoredRun

CLAIMS = "claims.md"
OWN_FIGURES = ("figure3", "figure4", "tickets", "storages")
"""Studies that are not about methods at a few sparsities: the figures of any folder of runs do not fit them."""


def cells_of(runs: Sequence[StoredRun]) -> tuple[Summary, ...]:
    """The cells of a folder; a run with another order of the data is there for the line that it ends with alone."""
    return summarise(run for run in runs if not run.config.get("data_order"))


def study_of(directory: Path) -> dict[str, Any]:
    """The content of study.json; empty where the folder is not that of a study. Raises ValueError if it is damaged."""
    study = folders.read_study(directory)
    if study and "seeds" not in study:
        raise ValueError(
            f"{directory / 'study.json'} is damaged: it does not say how many seeds; "
            "delete it, and the study's command makes it anew"
        )
    return study


def study_tables(study: Mapping[str, Any], runs: Sequence[StoredRun], summaries: Sequence[Summary]) -> tuple[Grid, ...]:
    """Ours beside the paper's, with peak memory and hours, and instabilities; none for a folder that is no study's."""
    if not study:
        return ()
    instability = study_figures.instability_table(runs)
    return (*comparisons(study, summaries), *((instability,) if instability.rows else ()))


def study_pictures(
    study: Mapping[str, Any], runs: Sequence[StoredRun], summaries: Sequence[Summary]
) -> Iterator[tuple[str, tuple[str, Figure]]]:
    """File name, caption and figure of what this study alone has."""
    name, made = study.get("study"), []
    if name == "figure3":
        made = [("learning_rates", "Learning rate against sparsity", study_figures.learning_rates(summaries))]
    if name == "figure4":
        made = [("equal_flops", "RigL against FLOPs by distribution", study_figures.equal_flops(summaries))]
    if name == "table5":
        made = [("flops_steps", "Forward FLOPs over the training", study_figures.flops_over_steps(runs))]
    if name == "charlm":
        made = [("bits", "Bits a character against training FLOPs", study_figures.bits(summaries))]
    if name == "storages":
        made = [("storages", "Accuracy against the time of a run", study_figures.storages(summaries))]
    if name == "tickets":
        made = [
            ("tickets", "Iterative pruning and its controls", study_figures.tickets(summaries)),
            ("instability", "Instability against the rewind step", study_figures.instability(runs)),
        ]
    for file, caption, figure in made:
        if figure is not None:
            yield file, (caption, figure)


def scale_notes(study: Mapping[str, Any]) -> list[str]:
    """At which scale a study was done, and where the paper's values stand; none for a folder that is no study's."""
    if not study:
        return []
    beside = " The paper's values, and the differences: comparison.md." if study.get("study") in paper.BESIDE else ""
    return [f"Scale {study.get('scale', 'small')}.{beside}"]


def study_notes(study: Mapping[str, Any]) -> list[str]:
    """Lines on the slips of the report's text, where a study rebuilds one of its tables."""
    if study.get("study") not in paper.OF_STUDY:
        return []
    return [
        "Slips in the report's text, beside those marked ‡:",
        "",
        *(f"- {slip}" for slip in paper.SLIPS_OF_THE_TEXT),
    ]


def study_folders(directory: Path) -> list[Path]:
    """The studies right under `directory`, where it is a folder of studies: `regrow study all` makes such a one."""
    if not directory.is_dir() or (directory / "runs").is_dir():
        return []
    return sorted(path.parent for path in directory.glob("*/study.json"))


def write_claims(directory: Path) -> Path:
    """Write claims.md of the studies under `directory`, from their stored runs. Raises ValueError if there are none."""
    studies, scales, known = {}, {}, set()
    for folder in study_folders(directory):
        study = study_of(folder)
        what = tuple(study.get(field) for field in ("study", "scale", "data"))
        if what[0] is not None and what in known:
            continue
        known.add(what)
        runs = folders.read_runs(folder) if (folder / "runs").is_dir() else []
        cells = cells_of(runs)
        if cells:
            nets = ", ".join(dict.fromkeys(f"{cell.model} on {cell.data}" for cell in cells))
            finished = sum(run.result is not None for run in runs)
            studies[folder.name] = cells
            scales[folder.name] = f"scale {study.get('scale', 'small')}, {nets}, {finished} finished runs"
    if not studies:
        raise ValueError(f"{directory} holds no study with a finished run: let `regrow study` do one first")
    page = claims_page(studies, scales)
    folders.write_whole(directory / CLAIMS, lambda file: file.write(page.encode()))
    return directory / CLAIMS
