"""The launcher that the options of a command describe."""

from __future__ import annotations

from typing import Literal

from regrow_lab.launch.local import Local, default_workers
from regrow_lab.launch.outcome import Launcher
from regrow_lab.launch.slurm import Resources, Slurm
from regrow_lab.launch.torchrun import Torchrun

LauncherName = Literal["local", "slurm", "torchrun"]


def launcher_for(
    name: LauncherName, *, workers: int | None, processes: int, slurm: Resources, device: str, checkpoint_seconds: float
) -> Launcher:
    """The launcher of this name, unchecked; `workers` is by default one a core, and one on each GPU."""
    if name == "torchrun":
        return Torchrun(processes=processes, device=device, checkpoint_seconds=checkpoint_seconds)
    usual = 1 if device != "cpu" else slurm.cpus if name == "slurm" else default_workers()
    pool = Local(workers=usual if workers is None else workers, device=device, checkpoint_seconds=checkpoint_seconds)
    return Slurm(resources=slurm, pool=pool) if name == "slurm" else pool
