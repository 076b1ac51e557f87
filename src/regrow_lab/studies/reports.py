"""The reports of folders: which study one is of, what that study adds, and the page of claims over several."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from regrow_lab.methods import is_import
from regrow_lab.report.claims import claims_page
from regrow_lab.report.folder_report import write_report
from regrow_lab.report.study_report import Results
from regrow_lab.store import folders, whole_files
from regrow_lab.store.command_lines import study_command
from regrow_lab.studies import STUDIES, Study, known_study, study_runs

CLAIMS = "claims.md"


def report_folder(directory: Path, console: Console | None = None) -> str:
    """Write the report of a folder, with what its study has besides; returns the table as text for `console`.

    Raises ValueError if the folder has no report, or study.json is damaged.
    """
    described = folders.read_study(directory)
    name = str(described.get("study", ""))
    study = known_study(name)
    if study is None:
        text = write_report(directory, console)
        if not is_import(name):
            return text
        command = study_command(described, directory)
        return f"{text}\n\n`{command}` adds the tables and figures that {name} has of its own."
    if "seeds" not in described:
        raise ValueError(
            f"{directory / 'study.json'} is damaged: it does not say how many seeds; "
            "delete it, and the study's command makes it anew"
        )
    planned = study_runs(
        described["study"],
        described["seeds"],
        described.get("scale", "small"),
        described.get("data") or None,
        described.get("storage", "dense"),
        described.get("precision") or None,
        described.get("model") or None,
        described.get("method") or None,
    )
    return write_report(directory, console, study.report, planned)


def write_claims(directory: Path) -> Path:
    """Write claims.md of the studies under `directory`, from their stored runs. Raises ValueError if there are none."""
    cells, scales, known = {}, {}, set()
    studies = dict[str, Study](STUDIES)
    for folder in folders.study_folders(directory):
        described = folders.read_study(folder)
        what = tuple(described.get(field) for field in ("study", "scale", "data"))
        if what[0] is not None and what in known:
            continue
        known.add(what)
        study = known_study(described.get("study"))
        studies |= {study.name: study} if study else {}
        results = Results(folders.read_runs(folder) if folders.holds_runs(folder) else [])
        if results.cells:
            nets = ", ".join(dict.fromkeys(f"{cell.model} on {cell.data}" for cell in results.cells))
            finished = sum(run.result is not None for run in results.runs)
            cells[folder.name] = results.cells
            scales[folder.name] = f"scale {described.get('scale', 'small')}, {nets}, {finished} finished runs"
    if not cells:
        raise ValueError(f"{directory} holds no study with a finished run: let `regrow study` do one first")
    page = claims_page([study.claims for study in studies.values()], cells, scales)
    whole_files.write_whole(directory / CLAIMS, lambda file: file.write(page.encode()))
    return directory / CLAIMS
