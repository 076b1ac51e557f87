"""Attaching to a model of a billion weights in bf16: time and memory, beside what ``regrow.plan`` says of it on meta.

    python benchmarks/attach_large.py [--billions 1.0] [--recipe rigl …] [--threads 2]

The model is a stack of transformer blocks on the CPU, its gradients made up. Peaks are resident memory above what was
there before (weights, or weights and gradients), in bytes a weight; "kept" is what stays. Linux only.
"""

import argparse
import ctypes
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import regrow

WIDTH = 2560
DYNAMIC = {"sparsity": 0.9, "total_steps": 1000, "every": 1}
RECIPES: dict[str, Callable[[], regrow.Algorithm]] = {
    "static": lambda: regrow.static(sparsity=0.9),
    "set": lambda: regrow.set_(**DYNAMIC),
    "rigl": lambda: regrow.rigl(**DYNAMIC),
    "snfs": lambda: regrow.snfs(**DYNAMIC),
    "pruning": lambda: regrow.gradual_pruning(start=1, **DYNAMIC),
    "snip": lambda: regrow.snip(sparsity=0.9),
}


def build(billions: float) -> nn.Module:
    """Blocks of four square matrices and two of four times the width."""
    block = 12 * WIDTH**2
    shapes = [(WIDTH, WIDTH)] * 4 + [(WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    layers = [nn.Linear(*shape, bias=False) for _ in range(max(1, round(billions * 1e9 / block))) for shape in shapes]
    return nn.Sequential(*layers)


def resident(key: str) -> int:
    """Bytes of resident memory: "VmRSS" now, "VmHWM" at most since the last reset."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


@dataclass
class Cost:
    seconds: float = 0.0
    peak: int = 0
    kept: int = 0


@contextmanager
def measured() -> Iterator[Cost]:
    cost, before = Cost(), resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    begin = time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - begin
    peak = resident("VmHWM")
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # freed memory that the allocator holds back is not kept
    cost.peak, cost.kept = peak - before, resident("VmRSS") - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--billions", type=float, default=1.0)
    parser.add_argument("--recipe", choices=list(RECIPES), action="append", help="default: rigl, pruning")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with torch.device("meta"):
        model = build(options.billions).to(torch.bfloat16)
    size = sum(parameter.numel() for parameter in model.parameters())
    begin = time.perf_counter()
    planned = regrow.plan(model, regrow.rigl(**DYNAMIC), torch.empty(1, WIDTH, device="meta", dtype=torch.bfloat16))
    alive, share = sum(planned.num_alive.values()), planned.flops.sparse / planned.flops.dense
    seconds = time.perf_counter() - begin
    print(f"{size:,} weights in {len(planned.layers)} layers, bf16, S = .9, {options.threads} thread(s)")
    print(f"plan on meta: {alive:,} alive, {share:.4f} of the dense FLOPs, {seconds:.2f} s; torch {torch.__version__}")
    print(f"{'recipe':<9}{'attach':>10}{'peak':>11}{'kept':>11}{'step':>11}{'update':>11}{'peak':>11}")
    model.to_empty(device="cpu")
    for recipe in options.recipe or ["rigl", "pruning"]:
        report(recipe, model, size)


def report(recipe: str, model: nn.Module, size: int) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.02)
        parameter.grad = None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with measured() as attaching:
        sparsifier = regrow.attach(model, optimizer, RECIPES[recipe]())
    calls = []
    for _ in range(3):
        for parameter in model.parameters():
            parameter.grad = parameter.detach().flip(0)
        updates = sparsifier.num_updates
        with measured() as call:
            optimizer.step()
        calls.append((sparsifier.num_updates > updates, call))
    steps = [call for updated, call in calls if not updated]
    updating = [call for updated, call in calls if updated]
    alive = sum(sparsifier.num_alive.values()) / size
    print(
        f"{recipe:<9}{attaching.seconds:>8.1f} s{attaching.peak / size:>7.2f} B/w{attaching.kept / size:>7.2f} B/w"
        + (f"{min(call.seconds for call in steps):>9.2f} s" if steps else f"{'-':>11}")
        + (f"{min(call.seconds for call in updating):>9.1f} s" if updating else f"{'-':>11}")
        + (f"{max(call.peak for call in updating) / size:>7.2f} B/w" if updating else f"{'-':>11}")
        + f"   density {alive:.4f}",
        flush=True,
    )
    sparsifier.detach()


if __name__ == "__main__":
    main()
