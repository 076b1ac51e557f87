"""The report of a search, from its stored runs alone: Table 4 (reference against tuned) and the contours of the trials.

Nothing here imports torch or Optuna.
"""

from __future__ import annotations

import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from matplotlib.figure import Figure
from matplotlib.tri import Triangulation

from regrow_lab import grids, paper, store
from regrow_lab.escaping import in_markdown
from regrow_lab.grids import MISSING, Grid
from regrow_lab.store import StoredRun

PREFIX = "tune-"
"""What the name of a search begins with in study.json."""
NAMES = {"uniform": "RigL", "erk": "RigL (ERK)"}
LEVELS = 12
Search = tuple[str, float]
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
class Searched:
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
    return str(store.read_study(directory).get("study", "")).startswith(PREFIX)


def searches(runs: Iterable[StoredRun], alpha: float, every: int) -> dict[Search, Searched]:
    """The trials of each search among `runs`; a search without its reference point is left out."""
    points: dict[Search, dict[tuple[float, int], list[StoredRun]]] = defaultdict(lambda: defaultdict(list))
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
            found[search] = Searched(tuple(whole.values()), whole[alpha, every], given_up)
    return found


def _trial(point: tuple[float, int], runs: Sequence[StoredRun]) -> Trial:
    def measured(field: str) -> tuple[float, ...]:
        return tuple(float((run.result or {}).get(field) or 0.0) for run in runs)

    return Trial(*point, measured("validation_accuracy"), measured("test_accuracy"))


def write_tuning_report(directory: Path) -> str:
    """Write table4.md, table4.csv, contours.png and .pdf and report.md to the folder `report`; returns the table.

    Raises ValueError if no search has got beyond its reference point.
    """
    runs = store.read_runs(directory)
    if not runs:
        raise ValueError(f"{directory} holds no finished run: let `regrow tune` finish some first")
    alpha, every = _reference(directory)
    found = searches(runs, alpha, every)
    if not found:
        raise ValueError(f"{directory} has no search with a finished reference point: let `regrow tune` go on first")
    first = next(run.config for run in runs)
    table = table_4(found, f"{first['model']} on {first['data']}")
    files = {"table4.md": f"**{in_markdown(table.title)}**\n\n{grids.to_markdown(table)}".encode()}
    files["table4.csv"] = grids.to_csv(table).encode()
    figure = contours(found)
    if figure is not None:
        files["contours.png"] = _image(figure, "png", {"Software": None})
        files["contours.pdf"] = _image(figure, "pdf", {"CreationDate": None})
    drawn = f"![Contours](contours.png)\n\n*{CAPTION}*\n\n" if figure else ""
    finished = [run.result for run in runs if run.result is not None]
    made = (
        f"- {len(finished)} runs, {sum(float(result['seconds']) for result in finished):.0f} s in all\n"
        f"- made from the stored runs alone; `regrow report` makes it again\n"
    )
    page = f"# {in_markdown(table.title)}\n\n{grids.to_markdown(table)}\n{drawn}## How it was made\n\n{made}"
    files["report.md"] = page.encode()
    (directory / "report").mkdir(exist_ok=True)
    for name, content in files.items():
        store.write_whole(directory / "report" / name, partial(_write, content))
    return grids.to_text(table)


def _reference(directory: Path) -> tuple[float, int]:
    match store.read_study(directory).get("reference"):
        case {"alpha": int() | float() as alpha, "every": int() as every} if every >= 1:
            return float(alpha), every
    raise ValueError(
        f"{directory / 'study.json'} does not say the reference (alpha, dT) of the search: give the search's command "
        "again, which writes it anew"
    )


def table_4(found: Mapping[Search, Searched], what: str) -> Grid:
    """Reference against tuned, by distribution and sparsity, beside what the paper printed."""
    rows = []
    for (distribution, sparsity), search in found.items():
        name = NAMES.get(distribution, f"RigL ({distribution})")
        best, reference = search.best, search.reference
        printed = paper.TABLE_4.rows.get(name, {}).get(sparsity)
        tuned = paper.OPTIMAL.get((name, sparsity))
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
            f"mean ± sample standard deviation over {_counted(len(search.reference.test), 'seed')}.",
            "Tuned: the trial with the best mean validation accuracy. Gain: test accuracy over the reference, in "
            "points; gain val.: the same on the validation data that chose it.",
            *((f"Given up, or not finished: {_counted(given_up, 'point')}.",) if given_up else ()),
            "Paper: WRN-22-2 on CIFAR-10, Table 4.",
        ),
    )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


CAPTION = (
    "Mean validation accuracy over the trials (linear between them). Dots: trials; star: reference; diamond: best. "
    "After the supplementary's Figure 1."
)


def contours(found: Mapping[Search, Searched]) -> Figure | None:
    """Validation accuracy over alpha and dT, a panel a search; None where no search has enough trials for an area."""
    drawable = {key: search for key, search in found.items() if _triangulation(search) is not None}
    if not drawable:
        return None
    distributions = list(dict.fromkeys(key[0] for key in drawable))
    sparsities = sorted({key[1] for key in drawable}, reverse=True)
    figure = Figure(figsize=(1.2 + 3.4 * len(sparsities), 0.9 + 2.9 * len(distributions)), layout="constrained")
    all_axes = figure.subplots(len(distributions), len(sparsities), squeeze=False)
    handles = {}
    for row, distribution in enumerate(distributions):
        for column, sparsity in enumerate(sparsities):
            axes = all_axes[row][column]
            if (distribution, sparsity) not in drawable:
                axes.set_visible(False)
                continue
            search = drawable[distribution, sparsity]
            triangulation = _triangulation(search)
            assert triangulation is not None
            scores = [trial.score for trial in search.trials]
            drawn = axes.tricontourf(triangulation, scores, levels=LEVELS, cmap="viridis")
            figure.colorbar(drawn, ax=axes, format="%.2f", ticks=drawn.levels[::3])
            dots = axes.plot([t.alpha for t in search.trials], [t.every for t in search.trials], "k.", markersize=4)
            best, reference = search.best, search.reference
            look = {"markeredgecolor": "black", "linestyle": "none", "zorder": 5}
            star = axes.plot(
                [reference.alpha], [reference.every], marker="*", markersize=14, markerfacecolor="white", **look
            )
            diamond = axes.plot([best.alpha], [best.every], marker="D", markersize=8, markerfacecolor="#d55e00", **look)
            handles = {"trial": dots[0], "reference": star[0], "best": diamond[0]}
            axes.set_title(f"{NAMES.get(distribution, distribution)}, S = {sparsity:g}", fontsize=10)
            axes.use_sticky_edges = False
            axes.margins(0.06)
            axes.set_xlabel("alpha")
            axes.set_ylabel("dT (steps)")
    figure.suptitle("Mean validation accuracy in percent", fontsize=11)
    figure.legend(list(handles.values()), list(handles), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _triangulation(search: Searched) -> Triangulation | None:
    """Triangles between the trials; None where all lie on one line."""
    alphas, intervals = [trial.alpha for trial in search.trials], [float(trial.every) for trial in search.trials]
    if len(search.trials) < 4:
        return None
    try:
        # Where a point's neighbours are must not depend on the units of the axes.
        found = Triangulation(_scaled(alphas), _scaled(intervals))
    except (RuntimeError, ZeroDivisionError):
        return None
    return Triangulation(alphas, intervals, found.triangles)


def _scaled(values: Sequence[float]) -> list[float]:
    return [(value - min(values)) / (max(values) - min(values)) for value in values]


def _image(figure: Figure, kind: str, metadata: Mapping[str, None]) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, format=kind, dpi=150, metadata=dict(metadata))
    return content.getvalue()


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content)
