"""`regrow tune`: the searches, then the table and the contours."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from regrow_files import shown
from regrow_lab import store
from regrow_lab.config import RunConfig, check_seconds, data_name
from regrow_lab.escaping import complain, one_line
from regrow_lab.launch import Local, WorkerError, default_workers
from regrow_lab.signals import exit_code
from regrow_lab.tuning.errors import in_a_line
from regrow_lab.tuning.problem import Problem, problems
from regrow_lab.tuning.search import Search, refuse_others

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
        if self.data is not None:
            object.__setattr__(self, "data", data_name(self.data))

    def run(self) -> int:
        """Do the searches, then write the table and the contours."""
        return run_tune(self)


def run_tune(options: Tune) -> int:
    """Do the searches that are not done yet, then write the report."""
    from regrow_lab.tuning.pool import search  # optuna takes its time to be imported

    wanted = problems(
        options.name,
        options.seeds,
        scale=options.scale,
        data=options.data,
        sparsities=options.sparsities,
        distributions=options.distributions,
    )
    usual = default_workers() if options.device == "cpu" else 1
    workers = usual if options.workers is None else options.workers
    told = _told(options, wanted)
    pool = Local(workers=workers, device=options.device)
    pool.check()
    _check_seeds(options, wanted, told.directory)
    _check_data([problem.base for problem in wanted])
    began = time.monotonic()
    try:
        refuse_others(told, wanted)
        _open(options, wanted, told.directory)
        search(told, wanted, workers, lambda line: print(shown(line), flush=True))
    except KeyboardInterrupt as interrupt:
        complain("stopped; the same command goes on from there")
        return exit_code(interrupt)
    except (ValueError, OSError):  # a wish that cannot be granted, a disk that takes no more
        raise
    except WorkerError as error:
        return _failed(str(error))
    except Exception as error:  # a database may raise anything
        return _failed(in_a_line(error, told.directory))
    code = _report(told)
    searches, processes = _counted(len(wanted), "search", "es"), _counted(len(pool.devices()), "worker")
    print(f"{searches} of {_counted(told.trials, 'trial')}, {time.monotonic() - began:.0f} s on {processes}")
    return code


def _told(options: Tune, wanted: Sequence[Problem]) -> Search:
    grid = wanted[0].grid
    if grid and options.trials is not None:
        raise ValueError(f"{options.name} is a grid of {len(grid)} points, each a trial: leave out --trials")
    trials = TRIALS if options.trials is None else options.trials
    for name, value in (("trials", trials), ("heartbeat", options.heartbeat_seconds)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, given {value}")
    if options.seed < 0:
        raise ValueError(f"seed must be 0 or more, given {options.seed}")
    out = options.out or Path("runs") / (options.name if grid else f"tune-{options.name}")
    return Search(
        name=options.study_name or out.name,
        directory=out,
        url=options.storage,
        trials=len(grid) or trials,
        prune=options.prune,
        seed=options.seed,
        device=options.device,
        checkpoint_seconds=options.checkpoint_seconds,
        heartbeat_seconds=options.heartbeat_seconds,
    )


def _check_data(runs: Sequence[RunConfig]) -> None:
    """Raise ValueError if the data are not here or cannot be used, before anything is written."""
    import torch

    from regrow_lab.data import load_data

    load_data(runs[0].data, torch.device("cpu"), runs[0].image_size).parts(runs[0])


def _study(options: Tune, wanted: Sequence[Problem]) -> str:
    return options.name if wanted[0].grid else f"tune-{options.name}"


def _check_seeds(options: Tune, wanted: Sequence[Problem], out: Path) -> None:
    """Refuse another number of seeds in one folder: its report could not tell the trials of the two searches apart."""
    begun = store.read_study(out)
    seeds = begun.get("seeds", options.seeds)
    if not wanted[0].grid and begun.get("study") == _study(options, wanted) and seeds != options.seeds:
        raise ValueError(
            f"{out} holds a search with {_counted(seeds, 'seed')} a trial, given {options.seeds}: give --seeds {seeds} "
            "or another folder with --out"
        )


def _open(options: Tune, wanted: Sequence[Problem], out: Path) -> None:
    base, grid = wanted[0].base, wanted[0].grid
    own = {"storage": "dense"} if grid else {"reference": {"alpha": base.drop_fraction, "every": base.every}}
    store.open_study(out, _study(options, wanted), options.seeds, scale=options.scale, data=options.data or "", **own)


def _report(told: Search) -> int:
    from regrow_lab.study_command import print_report

    try:
        print_report(told.directory)
    except ValueError as error:
        if told.url is None:
            return _failed(str(error))
        # Of a search on several machines each folder has a part.
        print(f"no report here: {one_line(error)}")
    return 0


def _failed(line: str) -> int:
    complain(line)
    return 1


def _counted(number: int, what: str, ending: str = "s") -> str:
    return f"{number} {what}{'' if number == 1 else ending}"
