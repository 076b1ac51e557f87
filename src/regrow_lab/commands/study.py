"""`regrow study`, and what `regrow report` prints."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console

from regrow_lab.commands.dry_run import missing_data, print_dry_run
from regrow_lab.commands.estimate import check_cost
from regrow_lab.commands.report import print_claims, print_report
from regrow_lab.commands.signals import exit_code
from regrow_lab.config import RunConfig, check_seconds, data_name
from regrow_lab.launch import Launcher, LauncherName, Outcome, WorkerError, launcher_for, shard
from regrow_lab.launch.outcome import unfinished
from regrow_lab.launch.progress import progress_for
from regrow_lab.launch.slurm import Resources
from regrow_lab.store import folders
from regrow_lab.store.escaping import complain
from regrow_lab.studies import ALL, STUDIES, find_study, studies_of, study_runs, usual_storage


@dataclass(frozen=True)
class Study:
    """Do a study, by default on all cores, print its table and write its report; one that was stopped goes on."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(help=f"The study: {', '.join(STUDIES)}; or {ALL}.")]
    seeds: int = 3
    """Seeds of every setting, from 0."""
    workers: int | None = None
    """Processes, one thread each; by default one a core. On GPUs the runs that share each of them; by default 1."""
    launcher: LauncherName = "local"
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
    """Another data set than the study's own: cifar10-jpeg with a small net at the small scale, a folder of images, or
    package.module:load."""
    model: str | None = None
    """Another net than the study's own, by name or package.module:build."""
    method: str | None = None
    """One more method in the study's table and figures, by name or package.module:recipe."""
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
    dry_run: bool = False
    """Print the runs, how long they take here and the data that they need; train nothing."""
    yes: bool = False
    """Train at the paper's scale on a CPU, whatever it costs."""

    def __post_init__(self) -> None:
        check_seconds("checkpoint_seconds", self.checkpoint_seconds)

    def runner(self) -> Launcher:
        """The launcher that these options describe. Raises ValueError if it cannot work here."""
        return launcher_for(
            self.launcher,
            workers=self.workers,
            processes=self.processes,
            slurm=self.slurm,
            device=self.device,
            checkpoint_seconds=self.checkpoint_seconds,
        )

    def run(self) -> int:
        """Train what is not finished yet, then write the report."""
        if self.name == ALL:
            return run_studies(self)
        plan = planned(self, self.name, self.out)
        if self.dry_run:
            return dry_run(self, plan)
        check_data(self, plan)
        self.check_cost([plan])
        return run_plan(self, plan)

    def check_cost(self, plans: Sequence[Plan]) -> None:
        """Raise ValueError, with the cost, where it is large and was not agreed to."""
        if self.scale == "paper" and self.device == "cpu" and not self.yes:
            left = [run for plan in plans for run in unfinished(plan.mine, plan.out)]
            check_cost(left, [plan.out for plan in plans], self.runner().at_a_time)


@dataclass(frozen=True)
class Plan:
    """A study that can be done: its name and folder, its runs, those of them that this command is to train, and what
    study.json says of it."""

    name: str
    out: Path
    runs: Sequence[RunConfig]
    mine: Sequence[RunConfig]
    settings: Mapping[str, str]


def run_studies(options: Study) -> int:
    """Every study of the scale, one after another, and the page of claims; what cannot be done is said and left out."""
    out = Path("runs") / ALL if options.out is None else options.out
    plans, left_out = list[Plan](), dict[str, list[str]]()
    for name in studies_of(ALL, options.scale):
        try:
            plan = planned(options, name, out / name)
            if not options.dry_run:
                check_data(options, plan)
            plans.append(plan)
        except ValueError as error:
            left_out.setdefault(" ".join(str(error).split()), []).append(name)
    for why, names in left_out.items():
        complain(f"{_listed(names)} {'is' if len(names) == 1 else 'are'} left out: {why}")
    worst = 1 if left_out else 0
    if options.dry_run:
        return max([worst, *(dry_run(options, plan) for plan in plans)])
    options.check_cost(plans)
    for plan in plans:
        print(f"== {plan.name}")
        try:
            code = run_plan(options, plan)
        except ValueError as error:
            complain(f"{plan.name} is left out: {error}")
            code = 1
        if code > 128:
            return code
        worst = max(worst, code)
    print_claims(out)
    return worst


def planned(options: Study, name: str, out: Path | None) -> Plan:
    """What is to be done of one study. Raises ValueError if that cannot be; nothing is written."""
    if options.data_dir is not None:
        if not options.data_dir.is_dir():
            raise ValueError(f"{options.data_dir} is no folder: give the folder of all data with --data-dir")
        os.environ["REGROW_DATA"] = str(options.data_dir.resolve())  # the workers inherit it
    data = _data(options, name)
    own = {"model": options.model, "method": options.method}
    runs = study_runs(name, options.seeds, options.scale, data, model=options.model, method=options.method)
    storage = usual_storage(runs, options.device) if options.storage is None else options.storage
    precision = _precision(options)
    if storage != "dense" or precision is not None:
        runs = study_runs(name, options.seeds, options.scale, data, storage, precision, **own)
    options.runner().check()
    mine = runs if options.shard is None else shard(runs, options.shard)
    out = Path("runs") / find_study(name).name if out is None else out
    settings = {"scale": options.scale, "data": data or "", "storage": storage, "precision": precision or ""}
    settings |= {what: given or "" for what, given in own.items()}
    return Plan(name, out, runs, mine, settings)


def dry_run(options: Study, plan: Plan) -> int:
    """Print what would be done of one study; returns 1 where its data are missing."""
    title = f"{plan.name}, scale {options.scale}"
    there = print_dry_run(title, plan.mine, plan.out, options.device, options.runner().at_a_time)
    study = find_study(plan.name)
    print(f"cost: {study.cost}\nexpected: {study.expected}\n")
    return 0 if there else 1


def check_data(options: Study, plan: Plan) -> None:
    """Raise ValueError for data that are missing; of jobs that run elsewhere it is only said."""
    missing = missing_data(unfinished(plan.mine, plan.out))
    if missing and options.launcher != "slurm":
        raise ValueError("; ".join(missing))
    for each in missing:
        complain(f"note: {each}; the jobs need it where they run")


def run_plan(options: Study, plan: Plan) -> int:
    """Train what is not finished yet of one study, then write its report."""
    folders.open_study(plan.out, plan.name, options.seeds, **plan.settings)
    began = time.monotonic()
    try:
        done = options.runner().launch(plan.mine, plan.out, progress_for(Console()))
    except WorkerError as error:
        complain(f"{error}; the same command goes on once that is mended")
        return 1
    except KeyboardInterrupt as interrupt:
        finished = len(plan.mine) - len(unfinished(plan.mine, plan.out))
        complain(f"stopped with {finished} of {len(plan.mine)} runs finished; the same command goes on from there")
        return exit_code(interrupt)
    left = len(unfinished(plan.runs, plan.out))
    if options.shard is None or not left:
        print_report(plan.out)
    else:
        print(f"shard {options.shard} is done, {left} of the study's {len(plan.runs)} runs are not: no report yet")
    return _say_outcome(plan.mine, done, time.monotonic() - began)


def _precision(options: Study) -> str | None:
    """The precision asked for, `auto` resolved on this machine."""
    if options.precision != "auto":
        return options.precision
    from regrow_lab.run.machine import device_named, gains_from_bf16

    return "bf16" if gains_from_bf16(device_named(options.device)) else "float32"


def _say_outcome(runs: Sequence[RunConfig], done: Outcome, seconds: float) -> int:
    print(
        f"{len(runs)} runs: {done.before} finished before, {done.finished} now in {seconds:.0f} s, "
        f"{len(done.failed)} failed"
    )
    for run_id in done.diverged:
        print(f"diverged: {run_id}")
    for why, run_ids in done.reasons().items():
        more = f" and {len(run_ids) - 1} more" if len(run_ids) > 1 else ""
        complain(f"{run_ids[0]}{more} failed: {why}")
    return 1 if done.failed else 0


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence has them.

    >>> _listed(["a"]), _listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _data(options: Study, name: str) -> str | None:
    takes_others = find_study(name).other_images
    if options.data is not None:
        return data_name(options.data) if options.name != ALL or takes_others else None
    return "cifar10-jpeg" if options.data_dir and options.scale == "small" and takes_others else None
