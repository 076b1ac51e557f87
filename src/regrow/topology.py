"""The one rule by which topologies change: how many units live in each layer, and which."""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import islice

import torch
from torch import Tensor

from regrow.algorithm import Algorithm
from regrow.layers import Layer
from regrow.normalized_weights import covers, spare
from regrow.parts.distributions import PerLayer, total_alive
from regrow.parts.patterns import Pattern, unstructured
from regrow.parts.redistribution import apportion
from regrow.parts.schedules import Trigger
from regrow.parts.scores import Evidence, GivenMasks, Score
from regrow.parts.topk import counts_of_largest, finite, sortable

MOST_UPDATES = 100_000  # that a schedule of the user's own is tried at
FALLS = (
    ", and nothing grows in it: give it a growth score, as in dataclasses.replace(…, grow=regrow.parts.scores.random), "
    "or a schedule that never falls"
)


def next_mask(
    alive: Tensor,
    *,
    keep: int,
    budget: int,
    drop: Tensor,
    grow: Tensor | None,
    pattern: Pattern = unstructured,
    norm_dim: int | None = None,
) -> Tensor:
    """The topology rule: keep the best of the alive, then grow the best of all that is not kept.

    kept = top-``keep`` of drop among alive; mask = kept ∪ top-(``budget`` − ``keep``) of grow among the rest, the just
    dropped included. All counts are units of the pattern; masks and scores have the shape of the weight. Of each slice
    along ``norm_dim``, where there is one, the best of the alive is kept.

    Evci et al. 2020, section 3; the counts are exact whatever the ties.
    """
    units = pattern.units(alive)
    kept = pattern.choose(spare(pattern.reduce(drop), units, norm_dim), keep, units, budget)
    if grow is not None:
        missing = budget - (keep if pattern.group is None else int(kept.count_nonzero()))
        kept |= pattern.choose(pattern.reduce(grow), missing, ~kept, budget, beside=kept)
    return pattern.expand(kept, tuple(alive.shape))


def initial_masks(algorithm: Algorithm, evidence: Mapping[str, Evidence]) -> dict[str, Tensor]:
    """Masks at step 0: exactly the distribution's count in every layer, or every weight where ``initial`` is None.

    Raises:
        ValueError: the sparsity cannot be met, at the start or later.
    """
    _check_growth(algorithm)
    if algorithm.initial is None:
        _check_end(algorithm, evidence)
        return {name: torch.ones_like(known.alive) for name, known in evidence.items()}
    counts = unit_counts(algorithm, _layers(evidence), algorithm.sparsity_at(0))
    masks = {}
    for name, known in evidence.items():
        values = algorithm.initial(known)
        scores = algorithm.pattern.reduce(values)
        everything = torch.ones_like(scores, dtype=torch.bool)
        units, dim = algorithm.pattern.choose(scores, counts[name], everything, counts[name]), known.layer.norm_dim
        if dim is not None and not covers(units, dim):
            if isinstance(algorithm.initial.measure, GivenMasks):
                raise ValueError(f"the mask of '{name}' leaves {_why_slices(known.layer)}")
            units = algorithm.pattern.choose(spare(scores, everything, dim), counts[name], everything, counts[name])
        masks[name] = algorithm.pattern.expand(units, known.layer.shape)
        if isinstance(algorithm.initial.measure, GivenMasks) and not torch.equal(masks[name], values.bool()):
            raise ValueError(
                f"the mask of '{name}' does not have the pattern '{algorithm.pattern.name}': give masks that have, or "
                "take the pattern that they have"
            )
    return masks


def _why_slices(layer: Layer) -> str:
    assert layer.norm_dim is not None
    kind = "row" if layer.norm_dim == 0 else f"slice along dimension {layer.norm_dim}"
    return (
        f"a {kind} without an alive weight, and its module divides each of the {layer.shape[layer.norm_dim]} by its "
        "norm (weight_norm, DoRA), which would be 0 / 0: keep at least one alive in each, or leave the layer out with "
        f"exclude=['{layer.name}']"
    )


def updated_masks(
    algorithm: Algorithm, step: int, evidence: Mapping[str, Evidence], frozen: Collection[str] = ()
) -> dict[str, Tensor]:
    """New masks of the layers that one update changes; the others keep theirs.

    Args:
        algorithm: the record.
        step: weight steps taken so far.
        evidence: what is known of every layer of the group.
        frozen: layers that must not change (they need no gradient in their evidence).
    """
    pattern = algorithm.pattern
    sizes = {name: grid.size for name, grid in grids(algorithm, _layers(evidence)).items()}
    now = {name: int(pattern.units(known.alive).count_nonzero()) for name, known in evidence.items()}
    movable = {name: known for name, known in evidence.items() if name not in frozen}
    budgets = _budgets(algorithm, step, now, evidence, movable)
    share = algorithm.fraction(step) if algorithm.grow is not None else 0.0
    keep = {}
    for name, known in movable.items():
        stays_full = algorithm.redistribute is None and now[name] == budgets[name] == sizes[name]
        replaced = 0 if stays_full else math.floor(share * now[name])
        keep[name] = max(_least(algorithm, known.layer), min(now[name], budgets[name]) - replaced)
    if algorithm.redistribute is not None:
        budgets |= _redistributed(algorithm.redistribute, keep, budgets, sizes, movable)
    masks = {}
    for name, known in movable.items():
        if keep[name] == budgets[name] == now[name]:
            continue
        grow = algorithm.grow(known) if algorithm.grow is not None else None
        masks[name] = next_mask(
            known.alive,
            keep=keep[name],
            budget=budgets[name],
            drop=algorithm.drop(known),
            grow=grow,
            pattern=pattern,
            norm_dim=known.layer.norm_dim,
        )
    return masks


def _check_growth(algorithm: Algorithm) -> None:
    """Refuses a sparsity that falls where nothing grows, as far as the schedule says it beforehand."""
    if algorithm.grow is not None or algorithm.never_falls:
        return
    before = 0.0 if algorithm.initial is None else algorithm.sparsity_at(0)
    for step in islice(_updates(algorithm.when), MOST_UPDATES):
        try:
            after = algorithm.sparsity_at(step)
        except Exception:  # a schedule of the user's own may not know the future, and is asked again when it comes
            return
        if after < before:
            raise ValueError(
                f"the sparsity of '{algorithm.name}' falls from {before:g} to {after:g} at step {step}{FALLS}"
            )
        before = after


def _updates(when: Trigger) -> Iterator[int]:
    """The weight steps with an update."""
    step = when.following(0)
    while step is not None:
        yield step
        step = when.following(step + 1)


def _check_end(algorithm: Algorithm, evidence: Mapping[str, Evidence]) -> None:
    """Refuses at the start what pruning could not reach in the end."""
    final = algorithm.final_sparsity
    if final is not None and algorithm.scope == "layer":
        unit_counts(algorithm, _layers(evidence), final)
    elif final is not None:
        units = grids(algorithm, _layers(evidence))
        total, least = total_alive(units, final), sum(_least(algorithm, known.layer) for known in evidence.values())
        if total < least:
            size = sum(unit.size for unit in units.values())
            raise ValueError(
                f"sparsity {final:g} leaves {total} alive {algorithm.pattern.unit}, and {least} are needed: one in "
                "each layer, and one in each row that a module divides by its norm (weight_norm, DoRA): take at most "
                f"{1 - least / size:.6g}, or leave layers out with exclude="
            )


def _layers(evidence: Mapping[str, Evidence]) -> dict[str, Layer]:
    return {name: known.layer for name, known in evidence.items()}


def unit_counts(algorithm: Algorithm, layers: Mapping[str, Layer], sparsity: float) -> dict[str, int]:
    """Units of the pattern that each layer shall have, at least one: its density, which ``distribute`` sets."""
    distribute, final = algorithm.distribute, algorithm.final_sparsity
    if isinstance(distribute, PerLayer) and final:
        alive = distribute.on_the_way(layers, sparsity, final)
    else:
        alive = distribute(layers, sparsity)
    if not isinstance(alive, Mapping) or not alive.keys() >= layers.keys():
        absent = sorted(layers.keys() - alive.keys()) if isinstance(alive, Mapping) else list(layers)
        raise ValueError(
            f"the distribution {distribute!r} gave {type(alive).__name__} without {', '.join(absent)}; expected a dict "
            "of layer name → alive weights with every layer that it was given"
        )
    sizes = {name: grid.size for name, grid in grids(algorithm, layers).items()}
    counts = {name: max(1, round(alive[name] * sizes[name] / layer.size)) for name, layer in layers.items()}
    if algorithm.pattern.group is not None:
        counts = {name: _feasible(algorithm, layer, counts[name], sparsity) for name, layer in layers.items()}
    for name, layer in layers.items():
        if counts[name] < _least(algorithm, layer):
            raise ValueError(
                f"sparsity {sparsity:g} gives '{name}' {counts[name]} alive {algorithm.pattern.unit}, which leaves "
                f"{_why_slices(layer)}, or ask for a sparsity that gives it {_least(algorithm, layer)}"
            )
    return counts


def _feasible(algorithm: Algorithm, layer: Layer, count: int, sparsity: float) -> int:
    """The count that a pattern of groups makes of another."""
    pattern = algorithm.pattern
    leave = f"leave the layer out with exclude=['{layer.name}']"
    if layer.is_transposed:
        raise ValueError(
            f"the pattern '{pattern.name}' is of the inputs of each output, and '{layer.name}' has its inputs in the "
            f"first dimension, as a transposed convolution: {leave}"
        )
    try:
        return pattern.feasible(count, pattern.grid(layer.shape))
    except ValueError as error:
        own = "" if pattern.alive is None else ", or ask for the pattern's own sparsity with regrow.uniform"
        raise ValueError(
            f"'{layer.name}' of shape {layer.shape} cannot have the pattern '{pattern.name}' at sparsity {sparsity:g}, "
            f"{count:,} alive: {error}; {leave}{own}"
        ) from None


def _least(algorithm: Algorithm, layer: Layer) -> int:
    """The fewest units that a layer can live with."""
    return 1 if layer.norm_dim is None else algorithm.pattern.grid(layer.shape)[layer.norm_dim]


def grids(algorithm: Algorithm, layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """The layers as grids of units."""
    return {name: replace(layer, shape=algorithm.pattern.grid(layer.shape)) for name, layer in layers.items()}


def _budgets(
    algorithm: Algorithm,
    step: int,
    now: Mapping[str, int],
    evidence: Mapping[str, Evidence],
    movable: Mapping[str, Evidence],
) -> dict[str, int]:
    """Units that each layer shall have: as many as now, unless the global target has moved."""
    layers, sparsity = _layers(evidence), algorithm.sparsity_at(step)
    counts = unit_counts(algorithm, layers, sparsity) if algorithm.scope == "layer" else {}
    target = sum(counts.values()) if algorithm.scope == "layer" else total_alive(grids(algorithm, layers), sparsity)
    if algorithm.keeps_its_number or target == sum(now.values()):
        return dict(now)
    if algorithm.grow is None and not algorithm.never_falls and target > sum(now.values()) + len(now):
        raise ValueError(f"the sparsity of '{algorithm.name}' has fallen to {sparsity:g} at step {step}{FALLS}")
    if algorithm.scope == "layer":
        shrinks_only = algorithm.grow is None
        wanted = {name: min(now[name], counts[name]) if shrinks_only else counts[name] for name in movable}
    else:
        wanted = _global_counts(algorithm, target - sum(now[name] for name in now if name not in movable), movable)
    return {**now, **wanted}


def _global_counts(algorithm: Algorithm, target: int, evidence: Mapping[str, Evidence]) -> dict[str, int]:
    """Units of each layer under one threshold over all of them, ``target`` together, at least one in each.

    Where fewer shall live than do, it is one on the drop scores of the alive; where more, on the growth scores of the
    dead, if anything grows.
    """
    alive = {name: int(algorithm.pattern.units(known.alive).count_nonzero()) for name, known in evidence.items()}
    missing = target - sum(alive.values())
    if missing <= 0:
        least = sum(_least(algorithm, known.layer) for known in evidence.values())
        return counts_of_largest(max(target, least), partial(_keys_of_alive, algorithm), evidence)
    if algorithm.grow is None:
        return alive
    dead = sum(grid.size for grid in grids(algorithm, _layers(evidence)).values()) - sum(alive.values())
    newborn = counts_of_largest(min(missing, dead), partial(_keys_of_dead, algorithm, algorithm.grow), evidence)
    return {name: number + newborn[name] for name, number in alive.items()}


def _keys_of_alive(algorithm: Algorithm, known: Evidence) -> Tensor:
    """Of the drop scores of the alive units; the best of a layer, or slice, gets infinity's: none is emptied."""
    alive, drop = algorithm.pattern.units(known.alive), algorithm.pattern.reduce(algorithm.drop(known))
    scores = finite(spare(drop, alive, known.layer.norm_dim)[alive])
    scores[scores.argmax()] = math.inf
    return sortable(scores)


def _keys_of_dead(algorithm: Algorithm, grow: Score, known: Evidence) -> Tensor:
    """Of the growth scores of the dead units."""
    return sortable(finite(algorithm.pattern.reduce(grow(known))[~algorithm.pattern.units(known.alive)]))


def _redistributed(
    statistic: Score,
    keep: Mapping[str, int],
    budgets: Mapping[str, int],
    sizes: Mapping[str, int],
    evidence: Mapping[str, Evidence],
) -> dict[str, int]:
    """Budgets after all freed units went to the layers in proportion to the statistic's mean over alive weights."""
    shares = [float(statistic(known)[known.alive].float().mean()) for known in evidence.values()]
    if not 0 < sum(shares) < math.inf:
        return {}
    freed = sum(budgets[name] - keep[name] for name in evidence)
    given = apportion(freed, shares, [sizes[name] - keep[name] for name in evidence])
    return {name: keep[name] + more for name, more in zip(evidence, given, strict=True)}
