"""Tiny data sets in the forms that the real ones have on a disk."""

import shutil
import struct
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

PIXELS = 3 * 32 * 32


def random_images(number: int, seed: int = 0, side: int = 32, channels: int = 3) -> Tensor:
    """Number × height × width × channels, uint8."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (number, side, side, channels), generator=generator, dtype=torch.uint8)


def records(images: Tensor, labels: list[int], coarse: int | None = None) -> bytes:
    """The binary form of CIFAR: a label (behind a coarse one for CIFAR-100), then the planes of red, green and blue."""
    head = b"" if coarse is None else bytes([coarse])
    planes = images.permute(0, 3, 1, 2).contiguous()
    pairs = zip(planes, labels, strict=True)
    return b"".join(head + bytes([label]) + bytes(image.flatten().tolist()) for image, label in pairs)


def python_2_pickle(images: Tensor, labels: list[int], key: bytes = b"labels") -> bytes:
    """What the python form holds: a dict with a list of labels and a numpy array, pickled by Python 2, protocol 2."""
    content = bytes(images.permute(0, 3, 1, 2).flatten().tolist())
    number = b"J" + struct.pack("<i", len(images))
    width = b"M" + struct.pack("<H", PIXELS)
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87Rq\x09"
        b"(K\x01" + number + width + b"\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b"
        b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(content))
        + content
        + b"tb"
    )
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    name = b"U" + bytes([len(key)]) + key
    return b"\x80\x02}q\x01(" + name + numbers + b"U\x04data" + array + b"u."


def idx(array: Tensor) -> bytes:
    """An idx file of bytes."""
    shape = b"".join(struct.pack(">I", size) for size in array.shape)
    return bytes([0, 0, 8, array.dim()]) + shape + bytes(array.flatten().tolist())


def write_image_folder(root: Path, *, train: int = 12, test: int = 4, side: int = 8, ending: str = "png") -> Path:
    """Classes bright and dark, told apart by the mean of their pixels."""
    for part, number, seed in (("train", train, 1), ("test", test, 2)):
        for label, name in enumerate(("bright", "dark")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for position, pixels in enumerate(random_images(number, seed + 10 * label, side) // 2 + 127 * (1 - label)):
                Image.fromarray(pixels.numpy()).save(folder / f"{position:03}.{ending}")
    return root


def write_hugging_face(folder: Path, *, remove: bool = False) -> Path:
    """The pictures of an image folder as the rows of parquet files, classes in turn; `remove`: in their place."""
    import pyarrow
    from pyarrow import parquet

    for part in ("train", "test"):
        paths = sorted((folder / part).glob("*/*"), key=lambda path: (path.name, path.parent.name))
        cells = [{"bytes": path.read_bytes(), "path": None} for path in paths]
        labels = [int(path.parent.name == "dark") for path in paths]
        parquet.write_table(pyarrow.table({"image": cells, "label": labels}), folder / f"{part}-0.parquet")
        if remove:
            shutil.rmtree(folder / part)
    return folder
