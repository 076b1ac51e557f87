"""Sparse training of neural networks: train a run, do a study, count FLOPs, rebuild a report."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from regrow_lab import store
from regrow_lab.config import RunConfig, check_seconds
from regrow_lab.data_command import Data
from regrow_lab.launch import Launcher, Local, Slurm, Torchrun, default_workers
from regrow_lab.launch.slurm import Resources
from regrow_lab.progress import epoch_lines, outcome
from regrow_lab.signals import asking_to_stop, exit_code, terminating
from regrow_lab.studies import ALL
from regrow_lab.study_command import print_report, run_studies, run_study

# torch takes seconds to import: only a command that needs it imports it, inside its run().


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
        if config.method != "dense" and not config.sparsity:
            raise ValueError(f"method {config.method} needs a sparsity: add --sparsity 0.9, or choose --method dense")
        if self.threads < 1:
            raise ValueError(f"threads must be 1 or more, given {self.threads}")
        import torch

        from regrow_lab import ranks
        from regrow_lab.train import train

        torch.set_num_threads(self.threads)
        folder = store.run_folder(self.out, config)
        device = ranks.begin(self.device)
        console = Console(highlight=False, quiet=ranks.rank() > 0)
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
        except (store.ClaimedError, store.NotWrittenError) as error:
            print(f"regrow: {error}", file=sys.stderr)
            return 1
        except store.StoppedError as stopped:
            print(f"regrow: {stopped} in {folder}; the same command goes on from there", file=sys.stderr)
            return 128 + (signalled() or signal.SIGTERM)
        except KeyboardInterrupt as interrupt:
            print(f"regrow: stopped; the same command goes on from the last checkpoint in {folder}", file=sys.stderr)
            return exit_code(interrupt)
        finally:
            ranks.end()
        measured = (
            ""
            if result["status"] == "diverged"
            else "test accuracy "
            if result.get("test_bits") is None
            else "test loss "
        )
        console.print(f"{config.run_id}  {measured}{outcome(result).strip()}\n{folder}", soft_wrap=True)
        return 0


@dataclass(frozen=True)
class Study:
    """Do a study, by default on all cores, print its table and write its report; one that was stopped goes on."""

    name: tyro.conf.Positional[str]
    """The study: digits, cifar10, table1, table2, table3, table5, figure3, figure4, struct, tickets, charlm; or all."""
    seeds: int = 3
    """Seeds of every setting, from 0."""
    workers: int | None = None
    """Processes, one thread each; by default one a core. On GPUs the runs that share each of them; by default 1."""
    launcher: Literal["local", "slurm", "torchrun"] = "local"
    """Where the runs are trained: on this machine; in jobs of SLURM; or one after another, each on all `processes`."""
    shard: str | None = None
    """i/n: do only part i of n, for schedulers that the lab does not know. The parts share one folder."""
    processes: int = 2
    """Processes of a data-parallel run, with the launcher torchrun."""
    slurm: Resources = field(default_factory=Resources)
    """What each job asks SLURM for, with the launcher slurm."""
    out: Path | None = None
    """Folder for the study. By default runs/NAME; all studies have a folder each in it."""
    scale: str = "small"
    """small: minutes to hours on a few cores. paper: the paper's nets, data and epochs, for a GPU."""
    data: str | None = None
    """Another data set than the study's own: cifar10-jpeg with a small net at the small scale, for instance."""
    data_dir: Path | None = None
    """Folder of all data, in place of $REGROW_DATA. At the small scale the data are then cifar10-jpeg."""
    storage: Literal["dense", "compact"] | None = None
    """dense, or compact: only alive weights exist, for the methods that can. By default compact for CIFAR on a CPU."""
    device: str = "cpu"
    """Where the nets and the data live: cpu, cuda for every GPU, cuda:1 for one of them."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints of a run."""

    def __post_init__(self) -> None:
        check_seconds("checkpoint_seconds", self.checkpoint_seconds)

    def runner(self) -> Launcher:
        """The launcher that these options describe. Raises ValueError if it cannot work here."""
        if self.launcher == "torchrun":
            return Torchrun(processes=self.processes, device=self.device, checkpoint_seconds=self.checkpoint_seconds)
        on_slurm = self.launcher == "slurm"
        usual = 1 if self.device != "cpu" else self.slurm.cpus if on_slurm else default_workers()
        workers = usual if self.workers is None else self.workers
        pool = Local(workers=workers, device=self.device, checkpoint_seconds=self.checkpoint_seconds)
        return Slurm(resources=self.slurm, pool=pool) if on_slurm else pool

    def run(self) -> int:
        """Train what is not finished yet, then write the report."""
        return run_studies(self) if self.name == ALL else run_study(self, self.name, self.out)


@dataclass(frozen=True)
class Tune:
    """Search for the best alpha and dT of RigL with TPE, by validation accuracy; or run the grid of figure3 so."""

    name: tyro.conf.Positional[str]
    """The data to tune on: digits, digits-images, cifar10 or cifar10-jpeg; or figure3."""
    trials: int | None = None
    """Trials of each search, by default 15; the first is the reference (alpha .3, dT 100). figure3 has one a point."""
    seeds: int = 3
    """Seeds of every trial."""
    sparsities: tuple[float, ...] = ()
    """A search for each; by default .9, .8 and .5."""
    distributions: tuple[str, ...] = ()
    """A search for each; by default uniform and erk."""
    prune: bool = False
    """Give trials up that are among the worst quarter after a seed."""
    workers: int | None = None
    """Processes, one thread each; by default one a core. On GPUs the trials that share each of them; by default 1."""
    storage: str | None = None
    """postgresql://USER@HOST/NAME, for workers on several machines; by default a journal in the folder. The password
    stands in ~/.pgpass, PGPASSWORD or, where others see it, behind USER: in the address."""
    study_name: Annotated[str | None, tyro.conf.arg(name="name")] = None
    """Name of the search in the storage; by default that of the folder."""
    out: Path | None = None
    """Folder of the runs. By default runs/tune-NAME, for figure3 runs/figure3."""
    scale: str = "small"
    """small, or paper: the paper's nets, data and epochs, for a GPU."""
    data: str | None = None
    """Another data set for figure3."""
    seed: int = 0
    """Seed of the sampler."""
    device: str = "cpu"
    """Where the nets and the data live: cpu, cuda for every GPU, cuda:1 for one of them."""
    checkpoint_seconds: float = 30.0
    """Time between two checkpoints of a run."""
    heartbeat_seconds: int = 60
    """Time between two signs of life of a worker; after twice that another takes its trial."""

    def __post_init__(self) -> None:
        check_seconds("checkpoint_seconds", self.checkpoint_seconds)

    def run(self) -> int:
        """Do the searches, then write the table and the contours."""
        from regrow_lab.tuning.command import run_tune

        return run_tune(self)


@dataclass(frozen=True)
class Flops:
    """Count the FLOPs of a model, dense and sparse, for one sample and for training, without training it."""

    model: tyro.conf.Positional[str]
    """The model, by name."""
    sparsity: float | None = None
    """Share of zero weights. By default 0.9 (0 for dense)."""
    distribution: str | None = None
    """uniform, er or erk. By default erk where the method takes one."""
    method: str = "rigl"
    """The method, by name."""
    every: int = 100
    """Steps between two updates of the masks (dT)."""
    total_steps: int = 88_000
    """Steps of the whole training, which gradual pruning averages over."""
    pruning_start: float = 700 / 88_000
    """Share of the training before gradual pruning begins."""
    json: bool = False
    """Print JSON."""

    def run(self) -> int:
        """Print the numbers."""
        sparsity = self.sparsity if self.sparsity is not None else 0.0 if self.method == "dense" else 0.9
        config = RunConfig(
            model=self.model,
            method=self.method,
            sparsity=sparsity,
            distribution=self.distribution,
            every=self.every,
            pruning_start=self.pruning_start,
        )
        if self.total_steps < 1:
            raise ValueError(f"total_steps must be 1 or more, given {self.total_steps}")
        from regrow_lab.accounting import account, in_words

        counted = account(config, self.total_steps)
        print(json.dumps(counted) if self.json else in_words(counted))
        return 0


@dataclass(frozen=True)
class Report:
    """Rebuild the tables and figures of a folder of runs from what is stored in it; of a folder of studies those of
    each, and claims.md: the report's questions against what the runs show."""

    directory: tyro.conf.Positional[Path]
    """Folder that `regrow study` or `regrow train` wrote, or a folder of several studies."""

    def run(self) -> int:
        """Write the report and print its table."""
        print_report(self.directory)
        return 0


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Study, tyro.conf.subcommand("study")]
    | Annotated[Tune, tyro.conf.subcommand("tune")]
    | Annotated[Flops, tyro.conf.subcommand("flops")]
    | Annotated[Report, tyro.conf.subcommand("report")]
    | Annotated[Data, tyro.conf.subcommand("data")]
)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line: returns 0, 1 where a run failed, 2 for a slip of the user, 130 or 143 where it was stopped."""
    try:
        with terminating():
            code = _parse(arguments).run()
        sys.stdout.flush()
        return code
    except (store.NotWrittenError, store.LostError) as error:
        print(f"regrow: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # whoever read the output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f"{error.filename} cannot be used" if error.filename else "it cannot be done"
        print(f"regrow: {where} ({error.strerror or error}): give another file or folder", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"regrow: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as interrupt:
        print("regrow: stopped", file=sys.stderr)
        return exit_code(interrupt)


def _parse(arguments: Sequence[str] | None) -> Train | Study | Tune | Flops | Report | Data:
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(Command, prog="regrow", description=__doc__, args=arguments)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ValueError(_without_box(complaint.getvalue())) from None


def _without_box(text: str) -> str:
    """What tyro says in a box of several lines and ruled-off parts, as one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    lines = [line.strip("│╰╯ ") for line in plain.splitlines()[1:]]
    parts = (" ".join(part) for is_rule, part in groupby(lines, lambda line: not line.strip("─-")) if not is_rule)
    return "; ".join(part.rstrip(".") for part in parts)
