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

from regrow_files import open_file
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
    "train-images-idx3-ubyte": ("f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
    "train-labels-idx1-ubyte": ("d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    "t10k-images-idx3-ubyte": ("9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
    "t10k-labels-idx1-ubyte": ("ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
}
FASHION_MNIST = {
    "train-images-idx3-ubyte": ("8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
    "train-labels-idx1-ubyte": ("25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
    "t10k-images-idx3-ubyte": ("bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
    "t10k-labels-idx1-ubyte": ("bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
}
"""MD5 of the published files, NAME.gz, and of what is in them."""
Checksums = Mapping[str, tuple[str, str]]


def find_idx(checksums: Checksums, folder: Path) -> Source | None:
    """The four files in `folder` or in its raw/ (where torchvision puts them); None if there is not one of them.

    Raises ValueError if only some of the four are there.
    """
    for place in (folder, folder / "raw"):
        present = {name: path for name in FILES if (path := _file(place, name)) is not None}
        if len(present) == len(FILES):
            return Source("idx files", tuple(present.values()), partial(_read, checksums, present))
        if present:
            missing = ", ".join(name for name in FILES if name not in present)
            raise ValueError(f"{place} has no {missing} (nor with .gz): fetch it again")
    return None


def _file(folder: Path, name: str) -> Path | None:
    dotted = name.replace("-idx", ".idx")  # as some mirrors name them
    candidates = [folder / f"{stem}{ending}" for stem in (name, dotted) for ending in ("", ".gz")]
    return next((path for path in candidates if path.is_file()), None)


def _read(checksums: Checksums, paths: Mapping[str, Path]) -> Decoded:
    train_images, train_labels, test_images, test_labels = (
        read_idx(paths[name], checksums[name][1] if name in checksums else None) for name in FILES
    )
    return Decoded(train_images.unsqueeze(-1), train_labels.long(), test_images.unsqueeze(-1), test_labels.long())


def read_idx(path: Path, md5: str | None = None) -> Tensor:
    """The uint8 array of an idx file, gzipped or not: its content says which, as browsers unpack and leave the name.

    Args:
        path: the file.
        md5: of the content as published, unpacked; None leaves the check out.

    Raises:
        ValueError: it is truncated, of another type, or has another content than the published one.
    """
    with open_file(path) as file:
        is_packed = file.read(2) == b"\x1f\x8b"
        file.seek(0)
        try:
            return _array(gzip.open(file) if is_packed else file, path, md5)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is truncated or no gzip file ({error}): fetch it again") from None


def _array(file: IO[bytes] | gzip.GzipFile, path: Path, md5: str | None) -> Tensor:
    start = file.read(4)
    if len(start) < 4 or start[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of bytes, nor one that is gzipped: fetch it again")
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
    if md5 is not None and hashlib.md5(start + sizes + content, usedforsecurity=False).hexdigest() != md5:
        raise ValueError(f"{path} has another content than the published file (its MD5 is not {md5}): fetch it again")
    return torch.frombuffer(content, dtype=torch.uint8).view(shape) if promised else torch.empty(shape).byte()
