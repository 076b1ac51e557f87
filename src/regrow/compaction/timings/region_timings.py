"""Whether the engine trains a region of dense layers faster than torch: both are timed, once on each machine.

Dense weights have no table to look up (:mod:`regrow.compaction.timings.layer_timings`): what the engine gains there is
the batch norms, sums and activations that it need not store, and that depends on the region. Where torch multiplies
bfloat16 one layer at a time, a WRN-22-2 of dense weights trains three times as fast on the engine; a plain stack of
linear layers half as fast.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from regrow.compaction.capture.region import Region, activations, wanted
from regrow.compaction.execution import Execution
from regrow.compaction.reference import interpret
from regrow.compaction.timings import side_by_side, timing_cache
from regrow.compaction.timings.side_by_side import Timing
from regrow.engine import native
from regrow.engine.compiled_program import LANES

LEAST = 1.1
"""Times faster that the engine must be: nearer to 1 the answer would be one of noise."""
MOST_IMAGES = 32
"""The time of a step is in proportion to its images, once a line of them is full."""
FULL = 0.75
"""Of a line of images: with fewer, most of the engine's work is on zeros."""
MOST = 100.0
"""Times faster that it can be: more is a slip of the clock."""

_Run = Callable[[Sequence[Tensor]], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Source:
    """An input of a region: its shape with the batch, and whether its gradient is wanted, as that of images is not."""

    shape: tuple[int, ...]
    differentiable: bool


def is_faster(region: Region, inputs: Sequence[Source]) -> bool:
    """Whether the engine shall train a region without compact layers.

    Args:
        region: before its first call.
        inputs: in their order.
    """
    layers = region.members[0]
    if not layers or not inputs or not native.available() or wanted() == "torch":
        return False
    if any(not layer.weight.is_cpu or layer.weight.dtype not in (torch.float32, torch.float64) for layer in layers):
        return False
    if wanted() == "engine":
        return True
    dtype = activations(layers[0].weight)
    batch = inputs[0].shape[0]
    if dtype not in (torch.float32, torch.bfloat16) or batch < FULL * LANES[dtype]:
        return False
    part = [replace(source, shape=(min(batch, MOST_IMAGES), *source.shape[1:])) for source in inputs]
    return _speedup(region, part, dtype) >= LEAST


def _speedup(region: Region, inputs: Sequence[Source], dtype: torch.dtype) -> float:
    """Time of torch ÷ time of the engine, for a step forward and backward."""
    layers = region.members[0]
    weights = [(tuple(layer.weight.shape), _is_channels_last(layer.weight)) for layer in layers]
    path = timing_cache.path_of("region", region.program, weights, inputs, dtype)
    subject = f"a region of {len(layers)} dense layers, {inputs[0].shape}, {dtype}"
    (ratio,) = timing_cache.ratios(path, subject, lambda: _measure(region, inputs, dtype), _is_plausible, (0.0,))
    return ratio


def _is_plausible(found: Timing) -> bool:
    return all(ratio <= MOST for ratio in found.ratios)


def _measure(region: Region, inputs: Sequence[Source], dtype: torch.dtype) -> Timing:
    """Torch and the engine in turns, on copies of the modules; 0 where the engine cannot run the region."""
    layers, offsets, norms = copied = copy.deepcopy(region.members)
    layout = (
        torch.channels_last if any(_is_channels_last(layer.weight) for layer in layers) else torch.contiguous_format
    )
    try:
        execution = Execution(region.program, *copied, region.mode, dtype)
    except ValueError:
        return Timing((0.0,), spread=0.0, rounds=0)

    def by_torch(sources: Sequence[Tensor]) -> tuple[Tensor, ...]:
        weights = [layer.weight for layer in layers]
        return interpret(region.program, sources, weights, [layer.bias for layer in offsets], norms, region.mode)

    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.enable_grad():
        # The region keeps the autocast of its caller: that is what is timed.
        sources = [
            torch.randn(source.shape)
            .to(memory_format=layout if len(source.shape) == 4 else torch.contiguous_format)
            .requires_grad_(source.differentiable)
            for source in inputs
        ]
        sides: tuple[_Run, _Run] = (by_torch, execution)
        return side_by_side.compare([partial(_step, run, sources) for run in sides])


def _step(run: _Run, sources: Sequence[Tensor]) -> None:
    torch.autograd.backward([output.float().sum() for output in run(sources)])


def _is_channels_last(weight: nn.Parameter) -> bool:
    return weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
