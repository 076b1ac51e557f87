"""The sparsifier's state on disk: what does not fit is refused."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regrow.algorithm import Algorithm
from regrow.layers import Layer
from regrow.normalized_weights import covers
from regrow.parts.patterns import unstructured
from regrow.parts.schedules import Trigger
from regrow.storage.mask_bits import unpack
from regrow_files import shown

VERSION = 1


def check(
    saved: Any,
    groups: Sequence[tuple[Algorithm, list[str]]],
    layers: Mapping[str, Layer],
    momenta: Mapping[str, Tensor | None],
) -> dict[str, Tensor]:
    """The masks of a saved state, after everything in it was found to fit the groups and itself.

    Raises:
        ValueError: says what was found, what was expected, and what to do.
    """
    _expect(
        isinstance(saved, Mapping) and "version" in saved, "it is not a state of a sparsifier", "pass state_dict()'s"
    )
    _expect(
        saved["version"] == VERSION, f"it has version {saved['version']!r}, this library reads {VERSION}", "upgrade"
    )
    for key in ("seed", "weight_steps", "num_updates"):
        value = saved.get(key)
        _expect(_is_count(value), f"'{key}' is {_said(value)}, a count was expected", DAMAGED)
    _expect(isinstance(saved.get("layers"), Mapping), "it has no layers", DAMAGED)
    missing = [name for name in layers if name not in saved["layers"]]
    extra = [name for name in saved["layers"] if name not in layers]
    _expect(not missing, f"it lacks layer '{(missing or [''])[0]}'", "attach to the model that it was saved from")
    _expect(
        not extra, f"it has a layer '{(extra or [''])[0]}' besides", "attach with the include= that it was saved with"
    )
    _check_groups(saved.get("groups"), groups)
    _check_moments(saved, [algorithm.when for algorithm, _ in groups])
    masks = {name: _mask(name, saved["layers"][name], layer, momenta[name]) for name, layer in layers.items()}
    for algorithm, names in groups:
        for name in names:
            _check_alive_steps(name, saved, masks[name], algorithm)
    return masks


DAMAGED = "the file is damaged"
_ODD = "what '{}' has explored is not its alive weights and others, a bit each"
SAME_SPARSITY = "attach with the sparsity and distribution that it was saved with"


def check_number(what: str, found: int, expected: int, unit: str) -> None:
    """Refuses the masks of another sparsity, for a method that keeps its number of alive units."""
    _expect(found == expected, f"it has {found:,} alive {unit}, and {what} keeps {expected:,} here", SAME_SPARSITY)


def check_sparsity(algorithm: str, saved: Mapping[str, Any], expected: float | None) -> None:
    """Refuses the state of a group that was to end at another sparsity; states of before 0.2 do not say it."""
    found = saved.get("sparsity")
    if found is None or expected is None:
        return
    _expect(
        isinstance(found, (int, float)) and abs(found - expected) < 1e-9,
        f"its {algorithm} ends at sparsity {found!r}, the one here at {expected:g}",
        SAME_SPARSITY,
    )


def _expect(condition: bool, found: str, remedy: str) -> None:
    if not condition:
        raise ValueError(f"this state does not fit: {shown(found)}; {remedy}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _said(value: Any) -> str:
    """A value as a message shows it; Python writes no number of thousands of digits."""
    too_long = isinstance(value, int) and value.bit_length() > 63
    return f"a number of {value.bit_length()} bits" if too_long else f"{value!r:.40}"


def _check_groups(found: Any, groups: Sequence[tuple[Algorithm, list[str]]]) -> None:
    _expect(
        isinstance(found, list) and all(isinstance(entry, Mapping) for entry in found), "no groups", "it is damaged"
    )
    names = [(entry.get("algorithm"), entry.get("layers")) for entry in found]
    here = ", ".join(algorithm.name for algorithm, _ in groups)
    there = ", ".join(str(name) for name, _ in names)
    _expect(
        names == [(algorithm.name, layers) for algorithm, layers in groups],
        f"it was saved with algorithm {there}, this sparsifier runs {here}",
        "attach the algorithm (and groups) that it was saved with",
    )


def _check_moments(saved: Mapping[str, Any], triggers: Sequence[Trigger]) -> None:
    """Refuses moments that the schedules do not have, and a number of updates that does not fit to them.

    An update that had to wait for a (finite) gradient is still due after its moment, and then those behind it are left
    out. So there is one update at least where a moment has passed, and at most one for each.
    """
    steps, updates, least, most = saved["weight_steps"], saved["num_updates"], 0, 0
    for entry, when in zip(saved["groups"], triggers, strict=True):
        due, first, coming = entry.get("next_update"), when.following(0), when.following(steps + 1)
        _expect(due is None or _is_count(due), f"'next_update' is {_said(due)}", DAMAGED)
        waits = due is not None and due <= steps and when(due)
        _expect(
            waits or due == coming,
            f"its next update is at {due}, and after {steps} weight steps {when} has one at {coming}",
            "attach with the schedule that it was saved with",
        )
        passed = -1 if first is None else (steps if due is None else min(steps, due - 1)) - first
        if passed >= 0:
            least, most = least + 1, most + 1 + (passed // when.interval if when.interval else 0)
    expected = str(least) if least == most else f"{least} to {most}"
    _expect(
        least <= updates <= most,
        f"it counts {updates} updates where the schedule has {expected} in {steps} weight steps",
        DAMAGED,
    )


def _check_alive_steps(name: str, saved: Mapping[str, Any], mask: Tensor, algorithm: Algorithm) -> None:
    """Refuses a sum of alive weights over the weight steps that no masks of this method add up to."""
    steps, found = saved["weight_steps"], saved["layers"][name].get("alive_steps")
    low, high = 1, mask.numel()
    if algorithm.keeps_each_number and algorithm.pattern == unstructured:
        low = high = int(mask.count_nonzero())
    _expect(
        _is_count(found) and low * steps <= found <= high * steps,
        f"'alive_steps' of '{name}' is {_said(found)}, expected {low * steps:,} to {high * steps:,}",
        DAMAGED,
    )


def _is_plain(value: Any, shape: Sequence[int]) -> bool:
    """Whether a value is a tensor of this shape whose numbers are there, one beside another."""
    return (
        isinstance(value, Tensor)
        and (tuple(value.shape), value.layout) == (tuple(shape), torch.strided)
        and not value.is_meta
    )


def _mask(name: str, entry: Any, layer: Layer, momentum: Tensor | None) -> Tensor:
    _expect(isinstance(entry, Mapping), f"layer '{name}' is {type(entry).__name__}", DAMAGED)
    shape = entry.get("shape")
    _expect(
        shape == list(layer.shape),
        f"layer '{name}' has shape {shape!r:.40}, the model's is {list(layer.shape)}",
        "attach to the model that it was saved from",
    )
    packed, size = entry.get("mask"), -(-layer.size // 8)
    sound = _is_plain(packed, (size,)) and packed.dtype == torch.uint8
    _expect(sound, f"the mask of '{name}' is not {size} bytes", DAMAGED)
    explored = entry.get("explored")
    sound = explored is None or (_is_plain(explored, (size,)) and explored.dtype == torch.uint8)
    _expect(sound and (explored is None or bool((explored & packed == packed).all())), _ODD.format(name), DAMAGED)
    kept = entry.get("momentum")
    fits = kept is None
    if momentum is not None:
        fits = _is_plain(kept, momentum.shape) and torch.can_cast(kept.dtype, momentum.dtype)
    _expect(
        fits, f"the momentum of '{name}' is of another shape or kind", "attach the algorithm that it was saved with"
    )
    sound = kept is None or bool(kept.isfinite().all())
    _expect(sound, f"the momentum of '{name}' has values that are not finite", DAMAGED)
    mask = unpack(packed, layer.shape)
    _expect(bool(mask.any()), f"the mask of '{name}' has no alive weight", DAMAGED)
    _expect(
        layer.norm_dim is None or covers(mask, layer.norm_dim),
        f"a slice of '{name}' along dimension {layer.norm_dim} has no alive weight, and is divided by its norm",
        "it was saved before weights like this one kept one in each: attach without it (exclude=)",
    )
    return mask
