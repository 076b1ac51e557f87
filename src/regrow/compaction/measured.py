"""How much faster the engine trains a layer than torch, on this machine: a small table, measured once, kept in a file.

Each entry is a chain of four equal layers (with batch norm and ReLU between convolutions), forward and backward, so
that the conversion at the borders weighs about what it does in a net. Takes some seconds, at the first use.
"""

import functools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from regrow.compaction import cache, engine
from regrow.compaction.program import BatchNorm, Convolution, Input, Operation, Program, Relu

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.5)
DEPTH = 4
REPEATS = 5

Table = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Probe:
    """A layer of ``width`` inputs and outputs on ``batch`` images of ``image`` × ``image``."""

    kind: str
    width: int
    kernel: int
    image: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.kind} {self.width}"

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.width**2 * self.kernel**2


PROBES = (
    Probe("linear", 128, 1, 1, 128),
    Probe("linear", 512, 1, 1, 128),
    Probe("1x1", 64, 1, 16, 32),
    Probe("1x1", 256, 1, 8, 32),
    Probe("kxk", 32, 3, 16, 32),
    Probe("kxk", 128, 3, 8, 32),
)


LEAST = {"linear": 1.0, "1x1": 0.5, "kxk": 0.5}
"""Below it torch runs a layer. A convolution taken out of the middle of a region costs two conversions of activations:
with one of WRN-22-2 a step takes 110 ms, without 82 (docs/engine.md)."""


def kind_of(module: nn.Module) -> str:
    """The kind of probe that stands for a convolution or linear layer."""
    kernel = getattr(module, "kernel_size", None)
    return "linear" if kernel is None else "1x1" if set(kernel) == {1} else "kxk"


def speedup(table: Table, module: nn.Module, size: int, density: float) -> float:
    """Time of torch ÷ time of the engine for a layer like this, read off the table.

    Args:
        table: of :func:`agreed_table`.
        module: a convolution or linear layer.
        size: number of its weights, alive or not.
        density: share of those alive.
    """
    probe = min((p for p in PROBES if p.kind == kind_of(module)), key=lambda p: abs(math.log(p.size / size)))
    entries = table[probe.name]
    known = sorted((float(key), value) for key, value in entries.items())
    low = max((pair for pair in known if pair[0] <= density), default=known[0])
    high = min((pair for pair in known if pair[0] >= density), default=known[-1])
    if low[0] == high[0]:
        return low[1]
    share = math.log(density / low[0]) / math.log(high[0] / low[0])
    return float(low[1] * (high[1] / low[1]) ** share)


def agreed_table() -> Table:
    """The table of this machine; where there are several ranks, that of the first, so that all decide alike."""
    found = [table()]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.broadcast_object_list(found)
    return found[0]


@functools.cache
def table() -> Table:
    """The table for this machine, engine, torch and number of threads; measured if it is not there."""
    path = cache.path_of("compact", PROBES)
    found = _sound(cache.read(path))
    if found is None:
        found = {probe.name: _entries(probe) for probe in PROBES}
        cache.write(path, found)
    return found


def _sound(found: Any) -> Table | None:
    """What a file holds, if that is a table."""
    try:
        sound = all(0 < float(found[probe.name][str(density)]) < 1e6 for probe in PROBES for density in DENSITIES)
    except (ValueError, KeyError, TypeError):
        return None
    return found if sound else None


def _entries(probe: Probe) -> dict[str, float]:
    """The ratio at each density; as disturbances only slow down, none is worth less than that of a higher density."""
    ratios = [_measure(probe, density) for density in DENSITIES]
    return {str(density): max(ratios[k:]) for k, density in enumerate(DENSITIES)}


def _measure(probe: Probe, density: float) -> float:
    """Shortest time of torch ÷ shortest time of the engine: what others do on the machine adds to both."""
    generator = torch.Generator().manual_seed(0)
    linear = probe.kind == "linear"
    shape = (probe.width, probe.width) if linear else (probe.width, probe.width, probe.kernel, probe.kernel)
    x = torch.randn((probe.batch, probe.width, *(() if linear else (probe.image, probe.image))), generator=generator)
    alive = torch.rand(shape, generator=generator) < density
    alive.view(-1)[0] = True
    with torch.enable_grad():
        runs = (_torch_run(probe, x), _engine_run(probe, x, alive))
        seconds: tuple[list[float], list[float]] = ([], [])
        for run in runs:
            run()
        for _ in range(REPEATS):
            for run, found in zip(runs, seconds, strict=True):
                begin = time.perf_counter()
                run()
                found.append(time.perf_counter() - begin)
    return round(min(seconds[0]) / min(seconds[1]), 2)


def _torch_run(probe: Probe, x: Tensor) -> Callable[[], None]:
    layers: list[nn.Module] = []
    for _ in range(DEPTH):
        if probe.kind == "linear":
            layers += [nn.Linear(probe.width, probe.width, bias=False), nn.ReLU()]
        else:
            layers += [nn.Conv2d(probe.width, probe.width, probe.kernel, padding=probe.kernel // 2, bias=False)]
            layers += [nn.BatchNorm2d(probe.width), nn.ReLU()]
    layout = torch.contiguous_format if probe.kind == "linear" else torch.channels_last
    chain: Any = nn.Sequential(*layers)
    chain.to(memory_format=layout)
    source = x.to(memory_format=layout).requires_grad_()

    def run() -> None:
        chain(source).sum().backward()

    return run


def _engine_run(probe: Probe, x: Tensor, alive: Tensor) -> Callable[[], None]:
    operations: list[Operation] = [Input(0, probe.width, probe.image, probe.image)]
    norms: list[Any] = []
    for number in range(DEPTH):
        padding = (probe.kernel // 2, probe.kernel // 2)
        operations.append(Convolution(len(operations) - 1, number, None, padding=padding))
        if probe.kind != "linear":
            norms.append(nn.BatchNorm2d(probe.width))
            operations.append(BatchNorm(len(operations) - 1, number))
        operations.append(Relu(len(operations) - 1))
    weight = engine.SparseWeight(tuple(alive.shape), alive.flatten().nonzero().flatten())
    program = Program(tuple(operations), (len(operations) - 1,))
    plan = engine.Plan(program, [weight] * DEPTH, norms)
    values = [torch.randn(len(weight.indices)) for _ in range(DEPTH)]

    def run() -> None:
        (output,), saved = plan.forward([x], values, (), norms)
        assert saved is not None
        plan.backward(saved, [torch.ones_like(output)])

    return run
