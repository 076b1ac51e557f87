"""Checkpoints and weights on the disk: sealed with a checksum, whole or not there, and no larger than they look."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow.sealing import seal, unseal
from regrow_lab.store import write_whole

SCHEMA = 1
CHECKPOINT, WEIGHTS = "checkpoint", "weights"
"""What such files can be."""


def save(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain values) to `path`, the whole file or nothing of it."""
    write_whole(path, lambda file: seal(file, kind, SCHEMA, content))


def load(path: Path, kind: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` wrote to `path` as a `kind`.

    Raises ValueError that says which: it is cut short, damaged, of another kind or schema, or holds what this program
    never writes (calls, compressed parts, tensors that are larger than the file).
    """
    content = unseal(path, kind, SCHEMA, device)
    try:
        _check_sizes(content)
    except (RuntimeError, ValueError) as error:  # RecursionError among them; a sparse tensor has no storage
        raise ValueError(f"{path} is refused, nothing of it was run: {str(error).splitlines()[0]}") from error
    return content


def _check_sizes(content: Any) -> None:
    for tensor in _tensors(content):
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError(f"a tensor of shape {tuple(tensor.shape)} is larger than what it is stored as")


def _tensors(content: Any) -> Iterator[Tensor]:
    if isinstance(content, Tensor):
        yield content
    elif isinstance(content, dict):
        for value in content.values():
            yield from _tensors(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            yield from _tensors(value)
