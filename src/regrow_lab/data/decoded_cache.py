"""Decoded data sets as uint8 tensors on the disk, so that archives and pictures are decoded once."""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from regrow_files import check_readable
from regrow_lab.data.source import Decoded, Source, fingerprint
from regrow_lab.store.whole_files import read_json, write_json, write_whole

SCHEMA = 3  # 1 cut images of 16 bits off at 255; 2 told the channels of each part by itself, and lost GIF in unpacking


def cache_folder() -> Path:
    """$XDG_CACHE_HOME/regrow, else ~/.cache/regrow."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "regrow"


def decoded(name: str, source: Source) -> Decoded:
    """What `source` decodes to, from the cache if it is there, whole, and of these very files; else read and kept.

    Raises ValueError as the source does.
    """
    path = cache_folder() / f"{_short(name)}.pt"
    key = fingerprint(source.files)
    found = _load(path, key)
    if found is None:
        found = source.read()
        _keep(path, key, found)
    return found


def unpacked(name: str, source: Source) -> Path:
    """The folder of images that `source` unpacks to: in the cache if it is there, of these very files; else written.

    Raises ValueError as the source does, and if there is no place for it.
    """
    assert source.unpack is not None
    home = cache_folder() / f"{_short(name)}-{fingerprint(source.files)}-{SCHEMA}"
    if home.is_dir():
        return home
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=home.parent, prefix=".unpacking-") as under_way:
            source.unpack(Path(under_way) / "whole")
            with suppress(FileExistsError):  # another process was faster
                (Path(under_way) / "whole").rename(home)
    except OSError as error:
        raise ValueError(
            f"{name} is larger than the memory and is unpacked to stream, which failed in {home.parent} "
            f"({error.strerror}): make room there, or name another place with XDG_CACHE_HOME"
        ) from None
    return home


def counted(name: str, files: Iterable[Path], count: Callable[[], Tensor]) -> Tensor:
    """What `count` counts in these files, from the cache if it is there, whole, and of these very files; else kept."""
    path = cache_folder() / f"{_short(name)}-counts.json"
    key = fingerprint(files)
    with suppress(OSError, ValueError, KeyError):
        stored = read_json(path)
        if stored["checksum"] == _of_counts(key, stored["counts"]):
            return torch.tensor(stored["counts"])
    found = count()
    counts = found.tolist()
    with suppress(OSError):  # a full or read-only disk: they are counted again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"checksum": _of_counts(key, counts), "counts": counts})
    return found


def _of_counts(key: str, counts: object) -> str:
    return hashlib.sha256(f"{SCHEMA} {key} {counts}".encode()).hexdigest()


def _short(name: str) -> str:
    return f"{hashlib.sha256(name.encode()).hexdigest()[:8]}-{Path(name).name}"


def _load(path: Path, key: str) -> Decoded | None:
    try:
        check_readable(path)
        stored = torch.load(path, weights_only=True, mmap=True)
        if (stored["schema"], stored["key"]) != (SCHEMA, key):
            return None
        found = Decoded(**stored["decoded"])
        return found if _checksum(found) == stored["checksum"] else None
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError, TypeError, ValueError):
        return None  # broken or of another version: it is made again


def _keep(path: Path, key: str, found: Decoded) -> None:
    content = {"schema": SCHEMA, "key": key, "checksum": _checksum(found), "decoded": vars(found)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda file: torch.save(content, file))
    except OSError:
        pass  # a full or read-only disk: it is decoded again next time


def _checksum(found: Decoded) -> str:
    known = hashlib.sha256()
    for tensor in found.tensors:
        known.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        known.update(tensor.contiguous().view(torch.uint8).numpy().data)
    return known.hexdigest()
