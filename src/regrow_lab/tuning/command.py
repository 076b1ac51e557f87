"""What `regrow tune` does, once its options are read."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from regrow_lab import store
from regrow_lab.launch import WorkerError, default_workers
from regrow_lab.tuning.problem import problems
from regrow_lab.tuning.search import Search, search

if TYPE_CHECKING:
    from regrow_lab.cli import Tune


def run_tune(options: Tune) -> int:
    """Do the searches that are not done yet, then write the report."""
    wanted = problems(
        options.name,
        options.seeds,
        scale=options.scale,
        data=options.data,
        sparsities=options.sparsities,
        distributions=options.distributions,
    )
    workers = default_workers() if options.workers is None else options.workers
    for name, value in (("workers", workers), ("trials", options.trials), ("heartbeat", options.heartbeat_seconds)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, given {value}")
    if options.device != "cpu":
        from regrow_lab.machine import device_named

        device_named(options.device)
    is_grid = bool(wanted[0].grid)
    out = options.out or Path("runs") / (options.name if is_grid else f"tune-{options.name}")
    told = Search(
        name=options.study_name or out.name,
        directory=out,
        url=options.storage,
        trials=len(wanted[0].grid) or options.trials,
        prune=options.prune,
        seed=options.seed,
        device=options.device,
        checkpoint_seconds=options.checkpoint_seconds,
        heartbeat_seconds=options.heartbeat_seconds,
    )
    if options.storage is not None:
        from regrow_lab.tuning.storage import open_storage

        open_storage(options.storage, out, options.heartbeat_seconds)  # refused before anything is written
    study = options.name if is_grid else f"tune-{options.name}"
    base = wanted[0].base
    own = {"storage": "dense"} if is_grid else {"reference": {"alpha": base.drop_fraction, "every": base.every}}
    store.open_study(out, study, options.seeds, scale=options.scale, data=options.data or "", **own)
    began = time.monotonic()
    try:
        search(told, wanted, workers, lambda line: print(line, flush=True))
    except WorkerError as error:
        print(f"regrow: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("regrow: stopped; the same command goes on from there", file=sys.stderr)
        return 130
    from regrow_lab.study_command import print_report

    try:
        print_report(out)
    except ValueError as error:  # of a search on several machines each folder has a part
        print(f"no report here: {' '.join(str(error).split())}")
    print(f"{len(wanted)} searches of {told.trials} trials, {time.monotonic() - began:.0f} s on {workers} workers")
    return 0
