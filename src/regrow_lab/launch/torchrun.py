"""One run on several processes, data-parallel: torchrun starts `regrow train` on each of them."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from regrow_lab import store
from regrow_lab.config import RunConfig
from regrow_lab.launch.outcome import TRIES, Outcome, unfinished
from regrow_lab.progress import Progress


@dataclass(frozen=True, kw_only=True)
class Torchrun:
    """The runs one after another, each on all processes."""

    processes: int = 2
    """Processes of a run; on GPUs one for each."""
    device: str = "cpu"
    """cpu, or cuda: each process takes a GPU of its own."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints of a run."""

    def check(self) -> None:
        """See Launcher."""
        if self.processes < 1:
            raise ValueError(f"a data-parallel run needs 1 process or more, given {self.processes}")
        if self.device not in ("cpu", "cuda"):
            raise ValueError(f"a data-parallel run is on cpu or cuda, given device {self.device!r}")
        if self.device == "cuda":
            import torch

            if torch.cuda.device_count() < self.processes:
                raise ValueError(f"{self.processes} processes need as many GPUs, here are {torch.cuda.device_count()}")

    def launch(self, runs: Sequence[RunConfig], directory: Path, progress: Progress) -> Outcome:
        """See Launcher. A run whose processes die is started again from its checkpoint, three times in all.

        A run that cannot be trained, such as one of an unknown model, is not started.
        """
        self.check()
        pending = unfinished(runs, directory)
        outcome = Outcome(before=len(runs) - len(pending))
        progress.begin(total=len(runs), finished=outcome.before)
        try:
            for run in pending:
                self._train(run, directory, progress, outcome)
        finally:
            progress.end()
        return outcome

    def _train(self, run: RunConfig, directory: Path, progress: Progress, outcome: Outcome) -> None:
        wrong = _wrong_with(run)
        if wrong is not None:
            outcome.failed[run.run_id] = wrong
            progress.note(f"{run.run_id} failed: {wrong}")
            return
        folder = store.run_folder(directory, run)
        folder.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, TRIES + 1):
            log = folder / "torchrun.log"
            with log.open("a") as file:
                code = subprocess.run(self.command(run, directory), stdout=file, stderr=subprocess.STDOUT).returncode
            if store.is_finished(folder):
                result = store.read_json(folder / "result.json")
                outcome.count(run, result)
                progress.run(None, run, result)
                return
            if attempt < TRIES:
                progress.note(
                    f"{run.run_id}: its processes ended (exit code {code}, see {log}); they are started again"
                )
        outcome.failed[run.run_id] = f"its processes ended {TRIES} times (exit code {code}, see {log})"
        progress.note(f"{run.run_id} failed: {outcome.failed[run.run_id]}")

    def command(self, run: RunConfig, directory: Path) -> list[str]:
        """What is started for a run."""
        fields = [
            (field.name.replace("_", "-"), getattr(run, field.name))
            for field in dataclasses.fields(run)
            if getattr(run, field.name) != field.default
        ]
        words = [
            word for name, value in fields for word in ([f"--{name}"] if value is True else [f"--{name}", str(value)])
        ]
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        options = ["--out", str(directory), "--device", self.device]
        options += ["--checkpoint-seconds", str(self.checkpoint_seconds)]
        return [*start, "-m", "regrow_lab", "train", *words, *options]


def _wrong_with(run: RunConfig) -> str | None:
    """Why this run cannot be begun. Its processes would each say it, amid torchrun's lines, and be started again."""
    import torch

    from regrow_lab.training import Training

    if run.prerequisite:  # it begins with another run, which says what is wrong with both
        return None
    try:
        Training(run, torch.device("cpu"))
    except ValueError as error:
        return str(error)
    return None
