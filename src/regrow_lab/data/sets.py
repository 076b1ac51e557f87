"""The data sets that have a name: where they lie, what they must hold, how they are normalised and fetched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from regrow_lab.data.cifar import CIFAR_10, CIFAR_100, Archive, find_cifar
from regrow_lab.data.fetch import Download
from regrow_lab.data.folder import find_image_folder
from regrow_lab.data.hugging_face import find_hugging_face
from regrow_lab.data.idx import FASHION_MNIST, FILES, MNIST, find_idx
from regrow_lab.data.source import Decoded, Source

PARTS = ("training", "test")
Finder = Callable[[Path], Source | None]


@dataclass(frozen=True)
class ImageSet:
    """A published set of images.

    `loose` is looked for in the root of all data, `finders` in the root's `folders`; `files` says in words what they
    look for. `size` is training and test images, `shape` height × width × channels; mean and std are those of the
    training images, for pixels in [0, 1].
    """

    name: str
    title: str
    size: tuple[int, int]
    shape: tuple[int, int, int]
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    files: str
    folders: tuple[str, ...]
    finders: tuple[Finder, ...]
    loose: Finder | None = None
    downloads: tuple[Download, ...] = ()

    def find(self, root: Path) -> Source:
        """The set under `root`. Raises ValueError if it is not there, or only parts of it are."""
        places = [(root / folder, finder) for folder in self.folders for finder in self.finders]
        for place, finder in [*([(root, self.loose)] if self.loose else []), *places]:
            source = finder(place) if place.is_dir() else None
            if source is not None:
                return source
        remedy = f"run `regrow data fetch {self.name}`, or set" if self.downloads else "unpack it there, or set"
        raise ValueError(
            f"{self.title} is not in {root} (looked in {', '.join(self.folders)} for {self.files}): {remedy} "
            "REGROW_DATA to the folder that holds it"
        )

    def check(self, found: Decoded, source: Source) -> None:
        """Refuse what is not the whole set. Raises ValueError."""
        sizes = (len(found.train_images), len(found.test_images))
        shape = tuple(found.train_images.shape[1:])
        if sizes != self.size or shape != self.shape or tuple(found.test_images.shape[1:]) != self.shape:
            raise ValueError(
                f"{source.folder} holds {sizes[0]:,} + {sizes[1]:,} images of {_times(shape)}; {self.title} "
                f"has {self.size[0]:,} + {self.size[1]:,} of {_times(self.shape)}: get it again"
            )
        for part, labels, size in zip(PARTS, (found.train_labels, found.test_labels), sizes, strict=True):
            if labels.shape != (size,):
                raise ValueError(
                    f"{source.folder} has {size:,} {part} images and {_times(tuple(labels.shape)) or 'no'} labels of "
                    f"them; expected one an image: get it again"
                )
            inside = bool(((labels >= 0) & (labels < self.num_classes)).all())
            if not inside or not labels.bincount(minlength=self.num_classes).all():
                raise ValueError(
                    f"{source.folder}: the labels are not 0 to {self.num_classes - 1}; {self.title} has "
                    f"{self.num_classes} classes: get it again"
                )


def _times(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _is_jpeg(source: Source) -> bool:
    return source.files[0].suffix.lower() in (".jpg", ".jpeg")


def _lossless_folder(folder: Path) -> Source | None:
    source = find_image_folder(folder)
    if source is not None and _is_jpeg(source):
        raise ValueError(
            f"{folder} holds JPEG images, which are not those of the original set: use its archive (for CIFAR-10 as "
            "JPEG say data cifar10-jpeg)"
        )
    return source


def _jpeg_folder(folder: Path) -> Source | None:
    source = find_image_folder(folder)
    return source if source is not None and _is_jpeg(source) else None


def _archive(archive: Archive, folder: str) -> Download:
    return Download(f"https://www.cs.toronto.edu/~kriz/{archive.name}", folder, archive.size, archive.md5)


ARCHIVES = tuple(" or ".join(archive.name for archive in each) + ", unpacked or not" for each in (CIFAR_10, CIFAR_100))
IDX = f"{FILES[0]} and the three others like it, with .gz or without"
LOSSLESS = "train/CLASS/*.png and test/CLASS/*.png, or parquet files"

CIFAR_10_MEAN, CIFAR_10_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)

IMAGE_SETS = {
    image_set.name: image_set
    for image_set in (
        ImageSet(
            "cifar10",
            "CIFAR-10",
            (50_000, 10_000),
            (32, 32, 3),
            10,
            CIFAR_10_MEAN,
            CIFAR_10_STD,
            files=f"{ARCHIVES[0]}, {LOSSLESS}",
            folders=("cifar10", "cifar-10", "CIFAR10"),
            finders=(partial(find_cifar, CIFAR_10), _lossless_folder, find_hugging_face),
            loose=partial(find_cifar, CIFAR_10),
            downloads=(_archive(CIFAR_10[0], "cifar10"),),
        ),
        ImageSet(
            "cifar10-jpeg",
            "CIFAR-10 (JPEG)",
            (50_000, 10_000),
            (32, 32, 3),
            10,
            CIFAR_10_MEAN,
            CIFAR_10_STD,
            files="train/CLASS/*.jpg and test/CLASS/*.jpg",
            folders=("cifar10-jpeg", "cifar10-jpeg/cifar10", "cifar10"),
            finders=(_jpeg_folder,),
        ),
        ImageSet(
            "cifar100",
            "CIFAR-100",
            (50_000, 10_000),
            (32, 32, 3),
            100,
            (0.5071, 0.4865, 0.4409),
            (0.2673, 0.2564, 0.2762),
            files=f"{ARCHIVES[1]}, {LOSSLESS}",
            folders=("cifar100", "cifar-100", "CIFAR100"),
            finders=(partial(find_cifar, CIFAR_100), _lossless_folder, find_hugging_face),
            loose=partial(find_cifar, CIFAR_100),
            downloads=(_archive(CIFAR_100[0], "cifar100"),),
        ),
        ImageSet(
            "mnist",
            "MNIST",
            (60_000, 10_000),
            (28, 28, 1),
            10,
            (0.1307,),
            (0.3081,),
            files=f"{IDX}, {LOSSLESS}",
            folders=("mnist", "MNIST"),
            finders=(partial(find_idx, MNIST), find_image_folder, find_hugging_face),
            downloads=tuple(
                Download(f"https://ossci-datasets.s3.amazonaws.com/mnist/{name}.gz", "mnist", None, md5)
                for name, (md5, _) in MNIST.items()
            ),
        ),
        ImageSet(
            "fashion-mnist",
            "Fashion-MNIST",
            (60_000, 10_000),
            (28, 28, 1),
            10,
            (0.2860,),
            (0.3530,),
            files=f"{IDX}, {LOSSLESS}",
            folders=("fashion-mnist", "fashion_mnist", "FashionMNIST"),
            finders=(partial(find_idx, FASHION_MNIST), find_image_folder, find_hugging_face),
            downloads=tuple(
                Download(
                    f"http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/{name}.gz", "fashion-mnist", None, md5
                )
                for name, (md5, _) in FASHION_MNIST.items()
            ),
        ),
    )
}
