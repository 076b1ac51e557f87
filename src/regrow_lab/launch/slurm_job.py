"""What runs inside a job of SLURM: the local pool, and what happens when SLURM wants the node back."""

from __future__ import annotations

import multiprocessing
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from regrow_lab.config import RunConfig
from regrow_lab.launch.local import Local
from regrow_lab.launch.progress import PlainProgress
from regrow_lab.store import whole_files


@dataclass(frozen=True)
class Share:
    """A part of a study's runs, to be trained by one job."""

    directory: Path
    pool: Local

    def __call__(self, runs: Sequence[RunConfig]) -> None:
        """Train them; submitit calls this in the job."""
        import submitit

        signal.signal(signal.SIGTERM, _wait_for_the_end)
        outcome = self.pool.launch(runs, self.directory, PlainProgress(Console(width=200)))
        path = outcome_file(self.directory, str(submitit.JobEnvironment().job_id))
        whole_files.write_json(path, {"failed": outcome.failed})

    def checkpoint(self, runs: Sequence[RunConfig]) -> Any:
        """What to do where the job is warned (time limit, preemption): submitit calls this, then queues it again."""
        import submitit

        _stop_workers()
        return submitit.helpers.DelayedSubmission(self, runs)


def outcome_file(directory: Path, job: str) -> Path:
    """Where a job that came to its end says which of its runs cannot be trained."""
    return directory / "slurm" / f"outcome-{job}.json"


def _wait_for_the_end(number: int, frame: object) -> None:
    """SLURM takes the node: it kills the job soon, and has queued it again if it was preempted, so stay until then."""
    _stop_workers()
    print("SIGTERM: the runs in hand have their checkpoints", flush=True)
    while True:
        time.sleep(1)


def _stop_workers() -> None:
    """Have the workers write their checkpoints and end."""
    workers = multiprocessing.active_children()
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.join()
