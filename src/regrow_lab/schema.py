"""What stands in config.json and result.json: of what kind each value must be for tables and figures to work on it."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from regrow_lab.config import RunConfig

Kinds = Mapping[str, tuple[type, ...]]

LARGEST = 2**63
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
    **dict.fromkeys(("scale", "data", "storage", "precision"), TEXT),
}
NUMBERS_ONLY = {"densities": NUMBER, "wall": NUMBER, "sparse_flops_by_epoch": NUMBER}


def check(
    path: Path, fields: Mapping[str, Any], kinds: Kinds, remedy: str = "delete the run's folder to have it done again"
) -> None:
    """Refuse a file of which a value is of another kind than it must be; what it lacks or has besides is left alone.

    Raises ValueError that names the value, and what to do.
    """
    for name, kind in kinds.items():
        if name not in fields:
            continue
        _check_value(path, name, fields[name], kind, remedy)
        if name in NUMBERS_ONLY and fields[name] is not None:
            parts = fields[name].items() if isinstance(fields[name], dict) else enumerate(fields[name])
            for part, value in parts:
                _check_value(path, f"{name}.{part}", value, NUMBERS_ONLY[name], remedy)


def check_result(path: Path, fields: Mapping[str, Any]) -> None:
    """The same of a result, which has an accuracy if it says that the run came to its end."""
    check(path, fields, RESULT)
    if fields.get("status") == "finished" and fields.get("test_accuracy") is None:
        raise ValueError(f"{path} is damaged: a finished run has an accuracy; delete the run's folder to have it anew")


def _check_value(path: Path, name: str, value: Any, kind: tuple[type, ...], remedy: str) -> None:
    if type(value) not in kind or (isinstance(value, int) and abs(value) >= LARGEST):
        expected = " or ".join("null" if each is NOTHING else each.__name__ for each in kind)
        given = f"a {type(value).__name__}" if isinstance(value, (dict, list)) else f"{value!r:.40}"
        raise ValueError(f"{path} is damaged: {name} is {given}, expected {expected}; {remedy}")
