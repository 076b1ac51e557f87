"""The report of a folder of runs: its table and its figures, written again at any time from the stored runs alone.

Nothing here imports torch.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

from matplotlib import rc_context
from matplotlib.figure import Figure
from rich.console import Console

from regrow_files import shown
from regrow_lab.config import RunConfig
from regrow_lab.report import plain_tables
from regrow_lab.report.comparison import comparisons
from regrow_lab.report.figures import accuracy_against_flops, accuracy_against_sparsity, layer_densities
from regrow_lab.report.plain_tables import Grid
from regrow_lab.report.renderings import to_csv, to_latex, to_markdown, to_text
from regrow_lab.report.study_report import Results, StudyReport
from regrow_lab.report.summary import Summary
from regrow_lab.report.tables import Table, make_tables
from regrow_lab.store import folders, whole_files
from regrow_lab.store.command_lines import study_command
from regrow_lab.store.escaping import file_name, in_markdown
from regrow_lab.store.stored_run import StoredRun

FIGURES = {
    "accuracy_sparsity": ("Accuracy against sparsity", accuracy_against_sparsity),
    "accuracy_flops": ("Accuracy against training FLOPs", accuracy_against_flops),
    "layer_densities": ("Density of the layers after training", layer_densities),
}
"""File name without its ending -> caption and the function that draws it."""


MOST_ROWS = 60
"""Rows of the table that a figure has room for; nobody can tell more lines apart, and drawing them takes minutes."""


MADE_FROM = "- made from the stored runs alone; `regrow report` makes it again"


def write_report(
    directory: Path | str,
    console: Console | None = None,
    study: StudyReport | None = None,
    planned: Sequence[RunConfig] = (),
) -> str:
    """Write the tables and figures of the runs under `directory` to its folder `report`, and return the table as text.

    The files: table.md, table.tex, table.csv, report.md, and each figure as PNG and PDF. Each is replaced in one step,
    and only after all of them could be made; other files in the folder stay. A study's folder has comparison.md and
    comparison.csv too, its rows beside the paper's, and the study's own figures.

    Args:
        directory: a folder that holds `runs/`, as `regrow study` and `regrow train` leave it.
        console: what the text is for; standard output if None. A terminal gets bold type and lines of its width.
        study: what the report of the folder's study has besides.
        planned: the runs of that study.

    Raises:
        ValueError: the folder holds no runs, none that is finished, or one that cannot be understood.
    """
    directory = Path(directory)
    console = console or Console()
    results = Results(folders.read_runs(directory))
    described, study = folders.read_study(directory), study or StudyReport()
    runs, summaries = results.runs, results.cells
    if not summaries:
        raise ValueError(
            f"{directory} holds no finished run ({len(runs)} begun): "
            "let `regrow study` or `regrow train` finish one first"
        )
    scale = described.get("scale", "small")
    beside = comparisons(summaries, study.printed, scale) if described else ()
    beside = (*beside, *(grid for make in study.tables if (grid := make(results)).rows))
    with_paper = " The paper's values, and the differences: comparison.md." if study.printed else ""
    tables = make_tables(summaries, [f"Scale {scale}.{with_paper}"] if described else [])
    with rc_context({"text.parse_math": False}):  # in a layer's name a dollar is a dollar
        own = [(picture.file, picture.caption, picture.draw(results)) for picture in study.figures]
        drawn = [*_usual_figures(study, summaries), *own]
    figures = {file: (caption, figure) for file, caption, figure in drawn if figure is not None}
    missing = [*_missing(directory, described, planned, runs), *_left_out(study, summaries)]
    files = {
        "table.md": "\n".join(f"**{in_markdown(table.title)}**\n\n{to_markdown(table)}" for table in tables).encode(),
        "table.tex": "\n".join(to_latex(table) for table in tables).encode(),
        "table.csv": to_csv(summaries).encode(),
        "report.md": _page(runs, tables, beside, study.notes, figures, missing).encode(),
    }
    if beside:
        files["comparison.md"] = "\n".join(
            f"**{in_markdown(grid.title)}**\n\n{plain_tables.to_markdown(grid)}" for grid in beside
        ).encode()
        files["comparison.csv"] = "\n".join(plain_tables.to_csv(grid) for grid in beside).encode()
    for name, (_, figure) in figures.items():
        files[f"{name}.png"] = _image(figure, "png", {"Software": None})
        files[f"{name}.pdf"] = _image(figure, "pdf", {"CreationDate": None})
    (directory / "report").mkdir(exist_ok=True)
    for name, content in files.items():
        whole_files.write_whole(directory / "report" / name, partial(_write, content))
    width = console.width if console.is_terminal else None
    texts = [to_text(table, width, styled=console.is_terminal) for table in tables]
    telling = [grid for grid in beside if {"paper", "bits/char."} & set(grid.head)]  # the others repeat the table
    comparison = shown(directory / "report" / "comparison.md")
    texts += [plain_tables.to_text(grid, width, comparison) for grid in telling]
    return "\n\n".join([*texts, *missing])


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _usual_figures(study: StudyReport, summaries: Sequence[Summary]) -> Iterable[tuple[str, str, Figure | None]]:
    """File name, caption and figure; the model and the data are in the name where there are several."""
    if not study.usual_figures:
        return
    kinds = [
        (kind, list(same)) for kind, same in itertools.groupby(summaries, key=lambda each: (each.model, each.data))
    ]
    for (model, data), same in kinds:
        if _rows(same) > MOST_ROWS:
            continue
        suffix = file_name(f"-{model}-{data}") if len(kinds) > 1 else ""
        for name, (caption, draw) in FIGURES.items():
            yield name + suffix, f"{caption}, {model} on {data}", draw(same)


def _rows(summaries: Sequence[Summary]) -> int:
    return len({summary.row for summary in summaries})


def _left_out(study: StudyReport, summaries: Sequence[Summary]) -> list[str]:
    """A sentence on the figures that are not drawn, if some are not."""
    rows = _rows(summaries)
    if not study.usual_figures or rows <= MOST_ROWS:
        return []
    return [f"{rows} rows are too many for figures of up to {MOST_ROWS} lines: those are left out."]


def _image(figure: Figure, kind: str, metadata: Mapping[str, None]) -> bytes:
    """The figure as a file, without date and version: the same runs give the same bytes."""
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150, metadata=dict(metadata))
    return content.getvalue()


def _missing(
    directory: Path, described: Mapping[str, Any], planned: Sequence[RunConfig], runs: Sequence[StoredRun]
) -> list[str]:
    """A sentence on the runs that a study still lacks, if it lacks some."""
    left = {run.run_id for run in planned} - {run.folder.name for run in runs if run.result is not None}
    if not left:
        return []
    return [
        f"{len(left)} of the {len(planned)} runs of this study are not finished: "
        f"`{study_command(described, directory)}` goes on with them."
    ]


def _page(
    runs: Sequence[StoredRun],
    tables: Sequence[Table],
    beside: Sequence[Grid],
    notes: Sequence[str],
    figures: Mapping[str, tuple[str, Figure]],
    missing: Sequence[str],
) -> str:
    """report.md: the tables, the figures, and how they were made."""
    lines = ["# " + in_markdown("; ".join(table.title for table in tables)), "", *map(_with_commands, missing)]
    for table in tables:
        lines += ["", *([f"## {in_markdown(table.title)}", ""] if len(tables) > 1 else []), to_markdown(table)]
    for grid in beside:
        lines += ["", f"## {in_markdown(grid.title)}", "", plain_tables.to_markdown(grid)]
    lines += [*notes, ""] if notes else []
    for name, (caption, _) in figures.items():
        lines += [f"![{in_markdown(caption)}]({quote(name)}.png)", "", f"*{in_markdown(caption)}.*", ""]
    provenance = [f"- {in_markdown(line)}" for line in _provenance(runs)] + [MADE_FROM]
    return "\n".join([*lines, "## How it was made", "", *provenance]) + "\n"


def _with_commands(sentence: str) -> str:
    """A sentence in Markdown in which the commands between backticks are set as such."""
    return in_markdown(sentence).replace("\\`", "`")


def _provenance(runs: Sequence[StoredRun]) -> Iterable[str]:
    results = [run.result for run in runs if run.result is not None]
    diverged = sum(result["status"] == "diverged" for result in results)

    def values(field: str) -> str:
        return ", ".join(sorted({str(result.get(field)) for result in results}))

    dates = sorted(str(result.get("date")) for result in results)
    seconds = sum(result["seconds"] for result in results)
    yield f"{len(results)} runs, {diverged} of them diverged; {seconds:.0f} s in all"
    yield f"torch {values('torch')}; {values('machine')}"
    yield f"from {dates[0]} to {dates[-1]}"
    yield f"the same in every run: {', '.join(f'{field} {value}' for field, value in _shared(runs).items())}"


def _shared(runs: Sequence[StoredRun]) -> dict[str, Any]:
    """The fields of the configuration that all runs have in common."""
    first, *others = [run.config for run in runs if run.result is not None]
    return {field: value for field, value in first.items() if all(other.get(field) == value for other in others)}
