"""Augmentation in batches against the same done to one image at a time."""

import pictures
import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from regrow_lab.config import AUGMENTATIONS as NAMES
from regrow_lab.data import augment
from regrow_lab.data.augment import AUGMENTATIONS, crop_flip, resized_crop_flip

IMAGES = pictures.random_images(6, side=12)


def generator(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def crops(image: Tensor) -> list[Tensor]:
    """Every crop of the padded image (height × width × channels), as it is and mirrored."""
    height, width = image.shape[:2]
    padded = F.pad(image.permute(2, 0, 1).float()[None], (4, 4, 4, 4), mode="reflect")[0].permute(1, 2, 0).byte()
    found = [padded[top : top + height, left : left + width] for top in range(9) for left in range(9)]
    return found + [crop.flip(1) for crop in found]


def test_names() -> None:
    assert tuple(AUGMENTATIONS) == NAMES


def test_crop_flip_gives_crops_of_the_padded_image_and_all_of_them() -> None:
    known = torch.stack(crops(IMAGES[2]))
    batch = crop_flip(IMAGES, torch.full((4000,), 2), generator())
    assert batch.dtype == torch.uint8
    places = (batch[:, None, :3, :3] == known[None, :, :3, :3]).flatten(2).all(2)  # a corner tells a crop
    which = places.int().argmax(1)
    assert torch.equal(batch, known[which])
    counts = which.bincount(minlength=162)
    assert (counts > 0).all()
    assert counts.max() < 60  # 24.7 each on average
    assert 1800 < counts[:81].sum() < 2200


def test_each_image_of_a_batch_is_its_own() -> None:
    chosen = torch.tensor([5, 0, 3, 3])
    batch = crop_flip(IMAGES, chosen, generator())
    for image, number in zip(batch, chosen.tolist(), strict=True):
        assert any(torch.equal(image, crop) for crop in crops(IMAGES[number]))
    assert not torch.equal(batch[2], batch[3])


@pytest.mark.parametrize("change", [crop_flip, resized_crop_flip])
def test_the_generator_decides(change: augment.Augmentation) -> None:
    chosen = torch.arange(6)
    state = torch.get_rng_state()
    one, same, other = (change(IMAGES, chosen, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.shape == (6, 12, 12, 3)


def test_resized_crops_are_those_of_interpolate() -> None:
    chosen = torch.arange(6).repeat(20)
    rectangles = augment._rectangles(120, 12, 12, generator(3))
    twin = generator(3)
    augment._rectangles(120, 12, 12, twin)
    mirrored = torch.rand(120, 1, generator=twin) < 0.5
    batch = resized_crop_flip(IMAGES, chosen, generator(3))
    for image, number, rectangle, mirror in zip(batch, chosen.tolist(), rectangles, mirrored, strict=True):
        top, left, tall, wide = rectangle.int().tolist()
        assert (tall, wide) != (0, 0)
        crop = IMAGES[number, top : top + tall, left : left + wide].permute(2, 0, 1).float()[None]
        expected = F.interpolate(crop, (12, 12), mode="bilinear", align_corners=False)[0].permute(1, 2, 0)
        assert torch.allclose(image, expected.flip(1) if mirror else expected, atol=1e-2)
    assert 40 < mirrored.sum() < 80


def test_rectangles_have_the_areas_and_aspects_that_were_asked_for() -> None:
    top, left, tall, wide = augment._rectangles(5000, 224, 224, generator()).unbind(1)
    area, aspect = tall * wide / 224**2, wide / tall
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + tall <= 224).all()
    assert (left + wide <= 224).all()
    assert area.min() > 0.07
    assert area.max() <= 1
    assert 0.45 < area.mean() < 0.54  # large ones fit less often
    assert aspect.min() > 0.74
    assert aspect.max() < 1.35
    assert abs(aspect.log().mean()) < 0.01


def test_a_rectangle_that_never_fits_is_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "AREA", (4.0, 5.0))
    assert (augment._rectangles(3, 10, 20, generator()) == torch.tensor([0, 0, 10, 20])).all()
