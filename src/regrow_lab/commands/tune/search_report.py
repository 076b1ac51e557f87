"""The report of a search, from its stored runs alone: Table 4 (reference against tuned) and a picture of the trials.

Nothing here imports torch or Optuna.
"""

from __future__ import annotations

import io
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from regrow_files import shown
from regrow_lab.launch.progress import counted
from regrow_lab.report import plain_tables
from regrow_lab.report.columns import MISSING
from regrow_lab.report.plain_tables import Grid
from regrow_lab.store import folders, whole_files
from regrow_lab.store.escaping import in_markdown
from regrow_lab.store.stored_run import StoredRun
from regrow_lab.studies.table4 import NAMES, PRINTED, PRINTED_TUNED

PREFIX = "tune-"
"""What the name of a search begins with in study.json."""
Problem = tuple[str, float]
"""Distribution and sparsity."""


@dataclass(frozen=True)
class Trial:
    """The finished seeds of one point. Accuracies in percent, 0 where a run diverged."""

    alpha: float
    every: int
    validation: tuple[float, ...]
    test: tuple[float, ...]

    @property
    def score(self) -> float:
        """What the search maximises."""
        return statistics.fmean(self.validation)

    @property
    def accuracy(self) -> str:
        """On the test data, as it stands in tables."""
        std = f" ± {statistics.stdev(self.test):.2f}" if len(self.test) > 1 else ""
        return f"{statistics.fmean(self.test):.1f}{std}"


@dataclass(frozen=True)
class Trials:
    """The trials of one search with all their seeds, and the one at the reference point."""

    trials: tuple[Trial, ...]
    reference: Trial
    given_up: int = 0
    """Points with fewer seeds than the others: pruned, or under way."""

    @property
    def best(self) -> Trial:
        """By validation accuracy; of equals the one nearest to the reference."""
        return max(self.trials, key=lambda trial: (trial.score, trial == self.reference, *self._nearness(trial)))

    def _nearness(self, trial: Trial) -> tuple[float, float]:
        reference = self.reference
        return -abs(trial.alpha - reference.alpha), -abs(math.log(trial.every / reference.every))


def is_search(directory: Path) -> bool:
    """Whether the folder is that of a search."""
    return str(folders.read_study(directory).get("study", "")).startswith(PREFIX)


def searches(runs: Iterable[StoredRun], alpha: float, every: int) -> dict[Problem, Trials]:
    """The trials of each search among `runs`; a search without its reference point is left out."""
    points: dict[Problem, dict[tuple[float, int], list[StoredRun]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if run.result is not None:
            config = run.config
            search = (str(config["distribution"]), float(config["sparsity"]))
            points[search][float(config["drop_fraction"]), int(config["every"])].append(run)
    found = {}
    for search in sorted(points, key=lambda key: (list(NAMES).index(key[0]) if key[0] in NAMES else 9, -key[1])):
        seeds = max(len(same) for same in points[search].values())
        whole = {point: _trial(point, same) for point, same in points[search].items() if len(same) == seeds}
        if (alpha, every) in whole:
            given_up = len(points[search]) - len(whole)
            found[search] = Trials(tuple(whole.values()), whole[alpha, every], given_up)
    return found


def _trial(point: tuple[float, int], runs: Sequence[StoredRun]) -> Trial:
    def measured(field: str) -> tuple[float, ...]:
        return tuple(float((run.result or {}).get(field) or 0.0) for run in runs)

    return Trial(*point, measured("validation_accuracy"), measured("test_accuracy"))


def write_tuning_report(directory: Path, width: int | None = None) -> str:
    """Write table4.md, table4.csv, trials.png and .pdf and report.md to the folder `report`; returns the table, at most
    `width` wide.

    Raises ValueError if no search has got beyond its reference point.
    """
    runs = folders.read_runs(directory)
    if not runs:
        raise ValueError(f"{directory} holds no finished run: let `regrow tune` finish some first")
    found = searches(runs, *_reference(directory))
    if not found:
        raise ValueError(f"{directory} has no search with a finished reference point: let `regrow tune` go on first")
    first = next(run.config for run in runs)
    table = table_4(found, f"{first['model']} on {first['data']}")
    drawn = picture(found)
    finished = [run.result for run in runs if run.result is not None]
    made = (
        f"- {len(finished)} runs, {sum(float(result['seconds']) for result in finished):.0f} s in all\n"
        f"- made from the stored runs alone; `regrow report` makes it again\n"
    )
    title, text, image = (
        in_markdown(table.title),
        plain_tables.to_markdown(table),
        f"![Trials](trials.png)\n\n*{CAPTION}*\n\n",
    )
    files = {
        "table4.md": f"**{title}**\n\n{text}".encode(),
        "table4.csv": plain_tables.to_csv(table).encode(),
        "trials.png": _image(drawn, "png", {"Software": None}),
        "trials.pdf": _image(drawn, "pdf", {"CreationDate": None}),
        "report.md": f"# {title}\n\n{text}\n{image}## How it was made\n\n{made}".encode(),
    }
    (directory / "report").mkdir(exist_ok=True)
    for name, content in files.items():
        whole_files.write_whole(directory / "report" / name, partial(_write, content))
    return plain_tables.to_text(table, width, shown(directory / "report" / "table4.md"))


def _reference(directory: Path) -> tuple[float, int]:
    match folders.read_study(directory).get("reference"):
        case {"alpha": int() | float() as alpha, "every": int() as every} if every >= 1:
            return float(alpha), every
    raise ValueError(
        f"{directory / 'study.json'} does not say the reference (alpha, dT) of the search: give the search's command "
        "again, which writes it anew"
    )


def table_4(found: Mapping[Problem, Trials], what: str) -> Grid:
    """Reference against tuned, by distribution and sparsity, beside what the paper printed."""
    rows = []
    for (distribution, sparsity), search in found.items():
        name = NAMES.get(distribution, f"RigL ({distribution})")
        best, reference = search.best, search.reference
        printed = PRINTED.rows.get(name, {}).get(sparsity)
        tuned = PRINTED_TUNED.get((name, sparsity))
        rows.append(
            (
                name,
                f"{sparsity:g}",
                f"{len(search.trials)}",
                reference.accuracy,
                f"{best.alpha:.3f}",
                f"{best.every}",
                best.accuracy,
                f"{statistics.fmean(best.test) - statistics.fmean(reference.test):+.1f}",
                f"{best.score - reference.score:+.1f}",
                f"{printed.accuracy:.1f} ± {printed.std:.2f}" if printed else MISSING,
                f"{tuned[2]:.1f} ± {tuned[3]:.2f} ({tuned[0]:g}, {tuned[1]})" if tuned else MISSING,
            )
        )
    head = ("Method", "S", "trials", "reference", "alpha", "dT", "tuned", "gain", "gain val.", "paper: ref.")
    search = next(iter(found.values()))
    given_up = sum(each.given_up for each in found.values())
    return Grid(
        f"Reference and tuned (alpha, dT), {what}",
        (*head, "paper: tuned (alpha, dT)"),
        tuple(rows),
        (
            f"Reference: alpha {search.reference.alpha:g}, dT {search.reference.every} steps. Accuracy: test, percent, "
            f"mean ± sample standard deviation over {counted(len(search.reference.test), 'seed')}.",
            "Tuned: the trial with the best mean validation accuracy. Gain: test accuracy over the reference, in "
            "points; gain val.: the same on the validation data that chose it.",
            *((f"Given up, or not finished: {counted(given_up, 'point')}.",) if given_up else ()),
            "Paper: WRN-22-2 on CIFAR-10, Table 4.",
        ),
    )


CAPTION = (
    "Mean validation accuracy of the trials, on one scale. Dots: trials; star: reference; diamond: best. After the "
    "supplementary's Figure 1."
)


def picture(found: Mapping[Problem, Trials]) -> Figure:
    """Every trial at its alpha and dT, coloured by its validation accuracy: a panel a search, one scale for all."""
    rows, columns = list(dict.fromkeys(key[0] for key in found)), sorted({key[1] for key in found}, reverse=True)
    figure = Figure(figsize=(1.6 + 2.3 * len(columns), 1.4 + 1.9 * len(rows)), layout="constrained")
    panels = figure.subplots(len(rows), len(columns), squeeze=False, sharex=True, sharey=True)
    scores = [trial.score for search in found.values() for trial in search.trials]
    middle, best = statistics.median(scores), max(scores)
    # What diverged or nearly so would leave one colour to all others: it shares the lowest.
    low = max(min(scores), middle - 4 * (best - middle) - 0.1)
    look = {"cmap": "viridis", "norm": Normalize(low, max(best, low + 0.1)), "edgecolors": "black"}
    handles: dict[str, PathCollection] = {}
    for key, axes in ((key, panels[rows.index(key[0])][columns.index(key[1])]) for key in found):
        search = found[key]
        others = [trial for trial in search.trials if trial not in (search.best, search.reference)]
        handles["trial"] = _scatter(axes, others, s=36, linewidths=0.6, **look)
        handles["reference"] = _scatter(axes, [search.reference], s=190, marker="*", linewidths=1.2, **look)
        ring = look | {"edgecolors": "crimson"}
        handles["best"] = _scatter(axes, [search.best], s=80, marker="D", linewidths=2, **ring)
        axes.set_title(f"{NAMES.get(key[0], key[0])}, S = {key[1]:g}", fontsize=10)
        axes.margins(0.1)
    for row, column in itertools.product(range(len(rows)), range(len(columns))):
        panels[row][column].set_visible((rows[row], columns[column]) in found)
        panels[row][column].label_outer()
    figure.supxlabel("alpha", fontsize=10)
    figure.supylabel("dT (steps)", fontsize=10)
    bar = figure.colorbar(handles["trial"], ax=panels, extend="min" if low > min(scores) else "neither")
    bar.set_label("mean validation accuracy (%)")
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=3, frameon=False)
    return figure


def _scatter(axes: Axes, trials: Sequence[Trial], **look: Any) -> PathCollection:
    places = [trial.alpha for trial in trials], [trial.every for trial in trials]
    return axes.scatter(*places, c=[trial.score for trial in trials], zorder=3, **look)


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)


def _image(figure: Figure, kind: str, metadata: Mapping[str, None]) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150, metadata=dict(metadata))
    return content.getvalue()
