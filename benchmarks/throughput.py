"""Images a second of the lab's training loop beside a plain PyTorch loop over a DataLoader, interleaved in one run.

    python benchmarks/throughput.py [--model wrn-16-1] [--rounds 5] [--steps 20] [--threads 2] [--sparsity 0.9]
                                    [--only lab] [--compiled]

Both train the same net with SGD on random images of CIFAR-10's size, batch 128, with reflect-pad crops and flips. The
plain loop is what a tutorial writes: float32, one image after another cropped in a Dataset, DataLoader workers or none,
the default optimizer. Every round times some steps of each loop, in an order that rotates; ratios are taken within a
round and printed as min – median – max. The RigL rows train at the sparsity given (ERK), with masks and with alive
weights alone; the others train the dense net. `--only` leaves out the rows without these words.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

BATCH = 128
WARM_UP = 3
"""Steps before the clock starts in each round, so that batches which workers had ready do not count."""
MEAN = torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1)
STD = torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1)


class EnoughError(Exception):
    """Ends a round inside an epoch."""


def write_random_cifar(root: Path) -> None:
    """Random images in the official binary form, so that the lab reads them as it reads the real ones."""
    folder = root / "cifar-10-batches-bin"
    folder.mkdir()
    for name in (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"):
        records = torch.randint(256, (10_000, 3073), dtype=torch.uint8)
        records[:, 0] %= 10
        (folder / name).write_bytes(records.numpy().tobytes())


class Plain(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """One image at a time: pad, crop, flip, float, normalise."""

    def __init__(self) -> None:
        self.images, self.labels = (
            torch.randint(256, (50_000, 3, 32, 32), dtype=torch.uint8),
            torch.randint(10, (50_000,)),
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        image = F.pad(self.images[number].float().div(255)[None], (4, 4, 4, 4), mode="reflect")[0]
        top, left = torch.randint(9, (2,)).tolist()
        image = image[:, top : top + 32, left : left + 32]
        if torch.rand(()) < 0.5:
            image = image.flip(2)
        return (image - MEAN) / STD, int(self.labels[number])


Clock = tuple[float, float]
Loop = Callable[[int], Clock]
"""Runs so many steps; returns their seconds, and those that this process had the CPU, all threads together."""


def clock() -> Clock:
    return time.perf_counter(), time.process_time()


def since(began: Clock) -> Clock:
    wall, cpu = clock()
    return wall - began[0], cpu - began[1]


def plain_loop(model: nn.Module, workers: int) -> Loop:
    """The plain loop."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    loader = DataLoader(Plain(), batch_size=BATCH, shuffle=True, num_workers=workers)

    def endless() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from loader

    batches = endless()

    def run(steps: int) -> Clock:
        began = clock()
        for step in range(-WARM_UP, steps):
            if step == 0:
                began = clock()
            inputs, labels = next(batches)
            F.cross_entropy(model(inputs), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
        return since(began)

    return run


def lab_loop(model: str, **fields: Any) -> Loop:
    """The lab's own loop."""
    from regrow_lab.config import RunConfig
    from regrow_lab.run.training import Training

    training = Training(
        RunConfig(
            model=model,
            data="cifar10",
            epochs=100,
            batch_size=BATCH,
            augmentation="crop-flip",
            learning_rate=0.01,
            **fields,
        ),
        torch.device("cpu"),
    )

    def run(steps: int) -> Clock:
        began, end = clock(), training.step + WARM_UP + steps

        def before_step() -> None:
            nonlocal began
            if training.step == end - steps:
                began = clock()
            if training.step == end:
                raise EnoughError

        try:
            while True:
                training.run_epoch(before_step)
        except EnoughError:
            return since(began)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="wrn-16-1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--only", default="")
    parser.add_argument("--compiled", action="store_true", help="rows with torch.compile too (minutes of compilation)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    from regrow_lab.models import find_model

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"REGROW_DATA": folder, "XDG_CACHE_HOME": f"{folder}/cache"}
        write_random_cifar(Path(folder))
        bf16: dict[str, Any] = {"precision": "bf16"}
        rigl: dict[str, Any] = {"method": "rigl", "sparsity": options.sparsity, "every": 100}
        rows: dict[str, Callable[[], Loop]] = {
            "plain, no workers": lambda: plain_loop(find_model(options.model)(), 0),
            "plain, 2 workers": lambda: plain_loop(find_model(options.model)(), 2),
            "lab, float32": lambda: lab_loop(options.model),
            "lab, bf16": lambda: lab_loop(options.model, **bf16),
            "lab, bf16, RigL": lambda: lab_loop(options.model, **rigl, **bf16),
            "lab, float32, RigL compact": lambda: lab_loop(options.model, **rigl, storage="compact"),
            "lab, bf16, RigL compact": lambda: lab_loop(options.model, **rigl, **bf16, storage="compact"),
        }
        if options.compiled:
            rows |= {
                "lab, float32, compiled": lambda: lab_loop(options.model, compiled=True),
                "lab, bf16, compiled": lambda: lab_loop(options.model, **bf16, compiled=True),
            }
        loops = {name: make() for name, make in rows.items() if options.only in name}
        names, seconds, busy = list(loops), dict[str, list[float]](), dict[str, list[float]]()
        for run in loops.values():
            run(1)
        for number in range(options.rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                wall, cpu = loops[name](options.steps)
                seconds.setdefault(name, []).append(wall)
                busy.setdefault(name, []).append(cpu)
    images, references = options.steps * BATCH, [name for name in names if name.startswith("plain")]
    print(
        f"{options.model}, batch {BATCH}, {options.threads} thread(s), {options.rounds} rounds of {options.steps} steps"
    )
    print(f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    compared = "".join(f"   {f'× {name}':<20}" for name in references)
    print(f"\n{'loop':<27} {'images/s':>9} {'a CPU-s':>9}{compared}")
    for name in names:
        speed, thrift = (images / statistics.median(measured[name]) for measured in (seconds, busy))
        ratios = "".join(f"   {ratio(seconds, reference, name):<20}" for reference in references)
        print(f"{name:<27} {speed:>9,.1f} {thrift:>9,.1f}{ratios}".rstrip())
    if "plain, 2 workers" in names:
        print("\na CPU-s: images for each second that a core was had; the workers of the second row are not counted.")


def ratio(seconds: dict[str, list[float]], reference: str, name: str) -> str:
    if name == reference:
        return "1"
    ratios = sorted(theirs / ours for theirs, ours in zip(seconds[reference], seconds[name], strict=True))
    return " – ".join(f"{value:.2f}" for value in (ratios[0], statistics.median(ratios), ratios[-1]))


if __name__ == "__main__":
    main()
