"""What stands in config.json, result.json and study.json: of what kind and size each value is."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrow_lab.config import MOST_SEEDS, RunConfig

Kinds = Mapping[str, tuple[type, ...]]
Place = Path | str
ANEW = "delete the run's folder to have it done again"
LINE_ANEW = "put the file back as it was, or delete the line to have the run done again"

LARGEST = 2**63
LONGEST = {str: 4096, dict: 10_000, list: 1_000_000}
"""Characters and entries that a value has at most."""
NUMBER, TEXT, TABLE, NOTHING = (int, float), (str,), (dict,), type(None)


def _kinds(hint: Any) -> tuple[type, ...]:
    if typing.get_origin(hint) is typing.Literal:
        return (str,)
    if isinstance(hint, types.UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in _kinds(part))
    return NUMBER if hint is float else (hint,)


_HINTS = typing.get_type_hints(RunConfig)
CONFIG: Kinds = {field.name: _kinds(_HINTS[field.name]) for field in dataclasses.fields(RunConfig)}
RESULT: Kinds = {
    "status": TEXT,
    "torch": TEXT,
    "machine": TEXT,
    "date": TEXT,
    "densities": TABLE,
    "sparse_flops_by_epoch": (list,),
    **dict.fromkeys(("wall", "line"), (*TABLE, NOTHING)),
    **dict.fromkeys(
        ("sparsity", "seconds", "train_ratio", "test_ratio", "dense_flops", "sparse_flops", "mean_sparse_flops"), NUMBER
    ),
    **dict.fromkeys(("train_flops", "earlier_train_ratio", "steps", "weight_steps", "updates"), NUMBER),
    **dict.fromkeys(("test_accuracy", "test_loss", "test_bits", "diverged_at"), (*NUMBER, NOTHING)),
    **dict.fromkeys(("validation_accuracy", "validation_loss", "peak_memory_mib"), (*NUMBER, NOTHING)),
    "samples_per_second": NUMBER,
}
STUDY: Kinds = {
    "study": TEXT,
    "seeds": (int,),
    **dict.fromkeys(("scale", "data", "storage", "precision", "model", "method"), TEXT),
}
RANGES: Mapping[str, tuple[float, float]] = {
    "seeds": (1, MOST_SEEDS),
    **dict.fromkeys(("test_accuracy", "validation_accuracy"), (0, 100)),
    **dict.fromkeys(("sparsity", "densities"), (0, 1)),
    **dict.fromkeys(
        ("seconds", "samples_per_second", "train_ratio", "test_ratio", "earlier_train_ratio"), (0, LARGEST)
    ),
    **dict.fromkeys(("dense_flops", "sparse_flops", "mean_sparse_flops", "train_flops"), (0, LARGEST)),
    **dict.fromkeys(("steps", "weight_steps", "updates", "diverged_at", "sparse_flops_by_epoch"), (0, LARGEST)),
}
"""Lowest and highest number, where not any will do."""
NEEDED = ("status", "test_accuracy", "diverged_at", "train_ratio", "seconds")
"""What every result has."""
NUMBERS_ONLY = {"densities": NUMBER, "wall": NUMBER, "sparse_flops_by_epoch": NUMBER}


def check(place: Place, fields: Mapping[str, Any], kinds: Kinds, remedy: str = ANEW) -> None:
    """Refuse what has a value of another kind than it must be; what it lacks or has besides is left alone.

    Raises ValueError that names the value, and what to do.
    """
    for name, kind in kinds.items():
        if name not in fields:
            continue
        _check_value(place, name, fields[name], kind, remedy)
        if name in NUMBERS_ONLY and fields[name] is not None:
            parts = fields[name].items() if isinstance(fields[name], dict) else enumerate(fields[name])
            for part, value in parts:
                _check_value(place, f"{name}.{part}", value, NUMBERS_ONLY[name], remedy)


def check_config(place: Place, fields: Mapping[str, Any], remedy: str = ANEW) -> None:
    """The same of a configuration, whose values are those of a run; how its data set is called is left alone."""
    check(place, fields, CONFIG, remedy)
    try:
        RunConfig(**{name: fields[name] for name in CONFIG if name in fields and name != "data"})
    except ValueError as error:
        raise ValueError(f"{place} is damaged: {error}; {remedy}") from None


def check_result(place: Place, fields: Mapping[str, Any], remedy: str = ANEW) -> None:
    """The same of a result, which has an accuracy if it says that the run came to its end."""
    check(place, fields, RESULT, remedy)
    missing = [name for name in NEEDED if name not in fields]
    if missing:
        raise ValueError(f"{place} has no field {missing[0]!r}: {remedy}")
    if fields.get("status") == "finished" and fields.get("test_accuracy") is None:
        raise ValueError(f"{place} is damaged: a finished run has an accuracy; {remedy}")


def _check_value(place: Place, name: str, value: Any, kind: tuple[type, ...], remedy: str) -> None:
    if type(value) not in kind or (isinstance(value, int) and abs(value) >= LARGEST):
        expected = " or ".join("null" if each is NOTHING else each.__name__ for each in kind)
        given = f"a {type(value).__name__}" if isinstance(value, (dict, list)) else f"{value!r:.40}"
        raise ValueError(f"{place} is damaged: {name} is {given}, expected {expected}; {remedy}")
    if isinstance(value, (str, dict, list)) and len(value) > LONGEST[type(value)]:
        raise ValueError(f"{place} is damaged: {name} has {len(value):,} entries; {remedy}")
    low, high = RANGES.get(name.partition(".")[0], (-math.inf, math.inf))
    if type(value) in NUMBER and not low <= value <= high:
        expected = f"{low} or more" if high == LARGEST else f"a number from {low} to {high:,}"
        raise ValueError(f"{place} is damaged: {name} is {value}, expected {expected}; {remedy}")
