"""CIFAR-10 and CIFAR-100 from the official archives, binary or python form, packed or unpacked. Krizhevsky 2009."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from regrow_files import content_of, open_file
from regrow_lab.data.pickles import read_pickle
from regrow_lab.data.source import Decoded, Source, check_file

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Archive:
    """One official archive: its name, size in bytes, MD5, the folder in it, and the files that are read.

    `label_bytes` are those before the pixels of a record (binary form, the last one counts); None is the python form,
    whose label list is `label_key`. A member's MD5 is None where none has been published.
    """

    name: str
    size: int
    md5: str
    folder: str
    train: tuple[tuple[str, str | None], ...]
    test: tuple[tuple[str, str | None], ...]
    label_bytes: int | None = None
    label_key: str = "labels"


CIFAR_10 = (
    Archive(
        "cifar-10-binary.tar.gz",
        170_052_171,
        "c32a1d4ab5d03f1284b67883e8d87530",
        "cifar-10-batches-bin",
        train=tuple((f"data_batch_{number}.bin", None) for number in range(1, 6)),
        test=(("test_batch.bin", None),),
        label_bytes=1,
    ),
    Archive(
        "cifar-10-python.tar.gz",
        170_498_071,
        "c58f30108f718f92721af3b95e74349a",
        "cifar-10-batches-py",
        train=(
            ("data_batch_1", "c99cafc152244af753f735de768cd75f"),
            ("data_batch_2", "d4bba439e000b95fd0a9bffe97cbabec"),
            ("data_batch_3", "54ebc095f3ab1f0389bbae665268c751"),
            ("data_batch_4", "634d18415352ddfa80567beed471001a"),
            ("data_batch_5", "482c414d41f54cd18b22e5b47cb7c3cb"),
        ),
        test=(("test_batch", "40351d587109b95175f43aff81a1287e"),),
    ),
)
CIFAR_100 = (
    Archive(
        "cifar-100-binary.tar.gz",
        168_513_733,
        "03b5dce01913d631647c71ecec9e9cb8",
        "cifar-100-binary",
        train=(("train.bin", None),),
        test=(("test.bin", None),),
        label_bytes=2,
    ),
    Archive(
        "cifar-100-python.tar.gz",
        169_001_437,
        "eb9058c3a382ffc7106e4002c42a8d85",
        "cifar-100-python",
        train=(("train", "16019d7e3df5f24257cddd939b257f8d"),),
        test=(("test", "f0ef6b0ae62326f3e7ffdfab6717acfc"),),
        label_key="fine_labels",
    ),
)


def find_cifar(archives: tuple[Archive, ...], folder: Path) -> Source | None:
    """The first of the archives that lies in `folder`, unpacked (or `folder` itself is what was unpacked) or packed.

    Raises ValueError if a file is missing from what was unpacked.
    """
    for archive in archives:
        names = [name for name, _ in (*archive.train, *archive.test)]
        for unpacked in (folder / archive.folder, folder):
            if (unpacked / names[0]).is_file():
                files = tuple(unpacked / name for name in names)
                missing = [path for path in files if not path.is_file()]
                if missing:
                    raise ValueError(f"{missing[0]} is missing: unpack {archive.name} again")
                return Source(archive.folder, files, _reader(archive, _unpacked, unpacked))
        if (folder / archive.name).is_file():
            return Source(archive.name, (folder / archive.name,), _reader(archive, _packed, folder / archive.name))
    return None


Contents = Callable[[Archive, Path], Iterator[tuple[str, bytes]]]


def _reader(archive: Archive, contents: Contents, path: Path) -> Callable[[], Decoded]:
    def read() -> Decoded:
        found = {name: _decode(archive, content, f"{path}: {name}") for name, content in contents(archive, path)}
        train, test = ([found[name] for name, _ in part] for part in (archive.train, archive.test))
        return Decoded(
            torch.cat([images for images, _ in train]),
            torch.cat([labels for _, labels in train]),
            torch.cat([images for images, _ in test]),
            torch.cat([labels for _, labels in test]),
        )

    return read


def _unpacked(archive: Archive, folder: Path) -> Iterator[tuple[str, bytes]]:
    for name, md5 in (*archive.train, *archive.test):
        path = folder / name
        content = content_of(path)
        if md5 is not None and hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            raise ValueError(f"{path} is not the published file (its MD5 is not {md5}): unpack {archive.name} again")
        yield name, content


def _packed(archive: Archive, path: Path) -> Iterator[tuple[str, bytes]]:
    """The members that are read, straight from the archive: nothing is unpacked to the disk."""
    check_file(path, archive.size, archive.md5)
    wanted = {f"{archive.folder}/{name}": name for name, _ in (*archive.train, *archive.test)}
    try:
        with open_file(path) as file, tarfile.open(fileobj=file) as members:
            for member in members:
                name = wanted.pop(member.name.removeprefix("./"), None)
                content = members.extractfile(member) if name is not None else None
                if name is not None and content is not None:
                    yield name, content.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}): fetch it again") from None
    if wanted:
        raise ValueError(f"{path} has no {', '.join(wanted)}: fetch it again")


def _decode(archive: Archive, content: bytes, what: str) -> tuple[Tensor, Tensor]:
    """Images (N × 32 × 32 × 3) and labels of one member."""
    if archive.label_bytes is not None:
        record = archive.label_bytes + PIXELS
        if not content or len(content) % record:
            raise ValueError(f"{what} is truncated: {len(content):,} bytes are not whole records of {record:,}")
        records = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record)
        pixels, labels = records[:, archive.label_bytes :], records[:, archive.label_bytes - 1].long()
    else:
        fields = read_pickle(content, what)
        given = (fields.get("data"), fields.get(archive.label_key)) if isinstance(fields, dict) else (None, None)
        match given:
            case (Tensor() as pixels, list(numbers)) if (
                pixels.shape == (len(numbers), PIXELS) and numbers and all(type(number) is int for number in numbers)
            ):
                labels = torch.tensor(numbers)
            case _:
                raise ValueError(f"{what} has no data of {PIXELS} bytes an image with as many {archive.label_key}")
    return pixels.view(-1, 3, 32, 32).permute(0, 2, 3, 1).contiguous(), labels
