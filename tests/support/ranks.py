"""Ranks for tests: processes that talk over gloo, and the recipes that they train with."""

import faulthandler
import multiprocessing
import socket
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as mp

import regrow

EVERY = 3
_dynamic = {"sparsity": 0.8, "total_steps": 40, "every": EVERY}
RECIPES = {
    "static": regrow.static(sparsity=0.8),
    "set": regrow.set_(**_dynamic),
    "rigl": regrow.rigl(**_dynamic),
    "snfs": regrow.snfs(**_dynamic),
    "rigl-sg": regrow.rigl_sg(**_dynamic),
    "rigl-sm": regrow.rigl_sm(**_dynamic),
    "pruning": regrow.gradual_pruning(start=3, **_dynamic),
    "snip": regrow.snip(sparsity=0.8),
}
Work = Callable[[int, int, Path], None]
"""What a rank does, told its number, how many there are, and a folder for what it finds."""

# Ranks are forked from one process that has imported all this: torch is imported once, not once a rank.
multiprocessing.set_forkserver_preload(["torch._dynamo", "torch.distributed.checkpoint", "torch.distributed.fsdp"])


def launch(work: Work, world: int, folder: Path) -> None:
    """Runs ``work`` on every rank; the first exception of any ends all of them and is raised here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    mp.start_processes(_rank, args=(work, world, port, folder), nprocs=world, start_method="forkserver")


def _rank(rank: int, work: Work, world: int, port: int, folder: Path) -> None:
    faulthandler.enable()  # one rank in a few hundred launches has died in native code: its threads shall say where
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    work(rank, world, folder)
    torch.distributed.destroy_process_group()
