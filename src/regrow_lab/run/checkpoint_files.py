"""Checkpoints and weights on the disk: sealed with a checksum, whole or not there, and no larger than they look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from regrow.checksummed_files import seal, unseal
from regrow_lab.store.whole_files import write_whole

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
    return unseal(path, kind, SCHEMA, device)
