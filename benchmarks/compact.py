"""Compact against dense training (or inference) of a whole net, interleaved in one process.

    python benchmarks/compact.py --model wrn-22-2 --sparsity 0.9 --distribution uniform --threads 1 \
        [--dtype float32|bfloat16] [--over float32|bfloat16] [--at-least 4.5] [--inference] [--memory]

Every round takes two steps (forward, loss, backward, SGD with momentum; of small nets some more) of each side in an
order that rotates, and measures all but the first. One call of optimizer.step() in 100 brings an update of RigL, whose
time is shared out. A round's ratio is that of the fastest dense side of that round, in the precision of --over (by
default that of the compact side), to that of the compact side: min – median – max over the rounds.
Exit code 1 if the median falls short of --at-least.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

# glibc gives large buffers back to the system after each step and faults them in again; without that dense training is
# faster by some percent, so both sides go without.
TUNED = {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TOP_PAD_": str(2**26)}
if __name__ == "__main__" and not TUNED.keys() <= os.environ.keys():
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **TUNED})

import torch  # noqa: E402
from nets import NETS, Net  # noqa: E402
from torch import Tensor, nn  # noqa: E402

import regrow  # noqa: E402

EVERY = 100
clock = time.perf_counter
NEVER = 10**9


@dataclass
class Side:
    """One way to train the net; a call is one step."""

    name: str
    dtype: torch.dtype
    step: Callable[[], None]

    def warm_seconds(self, repeat: int) -> float:
        """Of steps after a first one, which finds the caches full of another side's tensors, as none of a training."""
        self.step()
        return self.seconds(repeat)

    def seconds(self, repeat: int) -> float:
        begin = clock()
        for _ in range(repeat):
            self.step()
        return (clock() - begin) / repeat


def autocast(dtype: torch.dtype) -> Any:
    return torch.autocast("cpu", dtype=dtype) if dtype == torch.bfloat16 else nullcontext()


def data(net: Net, batch: int, layout: torch.memory_format = torch.contiguous_format) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn((batch, *net.sample), generator=generator)
    targets = torch.randint(net.classes, (batch,), generator=generator)
    return (inputs.to(memory_format=layout) if inputs.dim() == 4 else inputs), targets


def training(
    model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], dtype: torch.dtype
) -> Any:
    def step() -> None:
        with autocast(dtype):
            loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def inferring(model: nn.Module, batch: tuple[Tensor, Tensor], dtype: torch.dtype) -> Any:
    def step() -> None:
        with torch.inference_mode(), autocast(dtype):
            model(batch[0])

    return step


def built(net: Net, options: argparse.Namespace) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = net.build()
    for module in model.modules():
        if isinstance(module, nn.Dropout) and options.dropout is not None:
            module.p = options.dropout
    return model, torch.optim.SGD(
        model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )


def dense_side(name: str, net: Net, options: argparse.Namespace, dtype: torch.dtype) -> Side:
    model, optimizer = built(net, options)
    layout = torch.contiguous_format
    if name in ("channels_last", "compile") and len(net.sample) == 3:
        layout = torch.channels_last
        model = model.to(memory_format=layout)
    run: Any = model.eval() if options.inference else model
    if name == "compile":
        run = torch.compile(model)
    batch = data(net, options.batch, layout)
    step = inferring(run, batch, dtype) if options.inference else training(run, optimizer, batch, dtype)
    return Side(f"dense {name} {short(dtype)}", dtype, step)


def sparse_side(storage: Any, net: Net, options: argparse.Namespace, every: int) -> tuple[Side, regrow.Sparsifier]:
    model, optimizer = built(net, options)
    distribution = {"uniform": regrow.uniform, "erk": regrow.erk}[options.distribution]
    recipe = regrow.rigl(sparsity=options.sparsity, total_steps=NEVER, every=every, distribution=distribution)
    recipe = replace(recipe, pattern=regrow.output_blocks(options.block))
    sparsifier = regrow.attach(model, optimizer, recipe, storage=storage)
    batch = data(net, options.batch)
    run = model.eval() if options.inference else model
    step = inferring(run, batch, options.dtype) if options.inference else training(run, optimizer, batch, options.dtype)
    return Side(
        f"{'masked dense' if storage == 'dense' else 'compact'} {short(options.dtype)}", options.dtype, step
    ), sparsifier


def update_seconds(storage: Any, net: Net, options: argparse.Namespace) -> float:
    """Median seconds of a step that brings an update."""
    if options.inference:
        return 0.0
    side, sparsifier = sparse_side(storage, net, options, every=1)
    found = []
    while len(found) < 3:
        before = sparsifier.num_updates
        seconds = side.seconds(1)
        if sparsifier.num_updates > before:
            found.append(seconds)
    return statistics.median(found)


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def compare(net: Net, options: argparse.Namespace) -> float:
    """Prints the table; the median ratio."""
    dtypes = {torch.float32, options.dtype, options.over}
    names = (
        "eager",
        *(("channels_last",) if len(net.sample) == 3 else ()),
        *(() if options.no_compile else ("compile",)),
    )
    sides = [dense_side(name, net, options, dtype) for dtype in sorted(dtypes, key=str, reverse=True) for name in names]
    updating = {}
    for storage in ("dense", "compact"):
        side, sparsifier = sparse_side(storage, net, options, EVERY * 1000)
        updating[side.name] = update_seconds(storage, net, options)
        sides.append(side)
    compact = sides[-1]
    for side in sides:
        side.seconds(2)
    print(sparsifier)
    repeat = max(1, round(0.02 / compact.seconds(1)))
    rounds: list[dict[str, float]] = []
    shares: list[dict[str, float]] = []
    begin = time.perf_counter()
    while len(rounds) < 3 or (len(rounds) < options.rounds and time.perf_counter() - begin < options.seconds):
        turn = len(rounds) % len(sides)
        order = sides[turn:] + sides[:turn]
        steps = {side.name: side.warm_seconds(repeat) for side in order}
        extra = {name: max(0.0, seconds - steps[name]) / EVERY for name, seconds in updating.items()}
        shares.append({name: 100 * seconds / (steps[name] + seconds) for name, seconds in extra.items()})
        rounds.append({name: seconds + extra.get(name, 0.0) for name, seconds in steps.items()})
    sample = torch.randn(1, *net.sample)
    forward = regrow.count_flops(net.build(), sample).dense * options.batch
    flops = forward if options.inference else 3 * forward
    print(f"\n{'side':<26} {'ms: min – median – max':<28} {'dense GFLOP/s':>13}  compact is x faster")
    measured = []
    for side in sides:
        times = [found[side.name] for found in rounds]
        ratios = [found[side.name] / found[compact.name] for found in rounds]
        rate = f"{flops / statistics.median(times) / 1e9:.0f}" if side.name.startswith("dense") else ""
        print(f"{side.name:<26} {spread([1e3 * t for t in times], '.2f'):<28} {rate:>13}  {spread(ratios, '.2f')}")
        milliseconds = 1e3 * statistics.median(times)
        measured.append({"side": side.name, "ms": milliseconds, "rate": rate, "ratio": spread(ratios, ".2f")})
    if not options.inference:
        parts = [f"{statistics.median([f[name] for f in shares]):.1f} % of {name}" for name in updating]
        print("topology updates, beyond an ordinary step: " + ", ".join(parts))
    rivals = [side.name for side in sides if side.name.startswith("dense") and side.dtype == options.over]
    best = [min(found[name] for name in rivals) / found[compact.name] for found in rounds]
    what = "inference" if options.inference else "train step"
    print(
        f"\n{options.model} {what}, batch {options.batch}, S = {options.sparsity}, {options.distribution}, "
        f"{options.threads} thread(s), torch {torch.__version__}, {len(rounds)} rounds:\n"
        f"compact {short(options.dtype)} over the best dense {short(options.over)}: {spread(best, '.2f')}"
    )
    if options.json:
        print(json.dumps(measured))
    return statistics.median(best)


def spread(values: list[float], form: str) -> str:
    return " – ".join(format(value, form) for value in (min(values), statistics.median(values), max(values)))


def peak_memory(net: Net, options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """MiB above what importing costs, of a process for each side."""
    for side in ("dense", "compact"):
        command = [sys.executable, *sys.argv, "--only", side]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        yield side, float(output.splitlines()[-1])


def only(net: Net, options: argparse.Namespace) -> float:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if options.only == "dense":
        side = dense_side("eager", net, options, options.over)
    else:
        side, _ = sparse_side("compact", net, options, every=2)
    side.seconds(4)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(NETS), default="wrn-22-2")
    parser.add_argument("--sparsity", type=float, default=0.9)
    parser.add_argument("--distribution", choices=["uniform", "erk"], default="uniform")
    parser.add_argument("--block", type=int, default=1, help="outputs that share their inputs: 4 for 4x1 blocks")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32", help="of the compact side")
    parser.add_argument("--over", choices=["float32", "bfloat16"], help="of the dense side; default: the same")
    parser.add_argument("--at-least", type=float, default=0.0, help="exit with 1 if the median ratio is lower")
    parser.add_argument("--batch", type=int, help="default: the net's own")
    parser.add_argument("--dropout", type=float, help="in place of the net's own: wrn-22-2 has the report's .3")
    parser.add_argument("--inference", action="store_true", help="a forward pass in place of a train step")
    parser.add_argument("--memory", action="store_true", help="peak memory of a training process in place of time")
    parser.add_argument(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: processor time, for one thread on a machine that is busy with other things",
    )
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out (it takes half a minute)")
    parser.add_argument("--json", action="store_true", help="a last line of JSON with every side")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=25.0, help="no new round after this time")
    parser.add_argument("--only", choices=["dense", "compact"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.over = getattr(torch, options.over or options.dtype)
    options.dtype = getattr(torch, options.dtype)
    torch.set_num_threads(options.threads)
    if options.clock == "cpu":
        global clock
        clock = time.process_time
    net = NETS[options.model]
    options.batch = options.batch or net.batch
    if options.only:
        print(only(net, options))
    elif options.memory:
        found = dict(peak_memory(net, options))
        ratio = found["compact"] / found["dense"]
        for side, mib in found.items():
            dtype = options.dtype if side == "compact" else options.over
            print(f"{side} {short(dtype)}: {mib:.0f} MiB above import at the peak")
        print(f"compact takes {ratio:.2f} of dense")
        sys.exit(bool(options.at_least and 1 / ratio < options.at_least))
    else:
        sys.exit(compare(net, options) < options.at_least)


if __name__ == "__main__":
    main()
