"""How samples come to the net: in order, once each, from any batch on, without touching the global generator."""

from pathlib import Path

import pictures
import pytest
import torch
from torch import Generator

from regrow_lab.config import RunConfig
from regrow_lab.data import Dataset, ImageFiles
from regrow_lab.data.augment import crop_flip
from regrow_lab.data.batches import IGNORED, Images, Part, Pixels, StreamedImages, Vectors, Windows, held_out
from regrow_lab.data.folder import decode_files, list_images

CPU = torch.device("cpu")
PIXELS = Pixels((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
AUGMENTED = Pixels((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_flip)
LABELS = torch.arange(10)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures.write_image_folder(tmp_path, train=5)


@pytest.fixture(params=["vectors", "images", "text", "streamed"])
def part(request: pytest.FixtureRequest, folder: Path) -> Part:
    if request.param == "vectors":
        return Vectors(torch.randn(10, 4, generator=Generator().manual_seed(0)), LABELS)
    if request.param == "images":
        return Images(pictures.random_images(10, side=8), LABELS, AUGMENTED)
    if request.param == "text":
        return Windows(pictures.random_images(1, side=10).flatten()[:207], 20, moving=True)
    return StreamedImages(list_images(folder).train, 0, AUGMENTED, CPU)


def test_an_epoch_may_begin_at_any_batch_and_needs_no_state(part: Part) -> None:
    order = torch.randperm(10, generator=Generator().manual_seed(1))
    state = torch.get_rng_state()
    assert len(part) == 10 - isinstance(part, Windows)
    whole = list(part.batches(order[: len(part)], 4, seed=3, epoch=1))
    assert [len(inputs) for inputs, _ in whole] == [4, 4, len(part) - 8]
    for first in range(3):
        rest = list(part.batches(order[: len(part)], 4, seed=3, epoch=1, first=first))
        assert len(rest) == 3 - first
        for (inputs, labels), (expected, expected_labels) in zip(rest, whole[first:], strict=True):
            assert torch.equal(inputs, expected)
            assert torch.equal(labels, expected_labels)
    assert torch.equal(torch.get_rng_state(), state)
    if not isinstance(part, Vectors):
        for seed, epoch in ((4, 1), (3, 2)):
            inputs, _ = next(part.batches(order[: len(part)], 4, seed=seed, epoch=epoch))
            assert not torch.equal(inputs, whole[0][0])


def test_images_are_normalised_in_channels_last() -> None:
    images = pictures.random_images(10, side=8)
    [(inputs, labels)] = Images(images, LABELS, PIXELS).batches(torch.tensor([7, 2]), 5)
    expected = (images[[7, 2]].permute(0, 3, 1, 2) / 255 - torch.tensor(PIXELS.mean).view(3, 1, 1)) / torch.tensor(
        PIXELS.std
    ).view(3, 1, 1)
    assert torch.allclose(inputs, expected, atol=1e-6)
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert labels.tolist() == [7, 2]
    for augmentation in (crop_flip, lambda images, chosen, generator: images[chosen].float()):
        changed = Images(images, LABELS, Pixels(PIXELS.mean, PIXELS.std, augmentation))
        [(inputs, _)] = changed.batches(torch.arange(10), 10)
        assert inputs.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(images, pictures.random_images(10, side=8))


def test_only_training_images_are_augmented() -> None:
    images = pictures.random_images(10, side=8)
    data = Dataset(images, LABELS, images[:3], LABELS[:3], "test", PIXELS.mean, PIXELS.std)
    parts = data.parts(RunConfig(augmentation="crop-flip", validation=4))
    assert (len(parts.train), len(parts.test), parts.num_classes) == (6, 3, 10)
    assert parts.validation is not None
    plain, _ = next(Images(images, LABELS, PIXELS).batches(LABELS, 10))
    for unaugmented in (parts.validation, parts.test):
        [(inputs, labels)] = unaugmented.batches(torch.arange(len(unaugmented)), 10, epoch=5)
        assert torch.equal(inputs, plain[labels])
    [(inputs, labels)] = parts.train.batches(torch.arange(6), 10)
    assert not torch.equal(inputs, plain[labels])
    with pytest.raises(ValueError, match="validation holds out 10 samples, data digits has 10: hold out fewer"):
        data.parts(RunConfig(validation=10))


def test_what_is_held_out_is_the_same_for_every_seed() -> None:
    train, validation = held_out(50, 5, "it")
    assert sorted(train.tolist() + validation.tolist()) == list(range(50))
    assert (len(train), len(validation)) == (45, 5)
    assert torch.equal(validation, held_out(50, 5, "it")[1])
    assert validation.tolist() != list(range(5))


def test_streamed_images_are_those_of_the_memory(folder: Path) -> None:
    listed = list_images(folder)
    images, labels = decode_files(listed.train.files), torch.tensor(listed.train.labels)
    order = torch.randperm(10, generator=Generator().manual_seed(1))
    resident = Images(images, labels, PIXELS).batches(order, 4)
    streamed = StreamedImages(listed.train, 0, PIXELS, CPU).batches(order, 4)
    for (inputs, labels), (expected, expected_labels) in zip(streamed, resident, strict=True):
        assert torch.equal(inputs, expected)
        assert torch.equal(labels, expected_labels)
    parts = ImageFiles(listed, 0, CPU, "it", PIXELS.mean, PIXELS.std).parts(
        RunConfig(validation=3, augmentation="crop-flip")
    )
    assert parts.validation is not None
    assert (len(parts.train), len(parts.validation), len(parts.test)) == (7, 3, 8)
    assert parts.example.shape == (1, 3, 8, 8)


def test_a_broken_file_of_a_stream_is_named_in_a_line(folder: Path) -> None:
    listed = list_images(folder)
    listed.train.files[3].write_bytes(listed.train.files[3].read_bytes()[:40])
    with pytest.raises(ValueError, match=f"^{listed.train.files[3]} is no image that can be read"):
        list(StreamedImages(listed.train, 0, PIXELS, CPU).batches(torch.arange(10), 4))


def test_training_windows_are_distinct_stretches_and_move_with_the_epoch() -> None:
    text = torch.arange(200).byte()
    windows, starts = Windows(text, 16, moving=True), set()
    assert len(windows) == (200 - 16) // 16
    for epoch in range(40):
        [(inputs, labels)] = windows.batches(torch.arange(len(windows)), 99, epoch=epoch)
        assert torch.equal(inputs[:, 1:], labels[:, :-1])
        assert (inputs[:, 1:] == inputs[:, :-1] + 1).all()
        flat = inputs.flatten().tolist()
        assert len(set(flat)) == len(flat)
        starts.add(flat[0])
    assert starts <= set(range(16))
    assert len(starts) > 10


@pytest.mark.parametrize("size", [33, 34, 47, 48, 49, 50, 200])
def test_test_windows_predict_each_character_once(size: int) -> None:
    text = torch.arange(size).byte()
    windows = Windows(text, 16, moving=False)
    predicted = []
    for inputs, labels in windows.batches(torch.arange(len(windows)), 2):
        known = labels != IGNORED
        assert torch.equal(inputs[known] + 1, labels[known])
        predicted += labels[known].tolist()
    assert predicted == list(range(1, size))
