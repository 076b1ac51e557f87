"""Loaded weights: the masks that they have, and what is said of those that lie outside the masks."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from regrow.algorithm import Algorithm
from regrow.parts.distributions import total_alive
from regrow.parts.redistribution import apportion
from regrow.parts.scores import Evidence, random
from regrow.storage.distributed import whole
from regrow.topology import grids, unit_counts
from regrow.training.saved_state import SAME_SPARSITY

SPARSE = 0.05
"""A weight of which so many entries are 0, and not all, has been sparse before: nearly always it was loaded."""
LEEWAY = 0.05
"""By this share of its alive weights a net may have fewer that are not exactly 0."""


def refusal(strays: Mapping[str, str]) -> ValueError:
    """What a step says that would zero weights or state which something else wrote.

    Args:
        strays: layer name → what lies outside its mask.
    """
    (name, what), *others = strays.items()
    more = f" (as in {len(others)} more of its layers)" if others else ""
    return ValueError(
        f"{what} of '{name}' lie outside its mask{more}, and this step would make them 0: something was loaded or "
        "written that does not fit the masks. Load what was saved with it: sparsifier.load_state_dict(…); or take its "
        "masks over, sparsifier.take_masks_from_weights(); or, if it is to be zeroed (averages, noise), "
        "sparsifier.apply_masks(model)"
    )


def is_sparse(weight: Tensor) -> bool:
    """Whether a weight looks like that of a sparse net: a twentieth of it or more is 0, and not all (as at a start)."""
    zeros = int(whole((weight == 0).sum()))
    return max(1.0, SPARSE * weight.numel()) <= zeros < weight.numel()


def begins_anew(strays: Mapping[str, tuple[str, int, int]]) -> ValueError:
    """What the first step says of a sparse net whose method begins dense.

    Args:
        strays: layer name → name of its method, zeros, size.
    """
    (name, (method, zeros, size)), *others = strays.items()
    more = f" (and {len(others)} more of its layers)" if others else ""
    return ValueError(
        f"'{name}'{more} is sparse already: {zeros:,} of its {size:,} weights are 0, and {method} begins with every "
        "weight alive, so that it would prune the net once more. If it was trained sparse, load what was saved with "
        "it: sparsifier.load_state_dict(…); or take its masks over, sparsifier.take_masks_from_weights(); or, if the "
        "method is to begin anew from this net, sparsifier.apply_masks(model)"
    )


def masks_of_weights(algorithm: Algorithm, evidence: Mapping[str, Evidence], updates: bool) -> dict[str, Tensor]:
    """The masks of sparse weights: what is not 0 is alive, and of the zeros as many as the method's number asks for.

    Alive weights may be exactly 0, above all those that an update has just grown. Which of the zeros they were, only
    the sparsifier's state knows: a method that keeps its number draws them at random, any other has them dead.

    Args:
        algorithm: the layers' method.
        evidence: of every layer of the group.
        updates: whether the method has updates to come.

    Raises:
        ValueError: the method cannot have such masks: no weight is 0, or more are not than it has, or by far fewer.
    """
    pattern, layers = algorithm.pattern, {name: known.layer for name, known in evidence.items()}
    units = {name: pattern.units(known.weight != 0) for name, known in evidence.items()}
    found = {name: int(alive.count_nonzero()) for name, alive in units.items()}
    sizes = {name: alive.numel() for name, alive in units.items()}
    if found == sizes and algorithm.final_sparsity != 0:
        raise ValueError(
            f"none of the {sum(sizes.values()):,} {pattern.unit} of {', '.join(layers)} is 0, so there are no masks to "
            "take from them: load the sparse model first"
        )
    if algorithm.keeps_its_number:
        budgets = unit_counts(algorithm, layers, algorithm.sparsity_at(0))
        if algorithm.keeps_each_number:
            for name in layers:
                _check_number(f"'{name}'", found[name], budgets[name], algorithm)
        else:
            _check_number(f"the net's {algorithm.name}", sum(found.values()), sum(budgets.values()), algorithm)
            missing = sum(budgets.values()) - sum(found.values())
            room = [sizes[name] - found[name] for name in layers]
            given = apportion(missing, [float(number) for number in found.values()], room)
            budgets = {name: found[name] + more for name, more in zip(layers, given, strict=True)}
    else:
        _check_range(algorithm, evidence, found, updates)
        budgets = found
    masks = {}
    for name, known in evidence.items():
        scores = pattern.reduce(random(known)).masked_fill(units[name], math.inf)
        alive = pattern.choose(scores, budgets[name], torch.ones_like(units[name]), budgets[name])
        masks[name] = pattern.expand(alive, known.layer.shape)
    return masks


def _check_number(what: str, found: int, expected: int, algorithm: Algorithm) -> None:
    """Of a method that keeps its number: no more than that, and no fewer than after an update that grew the most."""
    replaced = algorithm.fraction(0) if algorithm.grow is not None else 0.0
    if not expected - math.ceil((replaced + LEEWAY) * expected) <= found <= expected:
        raise ValueError(
            f"{found:,} {algorithm.pattern.unit} of {what} are not 0, and {algorithm.name} keeps {expected:,} alive "
            f"here: {SAME_SPARSITY}"
        )


def _check_range(
    algorithm: Algorithm, evidence: Mapping[str, Evidence], found: Mapping[str, int], updates: bool
) -> None:
    """Of a method that grows sparser: no sparser than in the end, and no denser than that where the end has come."""
    for name, number in found.items():
        if not number:
            raise ValueError(f"every weight of '{name}' is 0, so it has no mask: load the sparse model first")
    layers, final = {name: known.layer for name, known in evidence.items()}, algorithm.final_sparsity
    if final is None:
        return
    if algorithm.scope == "layer":
        least = sum(unit_counts(algorithm, layers, final).values())
    else:
        least = total_alive(grids(algorithm, layers), final)
    total = sum(found.values())
    if total < (1 - LEEWAY) * least - 1 or (total > least and not updates):
        raise ValueError(
            f"{total:,} {algorithm.pattern.unit} are not 0, and {algorithm.name} ends at {least:,} here"
            f"{'' if updates else ', without another update to come'}: {SAME_SPARSITY}"
        )
