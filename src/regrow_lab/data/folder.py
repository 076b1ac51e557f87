"""Images in folders, one folder a class: NAME/train/CLASS/*.png and NAME/test/CLASS/*.png (or val/)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from regrow_files import open_file
from regrow_lab.data.source import Decoded, Source, with_fewest_channels

UNPACKED = ".image"
"""What a row of a Hugging Face file is unpacked to, of whatever format: pillow goes by the content, not the name."""
ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", UNPACKED)
TEST_NAMES = ("test", "val", "validation")


@dataclass(frozen=True)
class Listing:
    """The files of one part and the number of each one's class, in order of class and name."""

    files: tuple[Path, ...]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class ImageFolder:
    """The two parts of an image folder and the names of the classes, in order."""

    train: Listing
    test: Listing
    classes: tuple[str, ...]


def find_image_folder(folder: Path, image_size: int = 0) -> Source | None:
    """The image folder at `folder` as a source that decodes the whole of it; None if it has no train/CLASS/.

    Raises ValueError as `list_images` does.
    """
    train = folder / "train"
    if not train.is_dir() or not any(path.is_dir() for path in train.iterdir()):
        return None
    listed = list_images(folder)
    files = (*listed.train.files, *listed.test.files)
    return Source(
        "image folder",
        files,
        lambda: _decode_all(listed, image_size),
        lambda: len(files) * decode_file(listed.train.files[0], image_size).numel(),
    )


def list_images(folder: Path) -> ImageFolder:
    """The images of `folder`, by part and class; classes in order of their names.

    Raises ValueError if it has no test/ or val/, no images, or other classes in one part than in the other.
    """
    parts = [folder / name for name in TEST_NAMES if (folder / name).is_dir()]
    if not parts:
        raise ValueError(f"{folder} has train/ but no test/ or val/: expected both, with a folder a class in each")
    train, test = _classes(folder / "train"), _classes(parts[0])
    if train.keys() != test.keys():
        odd = sorted(train.keys() ^ test.keys())[0]
        raise ValueError(f"{folder}: class {odd!r} is in only one of train/ and {parts[0].name}/")
    if not any(train.values()) or not any(test.values()):
        raise ValueError(f"{folder} holds no images in its classes' folders (of {', '.join(ENDINGS)})")
    return ImageFolder(_listing(train), _listing(test), tuple(train))


def _classes(part: Path) -> dict[str, list[Path]]:
    return {
        folder.name: [folder / name for name in sorted(os.listdir(folder)) if name.lower().endswith(ENDINGS)]
        for folder in sorted(part.iterdir())
        if folder.is_dir() and not folder.name.startswith(".")
    }


def _listing(classes: dict[str, list[Path]]) -> Listing:
    return Listing(
        tuple(path for paths in classes.values() for path in paths),
        tuple(label for label, paths in enumerate(classes.values()) for _ in paths),
    )


def _decode_all(listed: ImageFolder, image_size: int) -> Decoded:
    train, test = (decode_files(part.files, image_size) for part in (listed.train, listed.test))
    check_same_size(listed.test.files[0], test.shape[1:], listed.train.files[0], train.shape[1:])
    labels = torch.tensor(listed.train.labels), torch.tensor(listed.test.labels)
    return with_fewest_channels(Decoded(train, labels[0], test, labels[1]))


def decode_files(files: Sequence[Path], image_size: int = 0) -> Tensor:
    """The images of `files`, uint8, N × height × width × 3.

    Args:
        files: of one size, unless image_size is given.
        image_size: scale the shorter side to so many pixels and cut out the middle; 0 leaves images as they are.

    Raises:
        ValueError: a file is no image that can be read, or images differ in size.
    """
    first = decode_file(files[0], image_size)
    images = torch.empty(len(files), *first.shape, dtype=torch.uint8)

    def fill(number: int) -> None:
        image = decode_file(files[number], image_size)
        check_same_size(files[number], image.shape, files[0], first.shape)
        images[number] = image

    with threads() as pool:
        list(pool.map(fill, range(len(files))))
    return images


def threads() -> ThreadPoolExecutor:
    """As many as there are cores for this process: pillow decodes outside the interpreter's lock."""
    return ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def decode_file(path: Path, image_size: int = 0) -> Tensor:
    """One image, uint8, height × width × 3. Arguments and errors as in `decode_files`."""
    try:
        from PIL import Image
    except ImportError:
        raise ValueError("image folders are read with pillow, which is not installed: pip install pillow") from None
    try:
        with open_file(path) as file, Image.open(file) as opened:
            image = eight_bits(opened).convert("RGB")
    except Exception as error:  # a broken image may raise anything, and one of too many pixels is refused by pillow
        raise ValueError(f"{path} is no image that can be read ({error}): repair or delete it") from None
    return pixels_of(image, image_size)


def pixels_of(image: Any, image_size: int = 0) -> Tensor:
    """A pillow image in RGB as uint8, height × width × 3, scaled and cut as in `decode_files`."""
    from PIL import Image, ImageOps

    if image_size:
        image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    width, height = image.size
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(height, width, 3)


def eight_bits(image: Any) -> Any:
    """A pillow image with eight bits a channel: of the sixteen of a deep grey one (PNG, TIFF) the upper eight.

    Raises ValueError for pixels that are no whole numbers from 0 to 65,535: nobody says what is white among them.
    """
    if not image.mode.startswith(("I", "F")):
        return image
    import numpy as np
    from PIL import Image

    values = np.asarray(image)  # pillow's own conversion would cut it off at 255
    if image.mode == "F" or values.min() < 0 or values.max() >= 2**16:
        raise ValueError(f"its pixels go from {values.min():g} to {values.max():g}; expected 8 or 16 bits a channel")
    return Image.fromarray((values >> 8).astype(np.uint8))


def check_one_size(files: Sequence[Path], looked_at: int = 64) -> None:
    """Refuses files of several sizes by what their heads say, so that a stream does not stop in mid-epoch.

    Args:
        files: of which so many are looked at, evenly spread.

    Raises:
        ValueError: two differ, or one is no image.
    """
    from PIL import Image

    sizes: dict[tuple[int, int], Path] = {}
    for path in files[:: max(1, len(files) // looked_at)]:
        try:
            with open_file(path) as file, Image.open(file) as opened:
                sizes.setdefault(opened.size, path)
        except Exception as error:  # as in decode_file
            raise ValueError(f"{path} is no image that can be read ({error}): repair or delete it") from None
        if len(sizes) > 1:
            (one, first), (other, second) = sizes.items()
            raise ValueError(
                f"{second} is {other[0]}×{other[1]}, {first} is {one[0]}×{one[1]}: scale them with image_size"
            )


def check_same_size(path: Path, shape: Sequence[int], first: Path, expected: Sequence[int]) -> None:
    """Raise ValueError where the image at `path` (height × width × channels) is not as large as the first."""
    if shape != expected:
        raise ValueError(
            f"{path} is {shape[1]}×{shape[0]}, {first} is {expected[1]}×{expected[0]}: scale them with image_size"
        )
