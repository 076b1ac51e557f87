"""Data sets in every form that they have on a disk, whole, broken and hostile."""

import dataclasses
import gzip
import hashlib
import io
import os
import pickle
import pickletools
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pictures
import pytest
import torch
from PIL import Image
from torch import Tensor

from regrow_lab import data as data_module
from regrow_lab.config import RunConfig
from regrow_lab.data import Dataset, ImageFiles, Text, load_data, title_of
from regrow_lab.data.cifar import CIFAR_10, CIFAR_100, Archive, find_cifar
from regrow_lab.data.decoded_cache import cache_folder, decoded
from regrow_lab.data.folder import decode_files, find_image_folder
from regrow_lab.data.hugging_face import find_hugging_face
from regrow_lab.data.idx import MNIST, find_idx, read_idx
from regrow_lab.data.pickles import read_pickle
from regrow_lab.data.sets import IMAGE_SETS, ImageSet
from regrow_lab.data.source import Decoded, Source

CPU = torch.device("cpu")
LABELS = [3, 1, 4, 1]
TRAIN, TEST = pictures.random_images(4, seed=1), pictures.random_images(2, seed=2)


@pytest.fixture(autouse=True)
def own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("REGROW_DATA", str(tmp_path_factory.mktemp("data")))


def root() -> Path:
    return Path(os.environ["REGROW_DATA"])


def contents(archive: Archive) -> dict[str, bytes]:
    """The members of a tiny archive: four training images in the first file and two in each other."""
    found = {}
    for number, (name, _) in enumerate((*archive.train, *archive.test)):
        images, labels = (TRAIN, LABELS) if number == 0 else (TEST, [0, 9])
        if archive.label_bytes is None:
            found[name] = pictures.python_2_pickle(images, labels, archive.label_key.encode())
        else:
            found[name] = pictures.records(images, labels, coarse=7 if archive.label_bytes == 2 else None)
    return found


def tiny(archive: Archive) -> Archive:
    """The archive with the checksums of tiny contents."""
    known = contents(archive)

    def with_md5(part: tuple[tuple[str, str | None], ...]) -> tuple[tuple[str, str | None], ...]:
        return tuple((name, md5 and hashlib.md5(known[name]).hexdigest()) for name, md5 in part)

    return dataclasses.replace(archive, train=with_md5(archive.train), test=with_md5(archive.test))


def write_packed(archive: Archive, folder: Path) -> Archive:
    path = folder / archive.name
    with tarfile.open(path, "w:gz") as packed:
        for name, content in {"readme.html": b"text", **contents(archive)}.items():
            member = tarfile.TarInfo(f"{archive.folder}/{name}")
            member.size = len(content)
            packed.addfile(member, io.BytesIO(content))
    content = path.read_bytes()
    return dataclasses.replace(tiny(archive), size=len(content), md5=hashlib.md5(content).hexdigest())


def write_unpacked(archive: Archive, folder: Path) -> Archive:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents(archive).items():
        (folder / name).write_bytes(content)
    return tiny(archive)


ARCHIVES = [*CIFAR_10, *CIFAR_100]


@pytest.mark.parametrize("form", ["packed", "unpacked", "itself"])
@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda archive: archive.name)
def test_cifar_is_read_in_every_form(tmp_path: Path, archive: Archive, form: str) -> None:
    if form == "packed":
        archive = write_packed(archive, tmp_path)
    else:
        archive = write_unpacked(archive, tmp_path if form == "itself" else tmp_path / archive.folder)
    source = find_cifar((archive,), tmp_path)
    assert source is not None
    found = source.read()
    assert torch.equal(found.train_images[:4], TRAIN)
    assert found.train_labels[:4].tolist() == LABELS
    assert torch.equal(found.test_images, TEST)
    assert found.test_labels.tolist() == [0, 9]
    assert found.train_labels.dtype == torch.int64
    assert len(found.train_images) == 4 + 2 * (len(archive.train) - 1)
    assert sorted(path.name for path in tmp_path.rglob("*") if "readme" in path.name) == []  # nothing was unpacked


def test_cifar_that_is_not_there(tmp_path: Path) -> None:
    assert find_cifar(CIFAR_10, tmp_path) is None


@pytest.mark.parametrize("archive", CIFAR_10, ids=lambda archive: archive.name)
def test_cifar_that_is_broken(tmp_path: Path, archive: Archive) -> None:
    def read(known: Archive) -> None:
        source = find_cifar((known,), tmp_path)
        assert source is not None
        source.read()

    packed = write_packed(archive, tmp_path)
    path = tmp_path / archive.name
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match=rf"{archive.name} is truncated: [\d,]+ of [\d,]+ bytes; fetch it again"):
        read(packed)
    path.write_bytes(whole[:-1] + b"x")
    with pytest.raises(ValueError, match=r"is not the published file \(its MD5 is [0-9a-f]{32}, not "):
        read(packed)
    short = dataclasses.replace(packed, size=len(whole) - 9999, md5=hashlib.md5(whole[:-9999]).hexdigest())
    path.write_bytes(whole[:-9999])
    with pytest.raises(ValueError, match="cannot be unpacked"):
        read(short)
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"has no cifar-10-batches-.*/other"):
        read(dataclasses.replace(packed, train=(*packed.train, ("other", None))))

    path.unlink()
    unpacked = write_unpacked(archive, tmp_path)
    last = tmp_path / unpacked.test[0][0]
    whole = last.read_bytes()
    last.write_bytes(whole[:-10])
    with pytest.raises(ValueError, match=f"{last.name}.* is (truncated|not the published file)"):
        read(unpacked)
    last.unlink()
    with pytest.raises(ValueError, match=rf"{last.name} is missing: unpack {archive.name} again"):
        find_cifar((unpacked,), tmp_path)


@pytest.mark.parametrize(
    "fields", [{b"labels": [1, 2]}, {b"data": b"x" * 3072, b"labels": [1]}, {b"data": 3, b"labels": ["cat"]}, [1, 2]]
)
def test_a_pickle_without_images_is_no_cifar(tmp_path: Path, fields: Any) -> None:
    archive = dataclasses.replace(CIFAR_10[1], train=(("data_batch_1", None),), test=(("test_batch", None),))
    for name in ("data_batch_1", "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps(fields))
    source = find_cifar((archive,), tmp_path)
    assert source is not None
    with pytest.raises(ValueError, match="has no data of 3072 bytes an image with as many labels"):
        source.read()


# Pickles


class Hostile:
    """Asks, when it is loaded, for a call of what it was made with."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def marker() -> Path:
    return root() / "was-run"


@pytest.mark.parametrize("protocol", range(6))
def test_a_hostile_pickle_is_refused_and_not_run(protocol: int) -> None:
    command = f"touch {marker()}"
    attacks = [
        Hostile(os.system, command),
        Hostile(eval, f"open({str(marker())!r}, 'w')"),
        Hostile(exec, f"open({str(marker())!r}, 'w')"),
        Hostile(open, str(marker()), "w"),
        Hostile(getattr, Path, "touch"),
        Hostile(__import__, "os"),
        Hostile(Path.touch, marker()),
        Hostile(torch.load, str(marker())),
    ]
    for attack in attacks:
        for content in (attack, {b"data": attack}, [attack]):
            with pytest.raises(ValueError, match=r"data_batch_1 is not a pickle of plain data \(.*it is refused"):
                read_pickle(pickle.dumps(content, protocol), "data_batch_1")
    assert not marker().exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",
        b"\x80\x04\x8c\x05numpy\x8c\x13ndarray.__reduce__\x93)R.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"Pidentity\n.",  # a persistent object
        b"\x82\x01.",  # an object of the extension registry
        b"",
        b"no pickle at all",
        b"Nr\xff\xff\xff\x7f.",  # LONG_BINPUT: a table of 2^31 remembered values
        b"Np2147483647\n.",
    ],
)
def test_names_beyond_the_few_are_refused_whatever_the_opcode(content: bytes) -> None:
    with pytest.raises(ValueError, match="is not a pickle of plain data"):
        read_pickle(content, "it")


def test_arrays_that_lie_about_themselves_are_refused() -> None:
    good = pictures.python_2_pickle(TEST, [0, 9])
    assert read_pickle(good, "it")["labels"] == [0, 9]
    for lie in (
        good.replace(b"U\x02u1", b"U\x02O8"),  # objects
        good.replace(b"U\x02u1", b"U\x02i8"),
        good.replace(b"M\x00\x0c", b"M\x01\x0c"),  # a shape larger than the content
        good[: good.index(b"(K\x01J")] + b"u.",  # no content at all
        good[:-200],
    ):
        with pytest.raises(ValueError, match="is not a pickle of plain data"):
            read_pickle(lie, "it")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_that_python_3_pickled_are_read(protocol: int) -> None:
    array = TEST.numpy()
    content = pickle.dumps({"data": array, "labels": [0, 9]}, protocol)
    allowed = "frombuffer" not in {str(argument) for _, argument, _ in pickletools.genops(content) if argument}
    if protocol < 5 and allowed:
        found = read_pickle(content, "it")
        assert torch.equal(found["data"], TEST)
        assert found["labels"] == [0, 9]
    fortran = pickle.dumps({"data": array.transpose(3, 2, 1, 0)}, 3)
    assert torch.equal(read_pickle(fortran, "it")["data"], TEST.permute(3, 2, 1, 0))


# MNIST


@pytest.mark.parametrize("ending", ["", ".gz"])
@pytest.mark.parametrize("below", ["", "raw"])
def test_idx_files(tmp_path: Path, ending: str, below: str) -> None:
    images = {"train": pictures.random_images(3, 1, 28, 1), "t10k": pictures.random_images(2, 2, 28, 1)}
    labels = {"train": torch.tensor([5, 0, 4]).byte(), "t10k": torch.tensor([7, 2]).byte()}
    (tmp_path / below).mkdir(exist_ok=True)
    for part in images:
        for kind, array in (("images-idx3", images[part][..., 0]), ("labels-idx1", labels[part])):
            content = pictures.idx(array)
            path = tmp_path / below / f"{part}-{kind}-ubyte{ending}"
            path.write_bytes(gzip.compress(content) if ending else content)
    source = find_idx({}, tmp_path)
    assert source is not None
    found = source.read()
    assert torch.equal(found.train_images, images["train"])
    assert torch.equal(found.test_images, images["t10k"])
    assert (found.train_labels.tolist(), found.test_labels.tolist()) == ([5, 0, 4], [7, 2])
    published = find_idx(MNIST, tmp_path)
    assert published is not None
    with pytest.raises(ValueError, match="has another content than the published file"):
        published.read()
    (tmp_path / below / f"t10k-labels-idx1-ubyte{ending}").unlink()
    with pytest.raises(ValueError, match=r"has no t10k-labels-idx1-ubyte \(nor with .gz\): fetch it again"):
        find_idx({}, tmp_path)
    assert find_idx({}, tmp_path / "elsewhere") is None


def test_idx_files_that_are_broken(tmp_path: Path) -> None:
    whole = pictures.idx(torch.arange(10).byte())
    path = tmp_path / "labels"
    for content, message in (
        (whole[:-1], "is truncated or too long: its header promises"),
        (b"\0\0\x0d\x01" + whole[4:], "is no idx file of bytes"),
        (b"", "is no idx file of bytes"),
        (b"\x1f\x8b", "is truncated or no gzip file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_idx(path)
    packed = tmp_path / "labels.gz"
    for content in (gzip.compress(whole)[:-6], b"\x1f\x8b\x08nonsense and more of it"):
        packed.write_bytes(content)
        with pytest.raises(ValueError, match="is truncated or no gzip file"):
            read_idx(packed)


@pytest.mark.parametrize("name", ["labels", "labels.gz", "labels.idx"])
@pytest.mark.parametrize("pack", [bytes, gzip.compress, lambda content: gzip.compress(content, 1, mtime=7)])
def test_idx_files_are_known_by_their_content(name: str, pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    """Unpacked by a browser that leaves the name, packed again by someone else, or named otherwise."""
    content = pictures.idx(torch.arange(10).byte())
    md5 = hashlib.md5(content).hexdigest()
    (tmp_path / name).write_bytes(pack(content))
    assert read_idx(tmp_path / name, md5).tolist() == list(range(10))
    (tmp_path / name).write_bytes(pack(content[:-1] + b"\0"))
    with pytest.raises(ValueError, match=f"{name} has another content than the published file"):
        read_idx(tmp_path / name, md5)


# Image folders


def test_an_image_folder(tmp_path: Path) -> None:
    source = find_image_folder(pictures.write_image_folder(tmp_path))
    assert source is not None
    found = source.read()
    assert (found.train_images.shape, found.test_images.shape) == ((24, 8, 8, 3), (8, 8, 8, 3))
    assert found.train_labels.tolist() == [0] * 12 + [1] * 12
    assert torch.equal(found.train_images[0], pictures.random_images(12, 1, 8)[0] // 2 + 127)
    assert source.folder == tmp_path


def test_images_of_several_sizes_are_scaled_or_refused(tmp_path: Path) -> None:
    pictures.write_image_folder(tmp_path)
    Image.new("RGB", (20, 12), (255, 0, 0)).save(tmp_path / "train/dark/wide.png")
    source = find_image_folder(tmp_path)
    assert source is not None
    with pytest.raises(ValueError, match=r"wide.png is 20×12, .*000.png is 8×8: scale them with image_size"):
        source.read()
    source = find_image_folder(tmp_path, image_size=16)
    assert source is not None
    found = source.read()
    assert found.train_images.shape == (25, 16, 16, 3)
    assert (found.train_images[-1] == torch.tensor([255, 0, 0])).all()


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_of_sixteen_bits_the_upper_eight_are_taken(tmp_path: Path, ending: str) -> None:
    values = np.arange(0, 2**16, 2**10, dtype=np.uint16).reshape(8, 8)
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.fromarray(values).save(tmp_path / part / "only" / f"a.{ending}")
    source = find_image_folder(tmp_path)
    assert source is not None
    assert source.read().train_images.flatten().tolist() == list(range(0, 256, 4))
    for part in ("train", "test"):
        Image.fromarray(values.astype(np.float32)).save(tmp_path / part / "only" / "b.tiff")
    source = find_image_folder(tmp_path)
    assert source is not None
    with pytest.raises(
        ValueError, match=r"b\.tiff is no image that can be read \(its pixels go from 0 to 64512; expected 8"
    ):
        source.read()


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.new("L", (4, 4), 77).save(tmp_path / part / "only" / "a.png")
    source = find_image_folder(tmp_path)
    assert source is not None
    assert source.read().train_images.shape == (1, 4, 4, 1)


def test_one_colour_image_among_grey_ones_makes_three_channels(tmp_path: Path) -> None:
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        Image.new("L", (4, 4), 77).save(tmp_path / part / "only" / "a.png")
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "test" / "only" / "b.png")
    source = find_image_folder(tmp_path)
    assert source is not None
    found = source.read()
    assert (found.train_images.shape, found.test_images.shape) == ((1, 4, 4, 3), (2, 4, 4, 3))


def test_image_folders_that_are_none(tmp_path: Path) -> None:
    assert find_image_folder(tmp_path) is None
    (tmp_path / "train/cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="has train/ but no test/ or val/"):
        find_image_folder(tmp_path)
    (tmp_path / "val/dog").mkdir(parents=True)
    with pytest.raises(ValueError, match="class 'cat' is in only one of train/ and val/"):
        find_image_folder(tmp_path)
    (tmp_path / "val/cat").mkdir()
    (tmp_path / "train/dog").mkdir()
    with pytest.raises(ValueError, match="holds no images"):
        find_image_folder(tmp_path)
    for part in ("train", "val"):
        (tmp_path / part / "cat/broken.png").write_bytes(b"\x89PNG and then nothing")
    source = find_image_folder(tmp_path)
    assert source is not None
    with pytest.raises(ValueError, match=r"broken.png is no image that can be read \(.*\): repair or delete it"):
        source.read()


# Hugging Face


def png(image: Tensor) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image.numpy()).save(file, "png")
    return file.getvalue()


@pytest.mark.parametrize("form", ["parquet", "arrow stream", "arrow file"])
def test_hugging_face_files(tmp_path: Path, form: str) -> None:
    import pyarrow
    from pyarrow import ipc, parquet

    for part, images, labels in (("train", TRAIN, LABELS), ("test", TEST, [0, 9])):
        cells = [{"bytes": png(image), "path": None} for image in images]
        table = pyarrow.table({"img": cells, "label": labels})
        if form == "parquet":
            (tmp_path / "plain_text").mkdir(exist_ok=True)
            parquet.write_table(table, tmp_path / f"plain_text/{part}-00000-of-00001.parquet")
            continue
        (tmp_path / part).mkdir()
        path = str(tmp_path / part / "data-00000-of-00001.arrow")
        writer = ipc.new_stream(path, table.schema) if form == "arrow stream" else ipc.new_file(path, table.schema)
        with writer:
            writer.write_table(table)
    source = find_hugging_face(tmp_path)
    assert source is not None
    found = source.read()
    assert torch.equal(found.train_images, TRAIN)
    assert torch.equal(found.test_images, TEST)
    assert (found.train_labels.tolist(), found.test_labels.tolist()) == (LABELS, [0, 9])
    extra = tmp_path / source.files[0].name.replace("train", "validation").replace("data", "validation")
    extra.write_bytes(source.files[0].read_bytes())
    again = find_hugging_face(tmp_path)
    assert again is not None
    assert len(again.read().test_images) == 2  # a validation part is no part of the test
    for path in source.files:
        path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="is truncated or broken"):
        source.read()


def write_parquet(folder: Path, **parts: list[tuple[Image.Image, str, int]]) -> Path:
    """Rows of pictures, the formats that they are kept in, and labels, a file each part."""
    import pyarrow
    from pyarrow import parquet

    folder.mkdir(parents=True, exist_ok=True)
    for part, rows in parts.items():
        cells = []
        for image, form, _ in rows:
            file = io.BytesIO()
            more = {"save_all": True, "append_images": [image]} if form == "MPO" else {}
            image.save(file, form, **more)
            cells.append({"bytes": file.getvalue(), "path": None})
        table = pyarrow.table({"image": cells, "label": [label for *_, label in rows]})
        parquet.write_table(table, folder / f"{part}-0.parquet")
    return folder


def plain(colour: Any, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new("RGB" if isinstance(colour, tuple) else "L", size, colour)


RED, GREY = (200, 10, 10), 90


@pytest.mark.parametrize(
    ("train", "test", "channels"),
    [([GREY, RED], [RED], 3), ([GREY], [RED], 3), ([RED], [GREY], 3), ([GREY], [GREY], 1)],
)
def test_grey_among_colour_is_three_channels_of_hugging_face_too(
    train: list[Any], test: list[Any], channels: int, tmp_path: Path
) -> None:
    rows = {name: [(plain(colour), "PNG", 0) for colour in part] for name, part in (("train", train), ("test", test))}
    source = find_hugging_face(write_parquet(tmp_path, **rows))
    assert source is not None
    found = source.read()
    assert (found.train_images.shape[3], found.test_images.shape[3]) == (channels, channels)


@pytest.mark.parametrize("wrong", ["train", "test"])
def test_hugging_face_images_of_several_sizes_are_scaled_or_refused(wrong: str, tmp_path: Path) -> None:
    rows = {part: [(plain(RED, (20, 12)), "PNG", 0)] for part in ("train", "test")}
    rows[wrong] = [(plain(RED), "PNG", 0), *(rows[wrong] if wrong == "train" else [])]
    write_parquet(tmp_path, **rows)
    source, scaled = find_hugging_face(tmp_path), find_hugging_face(tmp_path, image_size=6)
    assert source is not None
    assert scaled is not None
    with pytest.raises(ValueError, match=r"scale them with image_size$"):
        source.read()
    found = scaled.read()
    assert (found.train_images.shape[1:], found.test_images.shape[1:]) == ((6, 6, 3), (6, 6, 3))


class Cell:
    """A cell of a table of pyarrow."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def as_py(self) -> Any:
        return self.value


class Table(dict[str, list[Cell]]):
    """A table of pyarrow."""

    column_names = ("image", "label")


def a_bomb() -> bytes:
    """A picture of 1.6 billion pixels, by its header."""
    small = png(TRAIN[0])
    header = small[12:16] + (40_000).to_bytes(4) * 2 + small[24:29]
    return small[:12] + header + zlib.crc32(header).to_bytes(4) + small[33:]


@pytest.mark.parametrize(
    ("image", "label", "message"),
    [
        (a_bomb(), 1, "the image of row 1 cannot be read"),
        (png(TRAIN[0])[:40], 1, "the image of row 1 cannot be read"),
        (None, 1, "the image of row 1 cannot be read"),
        ("text", 1, "the image of row 1 cannot be read"),
        (png(TRAIN[0]), None, "the label of row 1 is None, the number of a class was expected"),
        (png(TRAIN[0]), "cat", "the label of row 1 is 'cat'"),
        (png(TRAIN[0]), -1, "the label of row 1 is -1"),
        (png(TRAIN[0]), 2**70, "the label of row 1 is"),
    ],
)
def test_a_row_of_hugging_face_that_cannot_be_read_is_one_line(
    image: Any, label: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = Table(image=[Cell({"bytes": png(TRAIN[0])}), Cell({"bytes": image})], label=[Cell(0), Cell(label)])
    pyarrow, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    monkeypatch.setattr(pyarrow, "ArrowException", type("ArrowException", (Exception,), {}), raising=False)
    monkeypatch.setattr(pyarrow, "ipc", ModuleType("pyarrow.ipc"), raising=False)
    monkeypatch.setattr(pyarrow, "parquet", parquet, raising=False)
    monkeypatch.setattr(parquet, "read_table", lambda path: table, raising=False)
    for module in (pyarrow, parquet, pyarrow.ipc):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    for part in ("train", "test"):
        (tmp_path / f"{part}.parquet").touch()
    source = find_hugging_face(tmp_path)
    assert source is not None
    with pytest.raises(ValueError, match=message) as error:
        source.read()
    assert str(error.value).startswith(str(tmp_path / "train.parquet"))
    assert "\n" not in str(error.value)


def test_hugging_face_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "test"):
        (tmp_path / f"{part}-00000-of-00001.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    source = find_hugging_face(tmp_path)
    assert source is not None
    with pytest.raises(ValueError, match="pyarrow is not installed: pip install pyarrow pillow"):
        source.read()
    (tmp_path / "test-00000-of-00001.parquet").unlink()
    with pytest.raises(ValueError, match="parquet files of a train part but none of a test part"):
        find_hugging_face(tmp_path)


# The cache


def source_of(path: Path, reads: list[int]) -> Source:
    def read() -> Decoded:
        reads.append(1)
        return Decoded(TRAIN, torch.tensor(LABELS), TEST, torch.tensor([0, 9]))

    return Source("test", (path,), read)


def test_a_set_is_decoded_once_and_again_when_its_files_change(tmp_path: Path) -> None:
    path, reads = tmp_path / "file", list[int]()
    path.write_bytes(b"1")
    for _ in range(3):
        found = decoded("name", source_of(path, reads))
        assert torch.equal(found.train_images, TRAIN)
        assert found.test_labels.tolist() == [0, 9]
    assert len(reads) == 1
    path.write_bytes(b"12")
    decoded("name", source_of(path, reads))
    assert len(reads) == 2
    assert [entry.suffix for entry in cache_folder().iterdir()] == [".pt"]


def test_a_broken_cache_is_made_again(tmp_path: Path) -> None:
    path, reads = tmp_path / "file", list[int]()
    path.write_bytes(b"1")
    decoded("name", source_of(path, reads))
    [cached] = cache_folder().iterdir()
    whole = cached.read_bytes()
    place = whole.index(bytes(TRAIN.flatten().tolist())[:64])
    for broken in (whole[:100], b"", whole[:place] + b"other bytes" + whole[place + 11 :]):
        cached.write_bytes(broken)
        before = len(reads)
        assert torch.equal(decoded("name", source_of(path, reads)).train_images, TRAIN)
        assert len(reads) == before + 1
        assert cached.read_bytes()[: len(whole)] == whole


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    reads = list[int]()
    decoded("name", source_of(tmp_path / "file", reads))
    decoded("name", source_of(tmp_path / "file", reads))
    assert len(reads) == 2


# Sets by name


def tiny_set(name: str, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> ImageSet:
    image_set = dataclasses.replace(IMAGE_SETS[name], **changes)
    monkeypatch.setitem(IMAGE_SETS, name, image_set)
    return image_set


def test_a_set_is_found_checked_and_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    archive = write_packed(CIFAR_10[0], root())
    size = (4 + 2 * 4, 2)

    def find(folder: Path) -> Source | None:
        return find_cifar((archive,), folder)

    tiny_set("cifar10", monkeypatch, loose=find, size=size)
    with pytest.raises(ValueError, match="the labels are not 0 to 9; CIFAR-10 has 10 classes"):
        load_data("cifar10", CPU)
    tiny_set("cifar10", monkeypatch, size=(50_000, 10_000))
    with pytest.raises(ValueError, match=r"holds 12 \+ 2 images of 32×32×3; CIFAR-10 has 50,000 \+ 10,000"):
        load_data("cifar10", CPU)


def test_a_set_that_is_missing_says_how_to_get_it() -> None:
    with pytest.raises(
        ValueError, match=r"CIFAR-100 is not in .* run `regrow data fetch cifar100`, or set REGROW_DATA"
    ):
        load_data("cifar100", CPU)
    with pytest.raises(ValueError, match=r"CIFAR-10 \(JPEG\) is not in .*: unpack it there, or set REGROW_DATA"):
        load_data("cifar10-jpeg", CPU)
    with pytest.raises(ValueError, match=r"tinyshakespeare is not in .*looked for tinyshakespeare.txt"):
        load_data("tinyshakespeare", CPU)
    with pytest.raises(ValueError, match=r"unknown data 'nothing': choose one of digits, .*nothing does not exist\)"):
        load_data("nothing", CPU)


def test_jpeg_images_are_not_called_cifar_10(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.write_image_folder(root() / "cifar10", side=32, ending="jpg")
    with pytest.raises(ValueError, match=r"holds JPEG images.*say data cifar10-jpeg"):
        load_data("cifar10", CPU)
    tiny_set("cifar10-jpeg", monkeypatch, size=(24, 8), num_classes=2)
    pictures.write_image_folder(root() / "cifar10-jpeg", side=32, ending="png")  # which is not looked at
    data = load_data("cifar10-jpeg", CPU)
    assert isinstance(data, Dataset)
    assert data.train_inputs.shape == (24, 32, 32, 3)
    assert data.mean == (0.4914, 0.4822, 0.4465)
    assert title_of("cifar10-jpeg") == "CIFAR-10 (JPEG)"
    assert title_of("my-own") == "my-own"


def test_any_folder_is_data_and_is_normalised_by_its_own_statistics() -> None:
    pictures.write_image_folder(root() / "mine")
    data = load_data("mine", CPU)
    assert isinstance(data, Dataset)
    pixels = data.train_inputs.double() / 255
    assert torch.allclose(torch.tensor(data.mean).double(), pixels.mean((0, 1, 2)), atol=1e-6)
    assert torch.allclose(torch.tensor(data.std).double(), pixels.std((0, 1, 2), correction=0), atol=1e-6)
    parts = data.parts(RunConfig(data="mine"))
    inputs, _ = next(parts.train.batches(torch.arange(24), 24))
    assert torch.allclose(inputs.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(inputs.std((0, 2, 3)), torch.ones(3), atol=1e-2)


def test_a_folder_larger_than_the_memory_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.write_image_folder(root() / "large")
    monkeypatch.setattr(data_module, "memory_limit", lambda device: 100)
    data = load_data("large", CPU)
    assert isinstance(data, ImageFiles)
    assert data.parts(RunConfig(data="large")).num_classes == 2
    pictures.write_image_folder(root() / "mixed")
    Image.new("RGB", (20, 12)).save(root() / "mixed/train/dark/wide.png")
    with pytest.raises(ValueError, match=r"wide.png is 20×12, .*png is 8×8: scale them with image_size"):
        load_data("mixed", CPU)
    assert isinstance(load_data("mixed", CPU, image_size=8), ImageFiles)


def test_parquet_larger_than_the_memory_is_unpacked_and_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow
    from pyarrow import parquet

    folder = root() / "hub"
    folder.mkdir(parents=True)
    for part, images, labels in (("train", TRAIN, LABELS), ("test", TEST, [0, 9])):
        cells = [{"bytes": png(image), "path": None} for image in images]
        parquet.write_table(pyarrow.table({"img": cells, "label": labels}), folder / f"{part}-0.parquet")
    resident = load_data("hub", CPU)
    assert isinstance(resident, Dataset)
    forget = data_module._load.cache_clear
    forget()
    monkeypatch.setattr(data_module, "memory_limit", lambda device: 100)
    streamed = load_data("hub", CPU)
    assert isinstance(streamed, ImageFiles)
    assert len(streamed.folder.classes) == 10  # as the labels of both parts say
    by_label = sorted(zip(streamed.folder.train.labels, streamed.folder.train.files, strict=True))
    assert [label for label, _ in by_label] == sorted(LABELS)
    order = sorted(range(len(LABELS)), key=lambda number: LABELS[number])
    for (_, path), number in zip(by_label, order, strict=True):
        assert torch.equal(decode_files([path])[0], TRAIN[number])
    forget()
    again = load_data("hub", CPU)
    assert isinstance(again, ImageFiles)
    assert again.folder == streamed.folder  # unpacked once
    next(folder.glob("train*")).write_bytes(b"PAR1")
    forget()
    with pytest.raises(ValueError, match="is truncated or broken"):
        load_data("hub", CPU)


def test_streamed_rows_of_any_format_are_all_there(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [(plain((number, 0, 9)), form, number % 2) for number, form in enumerate(("PNG", "GIF", "JPEG", "MPO"))]
    write_parquet(root() / "formats", train=rows, test=rows[:2])
    monkeypatch.setattr(data_module, "memory_limit", lambda device: 0)
    data = load_data("formats", CPU)
    assert isinstance(data, ImageFiles)
    assert data.folder.train.labels == (0, 1, 0, 1)  # in the order of the rows, as in memory
    assert len(data.folder.test.files) == 2
    data.folder.train.files[-1].unlink()
    data_module._load.cache_clear()
    with pytest.raises(ValueError, match="holds 3 images of train, 4 were unpacked there: delete it, and it is"):
        load_data("formats", CPU)


@pytest.mark.parametrize("name", ["digits", "digits-images", "cifar10", "tinyshakespeare", "mine.txt"])
def test_an_image_size_is_refused_where_it_would_change_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=f"image_size is for folders of images, given 8 for data {name}: leave it out"):
        load_data(name, CPU, image_size=8)


@pytest.mark.parametrize("streamed", [False, True])
def test_labels_of_the_test_part_alone_are_classes_too(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.write_image_folder(root() / "last")
    for part in ("train", "test"):
        (root() / "last" / part / "extra").mkdir()
    plain(RED).save(root() / "last/test/extra/a.png")
    if streamed:
        monkeypatch.setattr(data_module, "memory_limit", lambda device: 0)
    assert load_data("last", CPU).parts(RunConfig(data="last")).num_classes == 3


@pytest.mark.parametrize("streamed", [False, True])
def test_images_too_small_to_be_reflected_are_not_cropped(streamed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if streamed:
        monkeypatch.setattr(data_module, "memory_limit", lambda device: 0)
    for side in (4, 5):
        pictures.write_image_folder(root() / str(side), train=1, test=1, side=side)
    data = load_data("4", CPU)
    with pytest.raises(ValueError, match="crop-flip pads with 4 reflected pixels, images of data 4 are 4×4: leave it"):
        data.parts(RunConfig(data="4", augmentation="crop-flip"))
    assert data.parts(RunConfig(data="4", augmentation="resized-crop-flip"))
    assert load_data("5", CPU).parts(RunConfig(data="5", augmentation="crop-flip"))


def test_counts_are_kept_and_made_again_when_they_are_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures.write_image_folder(root() / "large")
    resident = load_data("large", CPU)
    monkeypatch.setattr(data_module, "memory_limit", lambda device: 0)
    for break_it in (lambda text: text, lambda text: text.replace("[", "[1, ", 1), lambda text: text[:50]):
        data_module._load.cache_clear()
        data = load_data("large", CPU)
        assert isinstance(data, ImageFiles)
        assert isinstance(resident, Dataset)
        assert (data.mean, data.std) == (resident.mean, resident.std)
        [kept] = cache_folder().glob("*-counts.json")
        kept.write_text(break_it(kept.read_text()))


def test_a_set_has_a_label_an_image(tmp_path: Path) -> None:
    def images(number: int) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8).expand(number, 28, 28, 1)

    source, labels = Source("idx files", (tmp_path / "a",), lambda: pytest.fail("not to be read")), torch.arange
    for train, given in ((labels(10_000) % 10, "10000"), (torch.zeros(1).long().expand(60_000, 28), "60000×28")):
        found = Decoded(images(60_000), train, images(10_000), labels(10_000) % 10)
        with pytest.raises(ValueError, match=f"has 60,000 training images and {given} labels of them; expected one an"):
            IMAGE_SETS["mnist"].check(found, source)
    found = Decoded(images(60_000), labels(60_000) % 10, images(10_000), labels(60_000) % 10)
    with pytest.raises(ValueError, match="has 10,000 test images and 60000 labels"):
        IMAGE_SETS["mnist"].check(found, source)


def test_a_text_is_split_ninety_to_ten() -> None:
    content = bytes(range(256)) * 4
    for name in ("tinyshakespeare.txt", "mine.txt"):
        (root() / name).write_bytes(content)
    for name in ("tinyshakespeare", "mine.txt"):
        data = load_data(name, CPU)
        assert isinstance(data, Text)
        assert bytes(data.train.tolist() + data.test.tolist()) == content
        assert len(data.train) == int(0.9 * 1024)
    with pytest.raises(ValueError, match="too few for windows of 512 with 0 held out: give a smaller sequence_length"):
        data.parts(RunConfig(data="mine.txt"))
    parts = data.parts(RunConfig(data="mine.txt", sequence_length=16))
    assert (parts.is_text, parts.num_classes, tuple(parts.example.shape)) == (True, 256, (1, 16))


def test_augmentation_is_for_images() -> None:
    with pytest.raises(ValueError, match="augmentation crop-flip is for images, data digits has none"):
        load_data("digits", CPU).parts(RunConfig(augmentation="crop-flip"))


def test_the_published_numbers_are_in_form() -> None:
    for archive in ARCHIVES:
        assert 160e6 < archive.size < 180e6
        for md5 in (archive.md5, *(md5 for _, md5 in (*archive.train, *archive.test) if md5)):
            assert len(md5) == 32
            assert int(md5, 16)
    for image_set in IMAGE_SETS.values():
        assert len(image_set.mean) == len(image_set.std) == image_set.shape[2]
        for download in image_set.downloads:
            assert int(download.md5, 16)
            assert download.folder in image_set.folders
