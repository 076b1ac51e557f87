"""The sparsifier's state on disk: packing masks to bits, and refusing what does not fit."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from regrow.layers import Layer
from regrow.norms import covers

VERSION = 1


def pack(mask: Tensor) -> Tensor:
    """A bool tensor as bytes, eight weights each, lowest bit first.

    >>> pack(torch.tensor([True, False, False, True, False, False, False, False, True])).tolist()
    [9, 1]
    """
    bits = torch.nn.functional.pad(mask.flatten().view(torch.uint8), (0, -mask.numel() % 8)).view(-1, 8)
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return (bits * powers).sum(dim=1, dtype=torch.uint8)


def unpack(packed: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of :func:`pack`."""
    powers = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=packed.device)
    bits = (packed.unsqueeze(1) & powers) != 0
    return bits.flatten()[: math.prod(shape)].reshape(tuple(shape))


def check(
    saved: Any,
    groups: Sequence[tuple[str, list[str]]],
    layers: Mapping[str, Layer],
    momenta: Mapping[str, Tensor | None],
) -> dict[str, Tensor]:
    """The masks of a saved state, after everything in it was found to fit.

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
        valid = isinstance(value, int) and (key == "seed" or value >= 0)
        _expect(valid, f"'{key}' is {value!r}, a count was expected", "the file is damaged")
    _expect(isinstance(saved.get("layers"), Mapping), "it has no layers", "the file is damaged")
    missing = [name for name in layers if name not in saved["layers"]]
    extra = [name for name in saved["layers"] if name not in layers]
    _expect(not missing, f"it lacks layer '{(missing or [''])[0]}'", "attach to the model that it was saved from")
    _expect(
        not extra, f"it has a layer '{(extra or [''])[0]}' besides", "attach with the include= that it was saved with"
    )
    _check_groups(saved.get("groups"), groups)
    return {name: _mask(name, saved["layers"][name], layer, momenta[name]) for name, layer in layers.items()}


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
        raise ValueError(f"this state does not fit: {found}; {remedy}")


def _check_groups(found: Any, groups: Sequence[tuple[str, list[str]]]) -> None:
    _expect(
        isinstance(found, list) and all(isinstance(entry, Mapping) for entry in found), "no groups", "it is damaged"
    )
    names = [(entry.get("algorithm"), entry.get("layers")) for entry in found]
    here = ", ".join(name for name, _ in groups)
    there = ", ".join(str(name) for name, _ in names)
    _expect(
        names == [(name, layers) for name, layers in groups],
        f"it was saved with algorithm {there}, this sparsifier runs {here}",
        "attach the algorithm (and groups) that it was saved with",
    )
    for entry in found:
        due = entry.get("next_update")
        _expect(due is None or (isinstance(due, int) and due >= 0), f"'next_update' is {due!r}", "the file is damaged")


def _mask(name: str, entry: Any, layer: Layer, momentum: Tensor | None) -> Tensor:
    _expect(isinstance(entry, Mapping), f"layer '{name}' is {type(entry).__name__}", "the file is damaged")
    shape = entry.get("shape")
    _expect(
        shape == list(layer.shape),
        f"layer '{name}' has shape {shape}, the model's is {list(layer.shape)}",
        "attach to the model that it was saved from",
    )
    packed = entry.get("mask")
    valid = isinstance(packed, Tensor) and packed.dtype == torch.uint8 and packed.shape == (-(-layer.size // 8),)
    _expect(valid, f"the mask of '{name}' is not {-(-layer.size // 8)} bytes", "the file is damaged")
    steps = entry.get("alive_steps")
    _expect(isinstance(steps, int) and steps >= 0, f"'alive_steps' of '{name}' is {steps!r}", "the file is damaged")
    kept = entry.get("momentum")
    fits = kept is None if momentum is None else isinstance(kept, Tensor) and kept.shape == momentum.shape
    _expect(
        fits, f"the momentum of '{name}' is of another shape or kind", "attach the algorithm that it was saved with"
    )
    assert isinstance(packed, Tensor)
    mask = unpack(packed, layer.shape)
    _expect(bool(mask.any()), f"the mask of '{name}' has no alive weight", "the file is damaged")
    _expect(
        layer.norm_dim is None or covers(mask, layer.norm_dim),
        f"a slice of '{name}' along dimension {layer.norm_dim} has no alive weight, and is divided by its norm",
        "it was saved before weights like this one kept one in each: attach without it (exclude=)",
    )
    return mask
