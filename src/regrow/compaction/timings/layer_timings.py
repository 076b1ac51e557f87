"""How much faster the engine trains a layer than torch, on this machine: measured at the first use, kept in files.

Each probe is a chain of four equal layers (with batch norm and ReLU between convolutions), forward and backward, so
that the conversion at the borders weighs about what it does in a net. A model's layers ask for a probe or two each of
their kinds; one takes about a second.
"""

import json
import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regrow.compaction.timings import side_by_side, timing_cache
from regrow.compaction.timings.side_by_side import Timing
from regrow.engine import compiled_program
from regrow.engine.program import BatchNorm, Convolution, Input, Operation, Program, Relu

DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.5)
DEPTH = 4
MOST_OF_THE_WORK = 2.0
"""Times the work that is left out, 1 / density, that the engine may be faster; it has been 1.5 at most. More is a slip
of the clock or of torch: a first call, threads that wait for each other."""
LEAST_RATIO = 0.01
DISORDER = 0.2
"""Share by which a ratio may lie below that of a higher density. More is a disturbance, as less work takes less."""


@dataclass(frozen=True)
class Probe:
    """A layer of ``width`` inputs and outputs on ``batch`` images of ``image`` × ``image``.

    ``usual`` are the ratios at :data:`DENSITIES` where this machine's cannot be trusted: those of two cores with AVX2.
    """

    kind: str
    width: int
    kernel: int
    image: int
    batch: int
    usual: tuple[float, ...]

    @property
    def name(self) -> str:
        return f"{self.kind} {self.width}"

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.width**2 * self.kernel**2


PROBES = (
    Probe("linear", 128, 1, 1, 128, (3.8, 3.7, 3.2, 2.5, 1.1)),
    Probe("linear", 512, 1, 1, 128, (6.8, 5.1, 3.0, 1.6, 0.57)),
    Probe("1x1", 64, 1, 16, 32, (3.8, 3.5, 3.2, 2.7, 1.9)),
    Probe("1x1", 256, 1, 8, 32, (4.7, 4.1, 2.9, 2.0, 1.0)),
    Probe("kxk", 32, 3, 16, 32, (5.1, 4.7, 3.2, 2.3, 1.4)),
    Probe("kxk", 128, 3, 8, 32, (8.5, 5.3, 3.6, 2.3, 0.92)),
)


LEAST = {"linear": 1.0, "1x1": 0.5, "kxk": 0.5}
"""Below it torch runs a layer. A convolution taken out of the middle of a region costs two conversions of activations:
with one of WRN-22-2 a step takes 110 ms, without 82 (docs/engine.md)."""


def kind_of(module: nn.Module) -> str:
    """The kind of probe that stands for a convolution or linear layer."""
    kernel = getattr(module, "kernel_size", None)
    return "linear" if kernel is None else "1x1" if set(kernel) == {1} else "kxk"


def probe_for(module: nn.Module, size: int) -> Probe:
    """The probe of the same kind and the nearest size.

    Args:
        module: a convolution or linear layer.
        size: number of its weights, alive or not.
    """
    return min((p for p in PROBES if p.kind == kind_of(module)), key=lambda p: abs(math.log(p.size / size)))


def read_off(ratios: tuple[float, ...], density: float) -> float:
    """A probe's ratio at any density, between those that were measured.

    >>> read_off((5.0, 2.0, 1.0, 0.5, 0.2), 0.05), round(read_off((5.0, 2.0, 1.0, 0.5, 0.2), 0.3), 3)
    (2.0, 0.333)
    """
    known = list(zip(DENSITIES, ratios, strict=True))
    low = max((pair for pair in known if pair[0] <= density), default=known[0])
    high = min((pair for pair in known if pair[0] >= density), default=known[-1])
    if low[0] == high[0]:
        return low[1]
    share = math.log(density / low[0]) / math.log(high[0] / low[0])
    return float(low[1] * (high[1] / low[1]) ** share)


def speedup(agreed: MutableMapping[str, tuple[float, ...]], module: nn.Module, size: int, density: float) -> float:
    """Time of torch ÷ time of the engine for a layer like this.

    Args:
        agreed: name of a probe → its ratios, as far as a model has asked; the processes of one job have the same, so
            that all decide alike.
        module: a convolution or linear layer.
        size: number of its weights, alive or not.
        density: share of those alive.
    """
    probe = probe_for(module, size)
    if probe.name not in agreed:
        agreed[probe.name] = _agreed(probe)
    return read_off(agreed[probe.name], density)


def _agreed(probe: Probe) -> tuple[float, ...]:
    """The ratios of the first process of a job that asked for them: nobody knows yet who shares which model."""
    store = _store_of_the_job()
    if store is None:
        return ratios_of(probe)
    key = f"regrow/{probe.name}"
    try:
        if store.add(f"{key}/asked", 1) == 1:
            store.set(key, json.dumps(ratios_of(probe)))
        found = tuple(json.loads(store.get(key)))
    except RuntimeError:  # the process that kept the store has ended, so nobody shares a model with it
        return ratios_of(probe)
    timing_cache.believe({_path(probe).stem: found})
    return found


def _store_of_the_job() -> Any:
    """Where the processes of ``torch.distributed`` leave things for each other, without all of them coming together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    ask = getattr(torch.distributed.group.WORLD, "get_group_store", None)  # older torch has none
    return None if ask is None else ask()


def ratios_of(probe: Probe) -> tuple[float, ...]:
    """Time of torch ÷ time of the engine at each of :data:`DENSITIES`, on this machine; none above the one before."""
    subject = f"layers like {probe.name}"
    found = timing_cache.ratios(_path(probe), subject, partial(_measure, probe), _is_plausible, probe.usual)
    return tuple(accumulate(reversed(found), max))[::-1]  # what disorder is left is noise


def _path(probe: Probe) -> Path:
    return timing_cache.path_of("layer", replace(probe, usual=()), DENSITIES, DEPTH)


def _is_plausible(found: Timing) -> bool:
    """Whether ratios lie where they can, and fall with the density."""
    bounds = all(
        LEAST_RATIO <= ratio <= MOST_OF_THE_WORK / density
        for density, ratio in zip(DENSITIES, found.ratios, strict=True)
    )
    falling = all(low >= (1 - DISORDER) * high for low, high in pairwise(found.ratios))
    return bounds and falling


def _measure(probe: Probe) -> Timing:
    """Torch's chain once, and the engine's at each density, in turns."""
    generator = torch.Generator().manual_seed(0)
    linear = probe.kind == "linear"
    shape = (probe.width, probe.width) if linear else (probe.width, probe.width, probe.kernel, probe.kernel)
    with side_by_side.alone():
        x = torch.randn(
            (probe.batch, probe.width, *(() if linear else (probe.image, probe.image))), generator=generator
        )
        runs = [_torch_run(probe, x)]
        for density in DENSITIES:
            alive = torch.rand(shape, generator=generator) < density
            alive.view(-1)[0] = True
            runs.append(_engine_run(probe, x, alive))
        return side_by_side.compare(runs)


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
    weight = compiled_program.SparseWeight(tuple(alive.shape), alive.flatten().nonzero().flatten())
    program = Program(tuple(operations), (len(operations) - 1,))
    plan = compiled_program.Plan(program, [weight] * DEPTH, norms)
    values = [torch.randn(len(weight.indices)) for _ in range(DEPTH)]

    def run() -> None:
        (output,), saved = plan.forward([x], values, (), norms)
        assert saved is not None
        plan.backward(saved, [torch.ones_like(output)])

    return run
