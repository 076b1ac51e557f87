"""`regrow tune`: the searches, then the table and the picture of the trials."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from regrow_lab.commands.dry_run import missing_data
from regrow_lab.commands.estimate import check_cost
from regrow_lab.commands.report import print_report
from regrow_lab.commands.signals import exit_code
from regrow_lab.config import check_seconds, data_name
from regrow_lab.launch import Launcher, LauncherName, WorkerError, launcher_for
from regrow_lab.launch.progress import SearchProgress, counted
from regrow_lab.launch.slurm import Resources
from regrow_lab.store import folders
from regrow_lab.store.escaping import complain, one_line
from regrow_lab.studies.table4 import Problem, problems

TRIALS = 15


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
    """Give up trials that are among the worst quarter after one of their seeds."""
    workers: int | None = None
    """Processes, one thread each; by default one a core. On GPUs the runs that share each of them; by default 1."""
    launcher: LauncherName = "local"
    """Where the runs are trained: on this machine; in jobs of SLURM; or one after another, each on all `processes`."""
    processes: int = 2
    """Processes of a data-parallel run, with the launcher torchrun."""
    slurm: Resources = field(default_factory=Resources)
    """What each job asks SLURM for, with the launcher slurm."""
    storage: str | None = None
    """postgresql://USER@HOST/NAME or sqlite:///FILE, for commands on several machines; by default a file in the folder,
    for one command at a time. The password stands in ~/.pgpass, PGPASSWORD or, where others see it, behind USER: in the
    address."""
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
    """Time between two signs of life of a command in a shared storage; after twice that others take its trials."""

    yes: bool = False
    """Train at the paper's scale on a CPU, whatever it costs."""

    def __post_init__(self) -> None:
        check_seconds("checkpoint_seconds", self.checkpoint_seconds)
        if self.data is not None:
            object.__setattr__(self, "data", data_name(self.data))

    def run(self) -> int:
        """Do the searches that are not done yet, then write the report."""
        wanted = problems(
            self.name,
            self.seeds,
            scale=self.scale,
            data=self.data,
            sparsities=self.sparsities,
            distributions=self.distributions,
        )
        grid = wanted[0].grid
        if grid and self.trials is not None:
            raise ValueError(f"{self.name} is a grid of {len(grid)} points, each a trial: leave out --trials")
        trials = len(grid) or (TRIALS if self.trials is None else self.trials)
        for name, value in (("trials", trials), ("heartbeat", self.heartbeat_seconds)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, given {value}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more, given {self.seed}")
        launcher = launcher_for(
            self.launcher,
            workers=self.workers,
            processes=self.processes,
            slurm=self.slurm,
            device=self.device,
            checkpoint_seconds=self.checkpoint_seconds,
        )
        launcher.check()
        study = self.name if grid else f"tune-{self.name}"
        out = self.out or Path("runs") / study
        self._check_seeds(study, out)
        for each in missing_data([problem.base for problem in wanted]):
            if self.launcher != "slurm":
                raise ValueError(each)
            complain(f"note: {each}; the jobs need it where they run")
        if self.scale == "paper" and self.device == "cpu" and not self.yes:
            of_one_seed = [run for each in wanted for run in each.grid or [each.base] * trials]
            check_cost(of_one_seed * self.seeds, [out], launcher.at_a_time)
        from regrow_lab.commands.tune.trials import SearchError  # Optuna takes its time to be imported

        began = time.monotonic()
        try:
            self._search(study, out, trials, wanted, launcher)
            code = _report(out, alone=self.storage is None)
        except KeyboardInterrupt as interrupt:
            complain("stopped; the same command goes on from there")
            return exit_code(interrupt)
        except (SearchError, WorkerError) as error:
            return _failed(error)
        print(f"{counted(len(wanted), 'search', 'es')} of {counted(trials, 'trial')}, {time.monotonic() - began:.0f} s")
        return code

    def _search(self, study: str, out: Path, trials: int, wanted: Sequence[Problem], launcher: Launcher) -> None:
        from regrow_lab.commands.tune.optuna_storage import address_of, is_there, open_storage
        from regrow_lab.commands.tune.search import refuse_others, search
        from regrow_lab.commands.tune.trials import Settings

        settings = Settings(
            name=self.study_name or out.name,
            directory=out,
            trials=trials,
            prune=self.prune,
            seed=self.seed,
            alone=self.storage is None,
            heartbeat_seconds=self.heartbeat_seconds,
        )
        address = address_of(self.storage, out)
        if is_there(address):
            refuse_others(settings, wanted, open_storage(address, self.heartbeat_seconds))
        base = wanted[0].base
        reference = {"reference": {"alpha": base.drop_fraction, "every": base.every}}
        own: dict[str, Any] = {"storage": "dense"} if wanted[0].grid else reference
        folders.open_study(out, study, self.seeds, scale=self.scale, data=self.data or "", **own)
        with ExitStack() as held:
            if settings.alone:
                try:
                    held.enter_context(folders.claim(out / "tune"))
                except folders.ClaimedError as claimed:
                    raise ValueError(f"{out}: {claimed}: wait for it, or share a database with --storage") from None
            storage = open_storage(address, self.heartbeat_seconds)
            search(settings, wanted, storage, launcher, SearchProgress(Console()))

    def _check_seeds(self, study: str, out: Path) -> None:
        """Refuse another number of seeds in a folder: its report could not tell the trials of two searches apart."""
        begun = folders.read_study(out)
        seeds = begun.get("seeds", self.seeds)
        if study != self.name and begun.get("study") == study and seeds != self.seeds:
            raise ValueError(
                f"{out} holds a search with {counted(seeds, 'seed')} a trial, given {self.seeds}: give --seeds {seeds} "
                "or another folder with --out"
            )


def _report(out: Path, alone: bool) -> int:
    try:
        print_report(out)
    except ValueError as error:
        if alone:
            return _failed(error)
        # Of a search on several machines each folder has a part.
        print(f"no report here: {one_line(error)}")
    return 0


def _failed(error: Exception) -> int:
    complain(error)
    return 1
