"""Files of tensors with a line in front that says what they are, how long, and what their content adds up to.

    {"regrow": "checkpoint", "schema": 1, "bytes": 123456, "blake2b": "…"}
    (the content, as torch.save writes it)

Nothing of the content is looked at before it is known to be whole. Loading never executes anything.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow_lab.store import write_whole

SCHEMA = 1
CHECKPOINT, WEIGHTS = "checkpoint", "weights"
"""What such files can be."""
LONGEST_LINE = 1000


def save(path: Path, kind: str, content: dict[str, Any]) -> None:
    """Write `content` (tensors and plain values) to `path`, the whole file or nothing of it."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    packed = buffer.getbuffer()
    line = {"regrow": kind, "schema": SCHEMA, "bytes": len(packed), "blake2b": _digest(packed)}

    def write(file: Any) -> None:
        file.write(json.dumps(line).encode() + b"\n")
        file.write(packed)

    write_whole(path, write)


def load(path: Path, kind: str, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What `save` wrote to `path` as a `kind`.

    Raises ValueError that says which: it is cut short, damaged, of another kind or schema, or holds what this program
    never writes (calls, compressed parts, tensors that are larger than the file).
    """
    with path.open("rb") as file:
        line = _line(path, file.readline(LONGEST_LINE))
        packed = file.read()
    if line["regrow"] != kind:
        raise ValueError(f"{path} is a file of {line['regrow']}, a {kind} was expected")
    if line["schema"] != SCHEMA:
        raise ValueError(f"{path} has schema {line['schema']}, this version reads {SCHEMA}: take the version it is of")
    if len(packed) < line["bytes"]:
        raise ValueError(f"{path} is cut short: it has {len(packed):,} of {line['bytes']:,} bytes")
    if len(packed) > line["bytes"] or _digest(packed) != line["blake2b"]:
        raise ValueError(f"{path} is damaged: its content does not add up to its checksum")
    try:
        _check_packing(packed)
        content = torch.load(io.BytesIO(packed), map_location=device, weights_only=True)
        _check_sizes(content)
    except Exception as error:  # torch's reader may raise anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} is refused, nothing of it was run: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is refused: it holds a {type(content).__name__}, a dict was expected")
    return content


def _digest(packed: bytes | memoryview) -> str:
    return hashlib.blake2b(packed, digest_size=32).hexdigest()


def _line(path: Path, text: bytes) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except ValueError:
        line = None
    expected = {"regrow": str, "schema": int, "bytes": int, "blake2b": str}
    if not isinstance(line, dict) or {key: type(value) for key, value in line.items()} != expected:
        raise ValueError(f"{path} does not begin as a file of regrow does: it is damaged, or of another program")
    return line


def _check_packing(packed: bytes) -> None:
    """A zip whose parts are stored as they are: compressed ones could be of any size."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        for part in archive.infolist():
            if part.compress_type != zipfile.ZIP_STORED or part.file_size > len(packed):
                raise ValueError(f"its part {part.filename!r} is compressed")


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
