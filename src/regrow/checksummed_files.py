"""Files of tensors with a line in front that says what they are, how long, and what their content adds up to.

    {"regrow": "checkpoint", "schema": 1, "bytes": 123456, "blake2b": "…"}
    (the content, as torch.save writes it)

Nothing of the content is looked at before it is known to be whole. Loading never executes anything.
"""

import ctypes
import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from regrow_files import json_of, open_file, shown

LONGEST_LINE = 1000


def seal(file: IO[bytes], kind: str, schema: int, content: Mapping[str, Any]) -> None:
    """Writes ``content`` (tensors and plain values) and the line before it."""
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    packed = buffer.getbuffer()
    line = {"regrow": kind, "schema": schema, "bytes": len(packed), "blake2b": digest(packed)}
    file.write(json.dumps(line).encode() + b"\n")
    file.write(packed)


def unseal(path: Path, kind: str, schema: int, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What :func:`seal` wrote to ``path``.

    Raises:
        ValueError: the file is cut short, damaged, of another kind or schema, or holds what this library never writes
            (calls, compressed parts); says which.
    """
    with open_file(path) as file:
        line = _line(path, file.readline(LONGEST_LINE))
        if line["regrow"] != kind:
            raise ValueError(f"{path} is a file of {line['regrow']}, a {kind} was expected")
        if line["schema"] != schema:
            schema_there = f"{path} has schema {line['schema']}, this version reads {schema}"
            raise ValueError(f"{schema_there}: take the version it is of")
        packed = file.read()
    if len(packed) < line["bytes"]:
        raise ValueError(f"{path} is cut short: it has {len(packed):,} of {line['bytes']:,} bytes")
    if len(packed) != line["bytes"] or digest(packed) != line["blake2b"]:
        raise ValueError(f"{path} is damaged: its content does not add up to its checksum")
    return unpack(path, packed, device)


def unpack(path: Path, packed: bytes, device: torch.device | str = "cpu") -> dict[str, Any]:
    """What torch.save packed: tensors and plain values.

    Raises:
        ValueError: it holds what this library never writes (calls, compressed parts), or no dict; nothing was run.
    """
    try:
        _check_packing(packed)
        content = torch.load(io.BytesIO(packed), map_location=device, weights_only=True)
        _check_sizes(content)
    except Exception as error:  # torch's reader may raise anything
        reason = shown(str(error).splitlines()[0]) if str(error) else type(error).__name__
        raise ValueError(f"{path} is refused, nothing of it was run: {reason}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is refused: it holds a {type(content).__name__}, a dict was expected")
    return content


def digest(*parts: bytes | memoryview) -> str:
    """A checksum of bytes.

    >>> digest(b"regrow")[:8]
    '9b307b5c'
    """
    known = _start()
    for part in parts:
        known.update(part)
    return known.hexdigest()


def digest_of(tensors: Mapping[str, Tensor], *texts: str) -> str:
    """A checksum of named tensors, their kinds and shapes, and of some texts beside them."""
    known = _start()
    for text in texts:
        known.update(f"{text}\n".encode())
    for name, tensor in sorted(tensors.items()):
        known.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        held = tensor.detach().cpu().contiguous()
        if held.numel():  # by address, as the core does without numpy
            known.update((ctypes.c_uint8 * (held.numel() * held.element_size())).from_address(held.data_ptr()))
    return known.hexdigest()


def _start() -> "hashlib.blake2b":
    return hashlib.blake2b(digest_size=32)


def _line(path: Path, text: bytes) -> dict[str, Any]:
    try:
        line = json_of(text)
    except ValueError:
        line = None
    expected = {"regrow": str, "schema": int, "bytes": int, "blake2b": str}
    if not isinstance(line, dict) or {key: type(value) for key, value in line.items()} != expected:
        raise ValueError(f"{path} does not begin as a file of regrow does: it is damaged, or of another program")
    return line


def _check_packing(packed: bytes) -> None:
    """A zip whose parts are stored as they are, each once: compressed or shared ones could be of any size."""
    with zipfile.ZipFile(io.BytesIO(packed)) as archive:
        left = len(packed)
        for part in archive.infolist():
            left -= part.file_size
            if part.compress_type != zipfile.ZIP_STORED or left < 0:
                raise ValueError(f"its part {part.filename!r} is compressed, or lies where another does")


def _check_sizes(content: Any) -> None:
    """Refuses tensors that are larger than what they are stored as, with a ValueError or RuntimeError."""
    if isinstance(content, Tensor):
        if content.numel() * content.element_size() > content.untyped_storage().nbytes():  # of a sparse one: no storage
            raise ValueError(f"a tensor of shape {tuple(content.shape)} is larger than what it is stored as")
    elif isinstance(content, dict):
        for value in content.values():
            _check_sizes(value)
    elif isinstance(content, (list, tuple)):
        for value in content:
            _check_sizes(value)
