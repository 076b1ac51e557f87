"""An image data set as the Hugging Face hub or library leaves it on a disk: parquet or arrow, read with pyarrow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from regrow_files import open_file
from regrow_lab.data.folder import (
    TEST_NAMES,
    UNPACKED,
    ImageFolder,
    Listing,
    check_same_size,
    eight_bits,
    list_images,
    pixels_of,
)
from regrow_lab.data.source import Decoded, Source, with_fewest_channels
from regrow_lab.store.whole_files import read_json, write_json

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "fine_label", "labels")
MOST_CLASSES = 2**17
"""A folder is made for each, and a row of the net's last layer. (ImageNet-21k has 21,841.)"""
ROWS = "rows.json"
"""In a folder of unpacked images: how many each part has."""


def find_hugging_face(folder: Path, image_size: int = 0) -> Source | None:
    """The parquet or arrow files in `folder` or below; None if there is none with train in its name or folder.

    Images are scaled and cut to `image_size` as those of an image folder.
    """
    for ending in ("parquet", "arrow"):
        files = sorted(path for path in folder.rglob(f"*.{ending}") if not path.name.startswith("cache-"))
        train = tuple(path for path in files if _is_part(path, folder, ("train",)))
        tests = (tuple(path for path in files if _is_part(path, folder, (name,))) for name in TEST_NAMES)
        test = next((part for part in tests if part), ())
        if train and test:
            return _source(f"{ending} files", train, test, image_size)
        if train:
            raise ValueError(f"{folder} has {ending} files of a train part but none of a test part: get both")
    return None


def _source(what: str, train: tuple[Path, ...], test: tuple[Path, ...], image_size: int) -> Source:
    files = (*train, *test)
    return Source(
        what,
        files,
        lambda: _read(train, test, image_size),
        lambda: _size(files, image_size),
        lambda folder: _unpack(train, test, folder),
    )


def _is_part(path: Path, folder: Path, names: tuple[str, ...]) -> bool:
    """Whether a file such as plain_text/train-00000-of-00001.parquet or test/data-00000-of-00001.arrow is of a part."""
    parent = path.parent.name if path.parent != folder else ""
    words = path.stem.replace("_", "-").split("-")
    return parent in names or any(word in names for word in words)


def _read(train: tuple[Path, ...], test: tuple[Path, ...], image_size: int) -> Decoded:
    (train_images, train_labels), (test_images, test_labels) = (_read_part(part, image_size) for part in (train, test))
    check_same_size(test[0], test_images.shape[1:], train[0], train_images.shape[1:])
    return with_fewest_channels(Decoded(train_images, train_labels, test_images, test_labels))


def _read_part(files: tuple[Path, ...], image_size: int) -> tuple[Tensor, Tensor]:
    images: list[Tensor] = []
    labels: list[int] = []
    for path in files:
        for row, (content, label) in enumerate(_rows(path)):
            images.append(_decode(content, path, row, image_size))
            labels.append(label)
    if not images:
        raise ValueError(f"{files[0].parent}: a part has no images; get it again")
    if len({image.shape for image in images}) != 1:
        raise ValueError(f"{files[0].parent}: the images differ in size: scale them with image_size")
    return torch.stack(images), torch.tensor(labels)


def _size(files: tuple[Path, ...], image_size: int) -> int:
    first = next(_rows(files[0]), None)
    if first is None:
        return 0
    return _decode(first[0], files[0], 0, image_size).numel() * sum(len(_columns(path)[1]) for path in files)


def _unpack(train: tuple[Path, ...], test: tuple[Path, ...], folder: Path) -> None:
    """Writes the parts as an image folder whose classes are the labels, PART/LABEL/NUMBER.image, and their sizes."""
    highest = 0
    rows = {}
    for part, files in (("train", train), ("test", test)):
        number = 0
        for path in files:
            for row, (content, label) in enumerate(_rows(path)):
                highest, number = max(highest, label), number + 1
                home = folder / part / f"{label:09}"
                home.mkdir(parents=True, exist_ok=True)
                with _opened(content, path, row):
                    (home / f"{number:09}{UNPACKED}").write_bytes(content)
        rows[part] = number
    for part in ("train", "test"):  # a label that a part lacks is a class all the same
        for label in range(highest + 1):
            (folder / part / f"{label:09}").mkdir(parents=True, exist_ok=True)
    write_json(folder / ROWS, rows)


def list_unpacked(folder: Path) -> ImageFolder:
    """What was unpacked into `folder`, in the order of the rows: that in which it is read where it fits the memory.

    Raises ValueError if a row's image is not there.
    """
    listed = list_images(folder)
    rows = read_json(folder / ROWS) if (folder / ROWS).exists() else {}
    for name, part in (("train", listed.train), ("test", listed.test)):
        if len(part.files) != rows.get(name):
            raise ValueError(
                f"{folder} holds {len(part.files):,} images of {name}, {rows.get(name)} were unpacked there: delete "
                "it, and it is unpacked anew"
            )
    return replace(listed, train=_by_number(listed.train), test=_by_number(listed.test))


def _by_number(part: Listing) -> Listing:
    pairs = sorted(zip(part.files, part.labels, strict=True), key=lambda pair: pair[0].name)
    return Listing(tuple(path for path, _ in pairs), tuple(label for _, label in pairs))


def _columns(path: Path) -> tuple[Any, Any]:
    """The images and the labels of a file."""
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError as error:
        raise ValueError(
            f"{path} is read with pyarrow and pillow, and {error.name} is not installed: pip install pyarrow pillow"
        ) from None
    try:
        with open_file(path) as file:
            table = parquet.read_table(file) if path.suffix == ".parquet" else _read_arrow(file, ipc)
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is truncated or broken ({reason}): get it again") from None
    image_column = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    label_column = next((name for name in LABEL_COLUMNS if name in table.column_names), None)
    if image_column is None or label_column is None:
        raise ValueError(
            f"{path} has columns {', '.join(table.column_names)}; expected one of {', '.join(IMAGE_COLUMNS)} and one "
            f"of {', '.join(LABEL_COLUMNS)}"
        )
    return table[image_column], table[label_column]


def _rows(path: Path) -> Iterator[tuple[bytes, int]]:
    """The file in each image cell, and the label."""
    images, labels = _columns(path)
    for row, (cell, label_cell) in enumerate(zip(images, labels, strict=True)):
        content, label = cell.as_py(), label_cell.as_py()
        content = content.get("bytes") if isinstance(content, dict) else content
        if not isinstance(label, int) or not 0 <= label < MOST_CLASSES:
            raise ValueError(f"{path}: the label of row {row} is {label!r:.40}, the number of a class was expected")
        yield content or b"", label


def _decode(content: bytes, path: Path, row: int, image_size: int) -> Tensor:
    """The image of a row, uint8, height × width × 3."""
    with _opened(content, path, row) as opened:
        image = eight_bits(opened).convert("RGB")
    return pixels_of(image, image_size)


@contextmanager
def _opened(content: bytes, path: Path, row: int) -> Iterator[Any]:
    try:
        from PIL import Image

        with Image.open(io.BytesIO(content)) as opened:
            yield opened
    except Exception as error:  # a broken image may raise anything, and one of too many pixels is refused by pillow
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: the image of row {row} cannot be read ({reason}): get it again") from None


def _read_arrow(file: IO[bytes], ipc: Any) -> Any:
    """A table from the stream format, which the library writes, or the file format."""
    is_file_format = file.read(6) == b"ARROW1"
    file.seek(0)
    return (ipc.open_file(file) if is_file_format else ipc.open_stream(file)).read_all()
