"""`regrow train`: one run, with a line an epoch."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from regrow_files import shown
from regrow_lab.commands.signals import asking_to_stop, exit_code
from regrow_lab.config import RunConfig, check_seconds
from regrow_lab.launch.progress import epoch_lines, outcome
from regrow_lab.methods import method_of
from regrow_lab.store import folders, whole_files
from regrow_lab.store.escaping import complain

MOST_THREADS = 1024


@dataclass(frozen=True)
class Train:
    """Train one run in its folder under OUT/runs; a run that was stopped goes on, a finished one is only shown.

    On several processes: torchrun --nproc-per-node 2 -m regrow_lab train ...
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    out: Path = Path("runs/train")
    """Folder for the runs."""
    device: str = "cpu"
    """Where the net and the data live, in torch's words: cpu, cuda, cuda:1."""
    threads: int = 1
    """Threads on the CPU. Another number may give other last digits."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints."""

    def __post_init__(self) -> None:
        check_seconds("checkpoint_seconds", self.checkpoint_seconds)

    def run(self) -> int:
        """Train, with a line an epoch."""
        config = self.config
        if method_of(config.method).takes_sparsity and not config.sparsity:
            raise ValueError(f"method {config.method} needs a sparsity: add --sparsity 0.9, or choose --method dense")
        if not 1 <= self.threads <= MOST_THREADS:
            raise ValueError(f"threads must lie in 1 to {MOST_THREADS}, given {self.threads}")
        from regrow_lab.run import data_parallel
        from regrow_lab.run.machine import take_threads
        from regrow_lab.run.resumable import train

        take_threads(self.threads)
        folder = folders.run_folder(self.out, config)
        device = data_parallel.begin(self.device)
        console = Console(highlight=False, quiet=data_parallel.rank() > 0)
        try:
            with asking_to_stop() as signalled, epoch_lines(console, config.total_epochs) as (report, pulse):
                result = train(
                    config,
                    self.out,
                    device=device,
                    checkpoint_seconds=self.checkpoint_seconds,
                    keep_weights=True,
                    report=report,
                    pulse=pulse,
                    stopping=lambda: signalled() != 0,
                )
        except (folders.ClaimedError, whole_files.NotWrittenError) as error:
            complain(error)
            return 1
        except folders.StoppedError as stopped:
            complain(f"{stopped} in {folder}; the same command goes on from there")
            return 128 + (signalled() or signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            complain(f"stopped; the same command goes on from the last checkpoint in {folder}")
            return exit_code(interrupt)
        finally:
            data_parallel.end()
        measured = (
            ""
            if result["status"] == "diverged"
            else "test accuracy "
            if result.get("test_bits") is None
            else "test loss "
        )
        console.print(
            f"{config.run_id}  {measured}{outcome(result).strip()}\n{shown(folder)}", soft_wrap=True, markup=False
        )
        return 0
