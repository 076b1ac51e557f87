"""What a reader finds on the disk: which files a data set consists of, and how they become arrays."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from regrow_files import check_readable, open_file

FourTensors = tuple[Tensor, Tensor, Tensor, Tensor]
COMPARED = 1024
"""Images that are compared at once: of the whole set at once the answers would take as much memory as the set."""


@dataclass(frozen=True)
class Decoded:
    """A labelled data set, decoded: images uint8, N × height × width × channels; labels int64, N."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor

    @property
    def tensors(self) -> FourTensors:
        """All four, in the order above."""
        return self.train_images, self.train_labels, self.test_images, self.test_labels


def is_grey(images: Tensor) -> bool:
    """Whether the channels of all these images (… × channels) are the same."""
    return bool((images[..., :1] == images).all())


def with_fewest_channels(found: Decoded) -> Decoded:
    """The same with one channel in place of three, if every image of both parts is grey."""
    parts = found.train_images, found.test_images
    if not all(is_grey(images) for part in parts for images in part.split(COMPARED)):
        return found
    train, test = (part[..., :1].contiguous() for part in parts)
    return replace(found, train_images=train, test_images=test)


@dataclass(frozen=True)
class Source:
    """A data set as it lies on the disk. `files` tell whether it is still the same; `read` decodes it."""

    what: str
    files: tuple[Path, ...]
    read: Callable[[], Decoded]
    size: Callable[[], int] = lambda: 0
    """Bytes of all images once they are decoded, judged by the first; 0 where the set is known to be small."""
    unpack: Callable[[Path], None] | None = None
    """Writes the images into a folder, a file each, as they are; None where they lie so already."""

    @property
    def folder(self) -> Path:
        """The innermost folder that holds all files."""
        return Path(os.path.commonpath([path.parent for path in self.files]))


def data_root() -> Path:
    """The folder that holds the data sets: $REGROW_DATA, else ~/data."""
    return Path(os.environ.get("REGROW_DATA") or "~/data").expanduser()


def fingerprint(files: Iterable[Path]) -> str:
    """A hash of the names, sizes and times of `files`: another one means that they have to be decoded again."""
    known = hashlib.blake2b(digest_size=16)
    for path in files:
        status = path.stat()
        known.update(f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
    return known.hexdigest()


def md5_of(path: Path) -> str:
    """MD5 of a file, in hexadecimal: what the publishers of the classic data sets give."""
    with open_file(path) as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))  # type: ignore[arg-type]  # one that reads
    return found.hexdigest()


def check_file(path: Path, size: int | None, md5: str | None) -> None:
    """Refuse a file that is shorter or other than the published one; None leaves a check out.

    Raises ValueError.
    """
    check_readable(path)
    found = path.stat().st_size
    if size is not None and found < size:
        raise ValueError(f"{path} is truncated: {found:,} of {size:,} bytes; fetch it again")
    if size is not None and found > size:
        raise ValueError(f"{path} is not the published file (it has {found:,} bytes, not {size:,}): fetch it again")
    if md5 is not None and (other := md5_of(path)) != md5:
        raise ValueError(f"{path} is not the published file (its MD5 is {other}, not {md5}): fetch it again")
