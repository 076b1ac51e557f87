"""MNIST and Fashion-MNIST: four idx files, gzipped or not. LeCun et al. 1998; Xiao et al. 2017."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from regrow_lab.data.source import Decoded, Source

PART, MOST = 2**20, 2**31
"""Bytes that are read at a time, and those that a file may hold at most (EMNIST, the largest of its kind, has 2^29)."""
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
MNIST = {
    "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
}
FASHION_MNIST = {
    "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
}
"""MD5 of the published files."""


def find_idx(checksums: Mapping[str, str], folder: Path) -> Source | None:
    """The four files in `folder` or in its raw/ (where torchvision puts them); None if there is not one of them.

    Raises ValueError if only some of the four are there.
    """
    for place in (folder, folder / "raw"):
        present = {name: path for name in FILES if (path := _file(place, name)) is not None}
        if len(present) == len(FILES):
            paths = tuple(present.values())
            return Source("idx files", paths, partial(_read, checksums, paths))
        if present:
            missing = ", ".join(name for name in FILES if name not in present)
            raise ValueError(f"{place} has no {missing} (nor with .gz): fetch it again")
    return None


def _file(folder: Path, name: str) -> Path | None:
    dotted = name.replace("-idx", ".idx")  # as some mirrors name them
    candidates = [folder / f"{stem}{ending}" for stem in (name, dotted) for ending in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def _read(checksums: Mapping[str, str], paths: tuple[Path, ...]) -> Decoded:
    train_images, train_labels, test_images, test_labels = (read_idx(path, checksums.get(path.name)) for path in paths)
    return Decoded(train_images.unsqueeze(-1), train_labels.long(), test_images.unsqueeze(-1), test_labels.long())


def read_idx(path: Path, md5: str | None = None) -> Tensor:
    """The uint8 array of an idx file.

    Args:
        path: the file, gzipped if its name ends in .gz.
        md5: of the file as published; None leaves the check out.

    Raises:
        ValueError: it is truncated, of another type, or another file than the published one.
    """
    content = path.read_bytes()
    if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path} is not the published file (its MD5 is not {md5}): fetch it again")
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            return _array(file, path)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is truncated or no gzip file ({error}): fetch it again") from None


def _array(file: IO[bytes] | gzip.GzipFile, path: Path) -> Tensor:
    start = file.read(4)
    if len(start) < 4 or start[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of bytes: fetch it again")
    sizes = file.read(4 * start[3])
    shape = [int.from_bytes(sizes[4 * d : 4 * d + 4]) for d in range(start[3])]
    promised = math.prod(shape)
    if promised > MOST:
        raise ValueError(f"{path} promises {promised:,} bytes of content, more than {MOST:,}: it is damaged or a trap")
    content = bytearray()
    # No more than was promised, a part at a time: neither the header nor a gzip file decides how much memory is taken.
    while len(content) <= promised and (part := file.read(min(PART, promised + 1 - len(content)))):
        content += part
    if len(sizes) != 4 * start[3] or len(content) != promised:
        raise ValueError(f"{path} is truncated or too long: its header promises {promised:,} bytes of content")
    return torch.frombuffer(content, dtype=torch.uint8).view(shape) if promised else torch.empty(shape).byte()
