"""The data sets, by name: whole on the device, or streamed where they are too large for it."""

from __future__ import annotations

import functools
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from regrow_files import content_of
from regrow_lab.config import RunConfig
from regrow_lab.data.augment import AUGMENTATIONS, PADDING, Augmentation, crop_flip
from regrow_lab.data.batches import Images, Parts, Pixels, StreamedImages, Vectors, Windows, held_out
from regrow_lab.data.decoded_cache import counted, decoded, unpacked
from regrow_lab.data.digits import digits, digits_images
from regrow_lab.data.folder import ImageFolder, Listing, check_one_size, decode_file, find_image_folder, list_images
from regrow_lab.data.hugging_face import find_hugging_face, list_unpacked
from regrow_lab.data.sets import IMAGE_SETS
from regrow_lab.data.source import FourTensors, Source, data_root
from regrow_lab.data.statistics import counts_of, counts_of_files, statistics_of

TINY_SHAKESPEARE = "tinyshakespeare"
TEXT_TRAIN_SHARE = 0.9


@dataclass(frozen=True)
class Dataset:
    """Inputs (a sample a row) and labels (int64) of the training and the test part, on one device.

    Inputs are uint8 images, N × height × width × channels, with the mean and the standard deviation of each channel for
    pixels in [0, 1]; or whatever the net takes as it is, such as float32 vectors.
    """

    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    name: str = "digits"
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of labels, of either part."""
        return int(max(self.train_labels.max(), self.test_labels.max())) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        """A hash of all inputs and labels."""
        known = hashlib.blake2b(digest_size=16)
        for part in (self.train_inputs, self.train_labels, self.test_inputs, self.test_labels):
            known.update(f"{part.dtype} {tuple(part.shape)}".encode())
            known.update(part.cpu().contiguous().numpy().data)
        return known.hexdigest()

    def parts(self, config: RunConfig) -> Parts:
        """What a run trains on. Raises ValueError for augmentation of what is no image, and too much held out."""
        pixels = None
        if self.train_inputs.dtype == torch.uint8:
            pixels = Pixels(self.mean, self.std, _augmentation(config, self.train_inputs.shape[1:3]))
        else:
            _only_for_images(config, self.name)

        def part(inputs: Tensor, labels: Tensor, *, augmented: bool = False) -> Vectors | Images:
            if pixels is None:
                return Vectors(inputs, labels)
            return Images(inputs, labels, pixels if augmented else replace(pixels, augmentation=None))

        inputs, labels, validation = self.train_inputs, self.train_labels, None
        if config.validation:
            kept, held = held_out(len(labels), config.validation, config.data)
            validation = part(inputs[held.to(inputs.device)], labels[held.to(inputs.device)])
            inputs, labels = inputs[kept.to(inputs.device)], labels[kept.to(inputs.device)]
        train, test = part(inputs, labels, augmented=True), part(self.test_inputs, self.test_labels)
        example, _ = next(test.batches(torch.zeros(1, dtype=torch.int64), 1))
        return Parts(train, validation, test, self.num_classes, example)


@dataclass(frozen=True)
class Text:
    """Training and test part of a text as bytes (uint8), on one device."""

    train: Tensor
    test: Tensor
    name: str

    def parts(self, config: RunConfig) -> Parts:
        """Windows of `sequence_length` bytes; validation is the number of windows held out, from the end.

        Raises ValueError for augmentation, and for a text that is too short.
        """
        _only_for_images(config, self.name)
        length = config.sequence_length
        kept = len(self.train) - config.validation * length
        if min(kept, len(self.test)) < 2 * length:
            raise ValueError(
                f"data {self.name} has {len(self.train):,} + {len(self.test):,} bytes, too few for windows of {length} "
                f"with {config.validation} held out: give a smaller sequence_length"
            )
        validation = Windows(self.train[kept:], length, moving=False) if config.validation else None
        test = Windows(self.test, length, moving=False)
        example, _ = next(test.batches(torch.zeros(1, dtype=torch.int64), 1))
        return Parts(Windows(self.train[:kept], length, moving=True), validation, test, 256, example, is_text=True)


@dataclass(frozen=True)
class ImageFiles:
    """An image folder that is too large for the memory: decoded while the net trains."""

    folder: ImageFolder
    image_size: int
    device: torch.device
    name: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_classes(self) -> int:
        """Number of labels, of either part."""
        return max(*self.folder.train.labels, *self.folder.test.labels) + 1

    def parts(self, config: RunConfig) -> Parts:
        """What a run trains on. Raises ValueError for images too small to augment, and too much held out."""
        pixels = Pixels(self.mean, self.std)

        def part(listing: Listing, pixels: Pixels = pixels) -> StreamedImages:
            return StreamedImages(listing, self.image_size, pixels, self.device)

        kept, held = held_out(len(self.folder.train.files), config.validation, self.name)
        train = _chosen(self.folder.train, kept)
        validation = part(_chosen(self.folder.train, held)) if config.validation else None
        test = part(self.folder.test)
        first = decode_file(self.folder.test.files[0], self.image_size)[None, ..., : len(self.mean)].to(self.device)
        augmented = replace(pixels, augmentation=_augmentation(config, first.shape[1:3]))
        example = pixels.inputs(first, torch.zeros(1, dtype=torch.int64, device=self.device))
        return Parts(part(train, augmented), validation, test, self.num_classes, example)


def _chosen(listing: Listing, numbers: Tensor) -> Listing:
    chosen = numbers.tolist()
    return Listing(
        tuple(listing.files[number] for number in chosen), tuple(listing.labels[number] for number in chosen)
    )


def _augmentation(config: RunConfig, size: Sequence[int]) -> Augmentation | None:
    augmentation = AUGMENTATIONS[config.augmentation]
    if augmentation is crop_flip and min(size) <= PADDING:  # a reflection would reach beyond the other side
        raise ValueError(
            f"augmentation crop-flip pads with {PADDING} reflected pixels, images of data {config.data} are "
            f"{size[1]}×{size[0]}: leave it out, or scale the images of a folder with image_size"
        )
    return augmentation


def _only_for_images(config: RunConfig, name: str) -> None:
    if config.augmentation != "none":
        raise ValueError(f"augmentation {config.augmentation} is for images, data {name} has none: leave it out")


AnyData = Dataset | Text | ImageFiles

DATASETS: dict[str, Callable[[], FourTensors]] = {"digits": digits, "digits-images": digits_images}
"""Data that needs no files."""


def title_of(name: str) -> str:
    """The data set as a table names it."""
    return IMAGE_SETS[name].title if name in IMAGE_SETS else name


def load_data(name: str, device: torch.device, image_size: int = 0) -> AnyData:
    """The data set `name` on `device`; read once a process, and decoded once for all.

    Args:
        name: digits, one of IMAGE_SETS, tinyshakespeare, or the name of an image folder or a .txt file under the data
            root ($REGROW_DATA, else ~/data).
        device: where it will live.
        image_size: side in pixels to which the images of a folder are scaled; 0 leaves them as they are.

    Raises:
        ValueError: there is no such data set, its files are missing, truncated or not the published ones; or an
            image_size is given for what is no folder of images.
    """
    return _load(name, device, image_size, data_root())


def check_there(name: str, image_size: int = 0) -> None:
    """Raise ValueError as `load_data` does if a data set's files are not where they must lie. None of them is read."""
    root = data_root()
    if name in IMAGE_SETS:
        IMAGE_SETS[name].find(root)
    elif _is_text(name):
        _find_text(name, root)
    elif name not in DATASETS:
        _find_folder(name, image_size, root)


def _is_text(name: str) -> bool:
    return name == TINY_SHAKESPEARE or name.endswith(".txt")


@functools.cache
def _load(name: str, device: torch.device, image_size: int, root: Path) -> AnyData:
    if image_size and (name in DATASETS or name in IMAGE_SETS or _is_text(name)):
        raise ValueError(f"image_size is for folders of images, given {image_size} for data {name}: leave it out")
    if name in DATASETS:
        tensors = DATASETS[name]()
        mean, std = statistics_of(counts_of(tensors[0])) if tensors[0].dim() == 4 else ((), ())
        return Dataset(*_on(device, tensors), name=name, mean=mean, std=std)
    if name in IMAGE_SETS:
        image_set = IMAGE_SETS[name]
        source = image_set.find(root)
        found = decoded(name, source)
        image_set.check(found, source)
        return Dataset(*_on(device, found.tensors), name=name, mean=image_set.mean, std=image_set.std)
    if _is_text(name):
        return _load_text(name, device, root)
    return _load_folder(name, device, image_size, root)


def _on(device: torch.device, tensors: FourTensors) -> FourTensors:
    train_inputs, train_labels, test_inputs, test_labels = tensors
    return train_inputs.to(device), train_labels.to(device), test_inputs.to(device), test_labels.to(device)


def _find_text(name: str, root: Path) -> Path:
    names = (f"{name}.txt", f"{name}/input.txt", f"{name}/{name}.txt") if name == TINY_SHAKESPEARE else (name,)
    path = next((root / file for file in names if (root / file).is_file()), None)
    path = Path(name).absolute() if path is None and Path(name).is_file() else path
    if path is None:
        raise ValueError(
            f"{name} is not in {root} (looked for {', '.join(names)}): put it there, or set REGROW_DATA to the folder "
            "that holds it"
        )
    return path


def _load_text(name: str, device: torch.device, root: Path) -> Text:
    path = _find_text(name, root)
    content = torch.frombuffer(bytearray(content_of(path) or b"\0"), dtype=torch.uint8).to(device)
    border = int(TEXT_TRAIN_SHARE * len(content))
    return Text(content[:border], content[border:], name)


def _load_folder(name: str, device: torch.device, image_size: int, root: Path) -> Dataset | ImageFiles:
    folder = _folder(name, root)
    source = _find_folder(name, image_size, root)
    if source.size() > memory_limit(device):
        listed = list_images(folder) if source.unpack is None else list_unpacked(unpacked(str(folder), source))
        if not image_size:
            check_one_size((*listed.train.files, *listed.test.files))
        counts = counted(f"{folder}-{image_size}", source.files, lambda: counts_of_files(listed, image_size))
        return ImageFiles(listed, image_size, device, name, *statistics_of(counts))
    found = decoded(f"{folder}-{image_size}", source)
    mean, std = statistics_of(counts_of(found.train_images))
    return Dataset(*_on(device, found.tensors), name=name, mean=mean, std=std)


def _folder(name: str, root: Path) -> Path:
    """Where a folder lies: under that of all data, or else in the current one."""
    folder, here = root / name, Path(name).absolute()
    return here if here.is_dir() and not folder.is_dir() else folder


def _find_folder(name: str, image_size: int, root: Path) -> Source:
    folder = _folder(name, root)
    source = None
    if folder.is_dir():
        source = find_image_folder(folder, image_size) or find_hugging_face(folder, image_size)
    if source is None:
        known = ", ".join([*DATASETS, *IMAGE_SETS, TINY_SHAKESPEARE])
        what = "has no train/CLASS/ with images" if folder.is_dir() else "does not exist"
        raise ValueError(
            f"unknown data {name!r}: choose one of {known}, an image folder ({folder} {what}), or package.module:load"
        )
    return source


def memory_limit(device: torch.device) -> int:
    """Bytes that a data set may take on `device`: half of the machine's memory, or of what is free on a GPU."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] // 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
