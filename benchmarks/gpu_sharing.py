"""Runs an hour of WRN-22-2 with 1, 2, 4 and 8 runs sharing one GPU.

    python benchmarks/gpu_sharing.py [--share 1 2 4 8] [--epochs 2]

Needs a CUDA device. The images are random ones in CIFAR-10's form (the speed does not know); every run trains WRN-22-2
with RigL at S = .9 and batch 128 for some epochs. An hour's runs are those of 250 epochs at that speed.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from throughput import write_random_cifar

from regrow_lab.config import RunConfig
from regrow_lab.launch import Local
from regrow_lab.launch.progress import PlainProgress

EPOCHS = 250


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("gpu_sharing: needs a CUDA device, here is none")
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"REGROW_DATA": folder, "XDG_CACHE_HOME": f"{folder}/cache"}
        write_random_cifar(Path(folder))
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
        print(f"{'sharing':>7} {'s an epoch':>11} {'runs/hour':>10}")
        for share in options.share:
            seconds = [measure(Path(folder) / f"{share}-{epochs}", share, epochs) for epochs in (1, 1 + options.epochs)]
            epoch = (seconds[1] - seconds[0]) / options.epochs  # what the start took is in both
            print(f"{share:>7} {epoch:>11.2f} {share * 3600 / (epoch * EPOCHS):>10.2f}", flush=True)


def measure(folder: Path, share: int, epochs: int) -> float:
    """Wall time of `share` runs side by side."""
    runs = [
        RunConfig(
            model="wrn-22-2",
            data="cifar10",
            method="rigl",
            sparsity=0.9,
            every=100,
            batch_size=128,
            augmentation="crop-flip",
            precision="bf16",
            epochs=epochs,
            seed=seed,
        )
        for seed in range(share)
    ]
    began = time.perf_counter()
    outcome = Local(workers=share, device="cuda:0").launch(runs, folder, PlainProgress(Console(quiet=True)))
    assert outcome.finished == share, outcome.failed
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
