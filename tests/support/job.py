"""A training job as a user would start it on several ranks: it saves and goes on.

    torchrun tests/support/job.py FOLDER

A file "die" in the folder kills the last rank in the middle of the run, once.
"""

import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from nets import batch, mlp, sgd
from torch import nn

import regrow

STEPS, SAVE_EVERY, DIES_AT = 20, 4, 10


def job(rank: int, world: int, folder: Path) -> None:
    model = mlp()
    optimizer = sgd(model)
    sparsifier = regrow.attach(model, optimizer, regrow.rigl_sm(sparsity=0.8, total_steps=STEPS, every=3), strict=True)
    parts = {"model": model, "optimizer": optimizer, "sparsifier": sparsifier}
    checkpoint, done = folder / "checkpoint.pt", 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        done = saved.pop("done")
        for name, state in saved.items():
            parts[name].load_state_dict(state)
        if rank == 0:
            print(f"goes on at step {done}", flush=True)
    wrapped = nn.parallel.DistributedDataParallel(model)
    for step in range(done, STEPS):
        if step == DIES_AT and rank == world - 1 and (folder / "die").exists():
            (folder / "die").unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        inputs, targets = (part.chunk(world)[rank] for part in batch(step))
        nn.functional.cross_entropy(wrapped(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % SAVE_EVERY == 0 and rank == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            torch.save({**states, "done": step + 1}, folder / "new.pt")
            (folder / "new.pt").replace(checkpoint)


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    job(dist.get_rank(), dist.get_world_size(), Path(sys.argv[1]))
    dist.destroy_process_group()
