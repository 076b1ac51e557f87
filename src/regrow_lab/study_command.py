"""`regrow study`, and what `regrow report` prints."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from regrow_files import shown
from regrow_lab import store
from regrow_lab.config import RunConfig, check_seconds, data_name
from regrow_lab.escaping import complain
from regrow_lab.launch import Launcher, Local, Outcome, Slurm, Torchrun, WorkerError, default_workers, shard
from regrow_lab.launch.outcome import unfinished
from regrow_lab.launch.slurm import Resources
from regrow_lab.progress import progress_for
from regrow_lab.signals import exit_code
from regrow_lab.studies import ALL, studies_of, study_runs, usual_storage

OF_IMAGES = ("table1", "table2", "table3", "table5", "figure3", "figure4", "struct", "saliency", "storages")
"""Studies that --data-dir turns to cifar10-jpeg at the small scale, and that --data is for where all are done."""


@dataclass(frozen=True)
class Study:
    """Do a study, by default on all cores, print its table and write its report; one that was stopped goes on."""

    name: tyro.conf.Positional[str]
    """The study: digits, cifar10, table1, table2, table3, table5, figure3, figure4, struct, tickets, charlm,
    saliency, storages; or all."""
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
    precision: Literal["float32", "bf16", "auto"] | None = None
    """float32; bf16: autocast of the forward pass; auto: bf16 where the device multiplies in it, faster for all but
    tiny nets. By default as the study says."""
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


def run_studies(options: Study) -> int:
    """Every study of the scale, one after another, and the page of claims; what cannot be done is said and left out."""
    out = Path("runs") / ALL if options.out is None else options.out
    worst = 0
    for name in studies_of(ALL, options.scale):
        print(f"== {name}")
        try:
            code = run_study(options, name, out / name)
        except ValueError as error:
            complain(f"{name} is left out: {error}")
            code = 1
        if code > 128:
            return code
        worst = max(worst, code)
    _print_claims(out)
    return worst


def run_study(options: Study, name: str, out: Path | None) -> int:
    """Train what is not finished yet of one study, then write its report."""
    if options.data_dir is not None:
        if not options.data_dir.is_dir():
            raise ValueError(f"{options.data_dir} is no folder: give the folder of all data with --data-dir")
        os.environ["REGROW_DATA"] = str(options.data_dir.resolve())  # the workers inherit it
    data = _data(options, name)
    runs = study_runs(name, options.seeds, options.scale, data)
    storage = usual_storage(runs, options.device) if options.storage is None else options.storage
    precision = _precision(options)
    if storage != "dense" or precision is not None:
        runs = study_runs(name, options.seeds, options.scale, data, storage, precision)
    launcher = options.runner()
    launcher.check()
    mine = runs if options.shard is None else shard(runs, options.shard)
    out = Path("runs") / name if out is None else out
    settings = {"scale": options.scale, "data": data or "", "storage": storage, "precision": precision or ""}
    store.open_study(out, name, options.seeds, **settings)
    began = time.monotonic()
    try:
        done = launcher.launch(mine, out, progress_for(Console()))
    except WorkerError as error:
        complain(f"{error}; the same command goes on once that is mended")
        return 1
    except KeyboardInterrupt as interrupt:
        finished = len(mine) - len(unfinished(mine, out))
        complain(f"stopped with {finished} of {len(mine)} runs finished; the same command goes on from there")
        return exit_code(interrupt)
    left = len(unfinished(runs, out))
    if options.shard is None or not left:
        print_report(out)
    else:
        print(f"shard {options.shard} is done, {left} of the study's {len(runs)} runs are not: no report yet")
    return _say_outcome(mine, done, time.monotonic() - began)


def _precision(options: Study) -> str | None:
    """The precision asked for, `auto` resolved on this machine."""
    if options.precision != "auto":
        return options.precision
    from regrow_lab.machine import device_named, gains_from_bf16

    return "bf16" if gains_from_bf16(device_named(options.device)) else "float32"


def _say_outcome(runs: Sequence[RunConfig], done: Outcome, seconds: float) -> int:
    print(
        f"{len(runs)} runs: {done.before} finished before, {done.finished} now in {seconds:.0f} s, "
        f"{len(done.failed)} failed"
    )
    for run_id in done.diverged:
        print(f"diverged: {run_id}")
    for run_id, why in done.failed.items():
        complain(f"{run_id} failed: {why}")
    return 1 if done.failed else 0


def print_report(directory: Path) -> None:
    """Write and print the report of a folder of runs; of a folder of studies each one's, and the page of claims."""
    from regrow_lab.report import write_report
    from regrow_lab.study_report import study_folders
    from regrow_lab.tuning.report import is_search, write_tuning_report

    folders = study_folders(directory)
    for folder in folders or [directory]:
        try:
            print(write_tuning_report(folder) if is_search(folder) else write_report(folder))
            print(f"report: {shown(folder / 'report')}")
        except ValueError as error:
            if not folders:
                raise
            complain(error)
    if folders:
        _print_claims(directory)


def _print_claims(directory: Path) -> None:
    from regrow_lab.study_report import write_claims

    print(f"claims: {shown(write_claims(directory))}")


def _data(options: Study, name: str) -> str | None:
    if options.data is not None:
        return data_name(options.data) if options.name != ALL or name in OF_IMAGES else None
    return "cifar10-jpeg" if options.data_dir and options.scale == "small" and name in OF_IMAGES else None
