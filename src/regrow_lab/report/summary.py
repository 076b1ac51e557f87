"""From stored runs to one frozen record a cell: the seeds of one setting, counted, averaged, and set in order.

Tables and figures work on these records alone. Nothing here imports torch.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from regrow_lab.methods import METHODS, method_of
from regrow_lab.report.words import distribution_in_words, variant_in_words
from regrow_lab.store.stored_run import StoredRun

GRADIENTS = 0.1
"""Share of the FLOPs of dense gradients at every step up to which a method without a record is sparse throughout."""

GROUPS = (
    "sparse throughout, densities uniform",
    "sparse throughout, densities by layer (ERK, ER, SNIP)",
    "more train FLOPs: dense gradients or weights, moving densities, an earlier run, longer training",
    "dense",
)


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The runs that differ in nothing but the seed.

    Numbers are means over the finished runs, accuracies in percent. A diverged run is counted in `diverged` and is in
    no mean. `std` is the sample standard deviation (None below two runs).
    """

    model: str
    data: str
    method: str
    distribution: str | None
    multiplier: float
    variant: str
    """What else sets this cell apart from others of the same name, such as `every=50`; mostly empty."""
    sparsity: float
    n: int
    diverged: int
    mean: float | None
    std: float | None
    median: float | None
    min: float | None
    max: float | None
    train_ratio: float
    test_ratio: float
    density: float
    dense_flops: float
    seconds: float
    peak_memory_mib: float | None
    """Median: the first run of a process meets what torch allocates at first use."""
    layer_densities: Mapping[str, float]
    start: str | None = None
    """The earlier run that these start from, in place of their method's own beginning."""
    bits: float | None = None
    """Bits a character, of a text."""
    bits_std: float | None = None
    wall_train: float | None = None
    """Measured time of a training step relative to the dense net's, where it was measured; `wall_test` likewise."""
    wall_test: float | None = None

    @property
    def row(self) -> tuple[str, str | None, float, str]:
        """What the cells of one row of the table share."""
        return (self.method, self.distribution, self.multiplier, self.variant)

    @property
    def is_dense(self) -> bool:
        """Whether this is the dense net, which the others are compared with."""
        return not method_of(self.method).takes_sparsity

    @property
    def style(self) -> tuple[str, str]:
        """Colour and marker of the method, in every figure."""
        method = method_of(self.method)
        return method.colour, method.marker

    @property
    def label(self) -> str:
        """Name of the row."""
        return row_label(*self.row)

    @property
    def group(self) -> int:
        """Index into `GROUPS`: methods of like FLOP requirement, so that the best is the best among equals.

        First what costs the density at every step (uniform densities, and the small dense net), then what is as sparse
        at every step but puts weights where they cost more FLOPs (ERK, ER, SNIP, GraSP), then what trains with more:
        dense gradients at every step (SNFS) or in many passes before the first (OBD), redistribution, pruning from a
        dense net, what begins with the end of another run (tickets, RigL from RigL-SM's masks or densities), all 2x and
        3x runs. Last the dense net.
        """
        if self.is_dense:
            return 3
        if not self._sparse_throughout or self.multiplier > 1 or self.start is not None:
            return 2
        return 0 if method_of(self.method).narrow or self.distribution == "uniform" else 1

    @property
    def _sparse_throughout(self) -> bool:
        """As the method's record says; else whether training took little more than 3 f_s a step."""
        known = method_of(self.method).sparse_throughout
        dense_gradients = (1 - self.test_ratio) / 3
        return self.train_ratio - self.test_ratio <= GRADIENTS * dense_gradients if known is None else known


ROW = ("model", "data", "method", "distribution", "multiplier")


def summarise(runs: Iterable[StoredRun]) -> tuple[Summary, ...]:
    """The finished and the diverged of `runs` by setting, in the order of the table: by row, sparsities ascending.

    Runs of one row whose configurations differ in more than seed and sparsity are never averaged together: each setting
    is a row of its own, told apart by `variant`.

    Raises ValueError if a stored run lacks a field.
    """
    rows: dict[tuple[Any, ...], list[StoredRun]] = defaultdict(list)
    for run in runs:
        if run.result is not None:
            rows[tuple(_setting(run, axis) for axis in ROW)].append(run)
    cells: dict[tuple[Any, ...], list[StoredRun]] = defaultdict(list)
    for row, same_row in rows.items():
        for run, variant in zip(same_row, variants([run.whole_config for run in same_row]), strict=True):
            cells[(*row, variant, _setting(run, "sparsity"))].append(run)
    return tuple(sorted((_summary(cell, variant) for (*_, variant, _), cell in cells.items()), key=_place))


def _place(summary: Summary) -> tuple[Any, ...]:
    methods, distributions = [*METHODS, summary.method], [None, "uniform", "er", "erk", summary.distribution]
    row = (methods.index(summary.method), summary.method, summary.multiplier)
    where = (distributions.index(summary.distribution), summary.distribution or "", summary.variant)
    return (summary.model, summary.data, summary.group, *row, *where, summary.sparsity)


def row_label(method: str, distribution: str | None, multiplier: float, variant: str) -> str:
    """Name of a row in the report's form; a uniform distribution is not said.

    >>> row_label("rigl", "erk", 2, "every=50"), row_label("set", "uniform", 1, "")
    ('RigL_2x (ERK, dT 50)', 'SET')
    """
    name = method_of(method).label + (f"_{multiplier:g}x" if multiplier > 1 else "")
    density = "" if distribution in (None, "uniform") else distribution_in_words(distribution)
    notes = ", ".join(note for note in (density, variant_in_words(variant)) if note)
    return f"{name} ({notes})" if notes else name


def variants(row: Iterable[dict[str, Any]]) -> list[str]:
    """What sets each configuration of a row apart beside seed and sparsity; that a field is None is not said."""
    configs = list(row)
    fields = {field for config in configs for field in config} - {"seed", "sparsity"}
    varying = sorted(field for field in fields if len({repr(config.get(field)) for config in configs}) > 1)
    return [
        ", ".join(f"{field}={config[field]}" for field in varying if config.get(field) is not None)
        for config in configs
    ]


def _setting(run: StoredRun, field: str) -> Any:
    return _get(run.config, field, run, "config.json")


def _outcome(run: StoredRun, field: str) -> Any:
    assert run.result is not None
    return _get(run.result, field, run, "result.json")


def _get(fields: Mapping[str, Any], field: str, run: StoredRun, file: str) -> Any:
    if field not in fields:
        raise run.lacks(field, file)
    return fields[field]


def _summary(runs: Sequence[StoredRun], variant: str) -> Summary:
    finished = [run for run in runs if _outcome(run, "status") == "finished"]
    accuracies = [float(_outcome(run, "test_accuracy")) for run in finished]
    counted = finished or runs  # what a run costs is known even where every seed diverged

    def mean(field: str) -> float:
        return statistics.fmean(float(_outcome(run, field)) for run in counted)

    def shared(field: str) -> Any:
        return _setting(runs[0], field)

    def measured(field: str, part: str | None = None) -> list[float]:
        values = (run.result or {} for run in finished)
        found = (value.get(field) if part is None else (value.get(field) or {}).get(part) for value in values)
        return [float(value) for value in found if value is not None]

    bits, wall_train, wall_test = measured("test_bits"), measured("wall", "train_ratio"), measured("wall", "test_ratio")
    memory = [float(value) for run in counted if (value := _outcome(run, "peak_memory_mib")) is not None]
    layers = list(dict.fromkeys(layer for run in counted for layer in _outcome(run, "densities")))
    return Summary(
        model=shared("model"),
        data=shared("data"),
        method=shared("method"),
        distribution=shared("distribution"),
        multiplier=shared("multiplier"),
        variant=variant,
        sparsity=shared("sparsity"),
        n=len(finished),
        diverged=len(runs) - len(finished),
        start=runs[0].whole_config["start"],
        mean=statistics.fmean(accuracies) if accuracies else None,
        std=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        median=statistics.median(accuracies) if accuracies else None,
        min=min(accuracies, default=None),
        max=max(accuracies, default=None),
        train_ratio=mean("train_ratio"),
        test_ratio=mean("test_ratio"),
        density=1 - mean("sparsity"),
        dense_flops=mean("dense_flops"),
        seconds=mean("seconds"),
        peak_memory_mib=statistics.median(memory) if memory else None,
        layer_densities={
            layer: statistics.fmean(float(_outcome(run, "densities")[layer]) for run in counted) for layer in layers
        },
        bits=statistics.fmean(bits) if bits else None,
        bits_std=statistics.stdev(bits) if len(bits) > 1 else None,
        wall_train=statistics.median(wall_train) if wall_train else None,
        wall_test=statistics.median(wall_test) if wall_test else None,
    )
