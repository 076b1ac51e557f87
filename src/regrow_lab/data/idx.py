"""MNIST and Fashion-MNIST: four idx files, gzipped or not. LeCun et al. 1998; Xiao et al. 2017."""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from regrow_lab.data.source import Decoded, Source

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
            return Source("idx files", paths, lambda paths=paths: _read(checksums, paths))  # type: ignore[misc]
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
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or no gzip file ({error}): fetch it again") from None
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of bytes: fetch it again")
    dimensions = content[3]
    header = 4 + 4 * dimensions
    shape = [int.from_bytes(content[4 + 4 * d : 8 + 4 * d]) for d in range(dimensions)]
    if len(content) != header + math.prod(shape):
        raise ValueError(
            f"{path} is truncated: {len(content):,} bytes, its header promises {header + math.prod(shape):,}"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)[header:].view(shape)
