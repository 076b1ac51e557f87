"""How a study shows that it goes on: live lines on a terminal, a plain line a run elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.table import Column, Table

from regrow_files import shown
from regrow_lab.config import RunConfig

Report = Callable[[Mapping[str, Any]], None]


class Progress(Protocol):
    """What a launcher tells while it works."""

    def begin(self, total: int, finished: int) -> None:
        """A study of `total` runs begins, `finished` of which stand already."""

    def epoch(self, worker: int | None, run: RunConfig, row: Mapping[str, Any]) -> None:
        """`worker` has come this far in `run`; `row` is a line of its metrics."""

    def run(self, worker: int | None, run: RunConfig, result: Mapping[str, Any]) -> None:
        """`worker` has finished `run`."""

    def note(self, line: str) -> None:
        """Something that a person should know."""

    def end(self) -> None:
        """Nothing more comes."""


def progress_for(console: Console) -> Progress:
    """Live lines if `console` is a terminal, else plain ones."""
    return LiveProgress(console) if console.is_terminal else PlainProgress(console)


class PlainProgress:
    """A line for every finished run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.total = self.finished = 0

    def begin(self, total: int, finished: int) -> None:
        """See Progress."""
        self.total, self.finished = total, finished
        if finished:
            self.note(f"{finished} of {total} runs are finished already")

    def epoch(self, worker: int | None, run: RunConfig, row: Mapping[str, Any]) -> None:
        """See Progress."""

    def run(self, worker: int | None, run: RunConfig, result: Mapping[str, Any]) -> None:
        """See Progress."""
        self.finished += 1
        self.note(f"[{self.finished:{len(str(self.total))}}/{self.total}] {run.run_id:<42} {outcome(result)}")

    def note(self, line: str) -> None:
        """See Progress."""
        self.console.print(shown(line), markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """See Progress."""


class LiveProgress:
    """A bar for the study and one for the run that each worker has in hand."""

    def __init__(self, console: Console) -> None:
        self.bars = Bars(
            TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=3, min_width=10)),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6, max_width=24)),
            MofNCompleteColumn(table_column=Column(no_wrap=True)),
            TextColumn("{task.fields[state]}", table_column=Column(no_wrap=True, ratio=2, overflow="ellipsis")),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TimeRemainingColumn(table_column=Column(no_wrap=True)),
            expand=True,
            console=console,
            refresh_per_second=4,
            transient=True,
        )
        self.tasks: dict[int | None, TaskID] = {}

    def begin(self, total: int, finished: int) -> None:
        """See Progress."""
        self.study = self.bars.add_task("runs", total=total, completed=finished, state="")
        self.bars.start()

    def epoch(self, worker: int | None, run: RunConfig, row: Mapping[str, Any]) -> None:
        """See Progress."""
        if worker not in self.tasks:
            self.tasks[worker] = self.bars.add_task("", state="")
        loss, speed = row["train_loss"], f"{row['samples_per_second']:,.0f}/s" if "samples_per_second" in row else ""
        self.bars.update(
            self.tasks[worker],
            description=run.run_id,
            total=run.total_epochs,
            completed=row["epoch"],
            state=" ".join(word for word in ("" if loss is None else f"loss {loss:.3f}", speed) if word),
        )

    def run(self, worker: int | None, run: RunConfig, result: Mapping[str, Any]) -> None:
        """See Progress."""
        self.bars.update(self.study, advance=1, state=f"last: {outcome(result).strip()}")
        if result["status"] == "diverged":
            self.note(f"{run.run_id} {outcome(result)}")

    def note(self, line: str) -> None:
        """See Progress."""
        self.bars.console.print(shown(line), markup=False, highlight=False)

    def end(self) -> None:
        """See Progress."""
        self.bars.stop()


@dataclass(frozen=True)
class SearchRow:
    """How far one search is, as it is shown: its trials, the best of them and its point; and its runs in numbers."""

    name: str
    trials: str
    best: str
    point: str
    finished: int
    """Runs of trials that are done with."""
    total: int
    """Runs of all its trials."""
    in_hand: tuple[str, ...]
    """Runs of trials under way, by name."""


class SearchProgress:
    """A table of the searches with one bar over them on a terminal, which moves with every epoch; elsewhere a line a
    trial."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.rows: Sequence[SearchRow] = ()
        self.parts: dict[str, float] = {}
        columns = (BarColumn(bar_width=None), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        left = TextColumn("left")
        # A run may take hours: the time that is left follows from all that was seen.
        self.bars = Bars(TextColumn("runs"), *columns, left, console=console, expand=True, speed_estimate_period=1e9)
        self.bar = self.bars.add_task("", total=None)
        self.live = Live(get_renderable=self._picture, console=console, transient=True)

    def begin(self, total: int, finished: int) -> None:
        """See Progress."""
        if self.console.is_terminal:
            self.live.start()

    def epoch(self, worker: int | None, run: RunConfig, row: Mapping[str, Any]) -> None:
        """See Progress."""
        self.parts[run.run_id] = row["epoch"] / run.total_epochs
        self._move()

    def run(self, worker: int | None, run: RunConfig, result: Mapping[str, Any]) -> None:
        """See Progress."""
        self.parts[run.run_id] = 1.0
        if result["status"] == "diverged":
            self.note(f"{run.run_id} {outcome(result)}")

    def note(self, line: str) -> None:
        """See Progress."""
        self.console.print(shown(line), markup=False, highlight=False, soft_wrap=True)

    def end(self) -> None:
        """See Progress."""
        self.live.stop()

    def trial(self, line: str) -> None:
        """A trial is done with."""
        if not self.console.is_terminal:
            self.note(line)

    def show(self, rows: Sequence[SearchRow]) -> None:
        """So far the searches are now."""
        self.rows = rows
        self._move()

    def _move(self) -> None:
        begun = sum(self.parts.get(name, 0.0) for row in self.rows for name in row.in_hand)
        finished, total = (sum(getattr(row, name) for row in self.rows) for name in ("finished", "total"))
        self.bars.update(self.bar, completed=finished + begun, total=max(total, 1))

    def _picture(self) -> Group:
        table = Table("search", "trials", "best", "at", box=None, pad_edge=False)
        for row in self.rows:
            table.add_row(row.name, row.trials, row.best, row.point)
        return Group(table, self.bars.get_renderable())


def counted(number: int, what: str, ending: str = "s") -> str:
    """A number of things.

    >>> counted(1, "seed"), counted(2, "search", "es")
    ('1 seed', '2 searches')
    """
    return f"{number} {what}{'' if number == 1 else ending}"


@contextmanager
def epoch_lines(console: Console, epochs: int) -> Iterator[tuple[Report, Report]]:
    """How one run shows that it goes on: what to call at the end of an epoch, and what inside one.

    A line an epoch; on a terminal a live one inside it too.
    """
    status = console.status("epoch 0")

    def report(row: Mapping[str, Any]) -> None:
        loss = "not finite" if row["train_loss"] is None else f"{row['train_loss']:.4f}"
        bits = f" ({row['train_bits']:.3f} bits)" if "train_bits" in row else ""
        console.print(
            f"epoch {row['epoch']:3}/{epochs}  step {row['step']}  loss {loss}{bits}  sparsity {row['sparsity']:.4f}  "
            f"{row['samples_per_second']:,.0f} samples/s",
            soft_wrap=True,
        )

    def pulse(row: Mapping[str, Any]) -> None:
        status.update(
            f"epoch {row['epoch']:.2f}/{epochs}  step {row['step']}  {row['samples_per_second']:,.0f} samples/s"
        )

    with status if console.is_terminal else nullcontext():
        yield report, pulse


@contextmanager
def bytes_bar(console: Console, name: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar for a download: what to call with the bytes that are there and those there will be. None off a terminal."""
    bar = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    task = bar.add_task(name, total=None)
    with bar:
        yield lambda have, total: bar.update(task, completed=have, total=total)


def outcome(result: Mapping[str, Any]) -> str:
    """A finished run in a few words."""
    if result["status"] == "diverged":
        return f"diverged at step {result['diverged_at']}"
    bits = result.get("test_bits")
    measured = f"{result['test_accuracy']:5.1f} %" if bits is None else f"{bits:.3f} bits a character"
    return f"{measured}  {result['seconds']:.1f} s"
