"""The named methods: each a few lines over the shared record. docs/methods.md has a section on each.

Arguments common to all: ``sparsity``, the global share of zeros in [0, 1); ``distribution``, how layers share it
(:func:`regrow.uniform`, :func:`regrow.er`, :func:`regrow.erk`, or a dict glob → sparsity); ``total_steps``, calls of
``optimizer.step()`` in the whole run; ``every``, dT, weight steps between two updates; ``drop_fraction``, alpha, the
share of alive weights replaced at the first update, decaying as a cosine; ``stop``, T_end, the last step with updates,
by default three quarters of ``total_steps``. All raise ValueError for a value outside its range.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal, Required, TypedDict, Unpack

from torch import Tensor

from regrow.algorithm import Algorithm
from regrow.arguments import real_number, whole_number
from regrow.parts.distributions import Convolutions, CountsOf, Sharing, as_distribution, check_sparsity, erk, uniform
from regrow.parts.patterns import channels
from regrow.parts.schedules import Constant, Cosine, Cubic, Every, Once
from regrow.parts.scores import (
    GivenMasks,
    Score,
    connection_sensitivity,
    dense_momentum_magnitude,
    gradient_magnitude,
    momentum_magnitude,
    random,
)

SHARE = "a share in [0, 1], such as 0.3"


def static(*, sparsity: float, distribution: Sharing = erk) -> Algorithm:
    """A random mask, drawn once and kept.

    >>> static(sparsity=0.9).name
    'static'
    """
    return Algorithm(name="static", sparsity=sparsity, distribute=as_distribution(distribution), initial=random)


def set_(
    *,
    sparsity: float,
    total_steps: int,
    every: int = 100,
    drop_fraction: float = 0.3,
    distribution: Sharing = erk,
    stop: int | None = None,
) -> Algorithm:
    """SET: after every dT-th weight step drop the smallest magnitudes and grow as many at random.

    Mocanu et al. 2018 (who dropped the smallest positive and largest negative weights; like the report, we use |w|).
    """
    stop = _last_update(total_steps, every, drop_fraction, stop)
    return replace(
        static(sparsity=sparsity, distribution=distribution),
        name="set",
        when=Every(every, start=every, stop=stop),
        grow=random,
        fraction=Cosine(drop_fraction, end=stop),
    )


def rigl(
    *,
    sparsity: float,
    total_steps: int,
    every: int = 100,
    drop_fraction: float = 0.3,
    distribution: Sharing = erk,
    stop: int | None = None,
) -> Algorithm:
    """RigL: every dT weight steps drop the smallest magnitudes and grow where the dense gradient is largest.

    The update takes the place of a weight step; ``dataclasses.replace(rigl(…), step_on_update=True)`` does both.

    Evci et al. 2020, section 3.

    >>> rigl(sparsity=0.9, total_steps=1000).when
    Every(interval=100, start=100, stop=750)
    """
    sparse = set_(
        sparsity=sparsity,
        total_steps=total_steps,
        every=every,
        drop_fraction=drop_fraction,
        distribution=distribution,
        stop=stop,
    )
    return replace(sparse, name="rigl", grow=gradient_magnitude, step_on_update=False)


class DynamicArguments(TypedDict, total=False):
    """What every dynamic method takes; see :func:`rigl`."""

    sparsity: Required[float]
    total_steps: Required[int]
    every: int
    drop_fraction: float
    distribution: Sharing
    stop: int | None


def snfs(**arguments: Unpack[DynamicArguments]) -> Algorithm:
    """SNFS: grow where the momentum of dense gradients is largest, and share the freed weights by its layer means.

    The sparsifier keeps that momentum itself: m ← beta · m + g at every step, beta being the optimizer's momentum or
    first beta, else 0.9. Arguments as for :func:`rigl`.

    Dettmers & Zettlemoyer 2019, section 3.
    """
    return replace(set_(**arguments), name="snfs", grow=dense_momentum_magnitude, redistribute=dense_momentum_magnitude)


def rigl_sg(**arguments: Unpack[DynamicArguments]) -> Algorithm:
    """RigL-SG: RigL that shares the freed weights by the layers' mean |gradient| of alive weights.

    Arguments as for :func:`rigl`. Sundar & Dwaraknath 2021, section 6.2.
    """
    return replace(rigl(**arguments), name="rigl-sg", redistribute=gradient_magnitude)


def rigl_sm(**arguments: Unpack[DynamicArguments]) -> Algorithm:
    """RigL-SM: RigL that shares the freed weights by the layers' mean |momentum| of alive weights.

    Arguments as for :func:`rigl`. Sundar & Dwaraknath 2021, section 6.2.
    """
    return replace(rigl(**arguments), name="rigl-sm", redistribute=momentum_magnitude)


def rigl_struct(**arguments: Unpack[DynamicArguments]) -> Algorithm:
    """RigL-struct: RigL whose unit is a convolution's output channel; linear and transposed layers stay dense.

    A channel's scores are the sums of |w| and of |gradient| over its filter. The sparsity is that of the
    convolutions. :func:`regrow.remove_dead_channels` makes the trained net physically smaller.

    Arguments as for :func:`rigl`. Sundar & Dwaraknath 2021, supplementary, section 4.
    """
    dense = rigl(**arguments)
    return replace(dense, name="rigl-struct", distribute=Convolutions(dense.distribute), pattern=channels)


def gradual_pruning(
    *,
    sparsity: float,
    total_steps: int,
    every: int = 100,
    start: int = 700,
    stop: int | None = None,
    scope: Literal["layer", "global"] = "global",
    distribution: Sharing = uniform,
) -> Algorithm:
    """Gradual magnitude pruning: every weight alive at first, the smallest dropped along a cubic ramp.

    The sparsity is S · (1 − (1 − (t − start) / (end − start))³), end being the last update, so that it is reached.

    Args:
        sparsity: S at the end of the ramp.
        total_steps: calls of ``optimizer.step()`` in the whole run.
        every: weight steps between two updates.
        start: first weight step with an update.
        stop: no update after this weight step; by default three quarters of ``total_steps``.
        scope: "global": one threshold over all layers; "layer": each layer by ``distribution``.
        distribution: used where ``scope`` is "layer".

    Zhu & Gupta 2017, section 3.
    """
    stop = _last_update(total_steps, every, 0.0, stop)
    if not whole_number(start, "start", "the first weight step with an update") <= stop:
        raise ValueError(
            f"pruning starts at step {start} and stops at {stop}; expected 0 <= start <= stop (set start= or stop=)"
        )
    end = start + (stop - start) // every * every
    return Algorithm(
        name="pruning",
        sparsity=Cubic(check_sparsity(sparsity), start=start, end=end),
        distribute=as_distribution(distribution),
        initial=None,
        when=Every(every, start=start, stop=end),
        scope=scope,
    )


def snip(
    *, sparsity: float, scope: Literal["layer", "global"] = "global", distribution: Sharing = uniform
) -> Algorithm:
    """SNIP: keep the weights with the largest |gradient · weight| of the first step, then train them as they are.

    The net is dense until the first ``optimizer.step()``, whose gradient makes the mask in place of a weight step.

    Args:
        sparsity: S.
        scope: "global": one threshold over all layers; "layer": each layer by ``distribution``.
        distribution: used where ``scope`` is "layer".

    Lee, Ajanthan & Torr 2019, algorithm 1.
    """
    return Algorithm(
        name="snip",
        sparsity=sparsity,
        distribute=as_distribution(distribution),
        initial=None,
        when=Once(0),
        drop=connection_sensitivity,
        scope=scope,
        step_on_update=False,
    )


def from_masks(masks: Mapping[str, Tensor]) -> Algorithm:
    """Masks of your own (a ticket, an earlier run), kept as they are.

    Args:
        masks: layer name → bool tensor of the weight's shape; every layer attached to must have one, with an alive
            weight at least.
    """
    return starting_from(replace(static(sparsity=0.0), name="masks"), masks)


def starting_from(algorithm: Algorithm, masks: Mapping[str, Tensor]) -> Algorithm:
    """The same method, begun with given masks: those of an earlier run, for instance.

    Args:
        algorithm: a record with a constant sparsity, such as ``rigl(…)``; its sparsity becomes that of the masks.
        masks: layer name → bool tensor of the weight's shape; every layer attached to must have one.

    Sundar & Dwaraknath 2021, table 5, group 3, where RigL starts from RigL-SM's final masks.

    >>> import torch
    >>> starting_from(rigl(sparsity=0.9, total_steps=1000), {"fc.weight": torch.eye(4, dtype=torch.bool)}).sparsity
    Constant(value=0.75)
    """
    return replace(with_densities(algorithm, masks), initial=Score("given mask", GivenMasks(masks)))


def with_densities(algorithm: Algorithm, masks: Mapping[str, Tensor]) -> Algorithm:
    """The same method with as many alive weights in each layer as given masks have; which ones, it finds itself.

    Arguments as for :func:`starting_from`.
    """
    if not masks or not isinstance(algorithm.sparsity, Constant):
        found = f"the sparsity of '{algorithm.name}' changes over the steps" if masks else "masks is empty"
        raise ValueError(f"{found}; expected a mask for each layer, and a method that keeps its sparsity, such as rigl")
    counts = CountsOf({name: int(mask.sum()) for name, mask in masks.items()}, {n: m.shape for n, m in masks.items()})
    size = sum(mask.numel() for mask in masks.values())
    return replace(algorithm, sparsity=1 - sum(counts.alive.values()) / size, distribute=counts)


def _last_update(total_steps: int, every: int, drop_fraction: float, stop: int | None) -> int:
    """T_end, after the arguments that the dynamic methods share have been checked."""
    calls = "the number of optimizer.step() calls of the whole run"
    total_steps = whole_number(total_steps, "total_steps", calls, least=1)
    whole_number(every, "every", "the weight steps between two updates", least=1)
    if not 0 <= real_number(drop_fraction, "drop_fraction", SHARE) <= 1:
        raise ValueError(f"drop_fraction is {drop_fraction}; expected {SHARE}")
    return int(0.75 * total_steps) if stop is None else whole_number(stop, "stop", "the last weight step with updates")
