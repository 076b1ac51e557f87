"""How the runs of a study get trained: a launcher is a frozen record of where and with how much.

- `Local`: a pool of worker processes on this machine, on its cores or on all its GPUs.
- `Slurm`: array jobs on a cluster, each of which is a local pool.
- `Torchrun`: one run at a time, data-parallel on several processes.
- `shard`: a part of the runs, for any other scheduler; it goes with every launcher.

All work on the same folders: what is finished is never trained again, and a run has one process at a time. Nothing here
imports torch.
"""

from regrow_lab.launch.choice import LauncherName, launcher_for
from regrow_lab.launch.local import Local, default_workers
from regrow_lab.launch.outcome import Launcher, Outcome, WorkerError
from regrow_lab.launch.shards import deal, shard
from regrow_lab.launch.slurm import Slurm
from regrow_lab.launch.torchrun import Torchrun

__all__ = [
    "Launcher",
    "LauncherName",
    "Local",
    "Outcome",
    "Slurm",
    "Torchrun",
    "WorkerError",
    "deal",
    "default_workers",
    "launcher_for",
    "shard",
]
