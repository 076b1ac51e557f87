"""Random changes of training images, a whole batch at a time, on the device where the images are.

Each takes all images (uint8, N × height × width × channels), the numbers of those in the batch, and a generator, and
returns the batch (batch × height × width × channels).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

Augmentation = Callable[[Tensor, Tensor, Generator], Tensor]

PADDING = 4
AREA = (0.08, 1.0)
ASPECT = (3 / 4, 4 / 3)
ATTEMPTS = 10


def crop_flip(images: Tensor, chosen: Tensor, generator: Generator) -> Tensor:
    """A crop of the image's own size from the image padded by 4 reflected pixels, mirrored left to right half the time.

    No padded copy is made: rows and columns of the crop are reflected into the image, and one indexing does it all.

    He et al. 2016, section 4.2, with the reflection of Zagoruyko & Komodakis 2016.
    """
    batch, (height, width) = len(chosen), images.shape[1:3]
    top, left = torch.randint(2 * PADDING + 1, (2, batch, 1), generator=generator, device=images.device) - PADDING
    mirrored = torch.rand(batch, 1, generator=generator, device=images.device) < 0.5
    rows = _reflected(torch.arange(height, device=images.device) + top, height)
    columns = _reflected(torch.arange(width, device=images.device) + left, width)
    columns = torch.where(mirrored, columns.flip(1), columns)
    pixels = ((chosen.view(-1, 1) * height + rows).unsqueeze(2) * width + columns.unsqueeze(1)).flatten()
    return images.view(-1, images.shape[3]).index_select(0, pixels).view(batch, height, width, -1)


def resized_crop_flip(images: Tensor, chosen: Tensor, generator: Generator) -> Tensor:
    """A rectangle of 8 to 100 % of the area and aspect 3/4 to 4/3, scaled to the image's size, mirrored half the time.

    Bilinear, within the rectangle; a rectangle that does not fit is drawn again, ten times in all, and is then the
    whole image. The batch comes as float32.

    Szegedy et al. 2015, section 6.
    """
    batch, (height, width) = len(chosen), images.shape[1:3]
    top, left, tall, wide = _rectangles(batch, height, width, generator).unsqueeze(2).unbind(1)
    mirrored = torch.rand(batch, 1, generator=generator, device=images.device) < 0.5
    y = _within(top, tall, height)
    x = _within(left, wide, width)
    x = torch.where(mirrored, x.flip(1), x)
    grid = torch.stack(
        [
            ((2 * x + 1) / width - 1).unsqueeze(1).expand(batch, height, width),
            ((2 * y + 1) / height - 1).unsqueeze(2).expand(batch, height, width),
        ],
        dim=3,
    )
    pictures = images[chosen].permute(0, 3, 1, 2).float()
    return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False).permute(0, 2, 3, 1)


def _reflected(positions: Tensor, size: int) -> Tensor:
    """Positions mirrored at the first and the last pixel, which are not doubled."""
    last = size - 1
    return last - (last - positions.abs()).abs()


def _rectangles(batch: int, height: int, width: int, generator: Generator) -> Tensor:
    """Top, left, height and width of a rectangle for each image (batch × 4, whole pixels)."""
    device = generator.device
    drawn = torch.rand(4, batch, ATTEMPTS, generator=generator, device=device)
    area = height * width * (AREA[0] + (AREA[1] - AREA[0]) * drawn[0])
    aspect = torch.exp(math.log(ASPECT[0]) + (math.log(ASPECT[1]) - math.log(ASPECT[0])) * drawn[1])
    wide, tall = (area * aspect).sqrt().round(), (area / aspect).sqrt().round()
    fits = (wide > 0) & (tall > 0) & (wide <= width) & (tall <= height)
    first = fits.int().argmax(1, keepdim=True)  # the first that fits; 0 where none does
    top, left = (drawn[2] * (height - tall + 1)).floor(), (drawn[3] * (width - wide + 1)).floor()
    found = torch.stack([top, left, tall, wide], dim=2).gather(1, first.unsqueeze(2).expand(-1, -1, 4)).squeeze(1)
    whole = torch.tensor([0.0, 0.0, height, width], device=device)
    return torch.where(fits.any(1, keepdim=True), found, whole)


def _within(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where each of `size` pixels of the result lies in the image (batch × size), kept inside the rectangle."""
    centres = (torch.arange(size, device=start.device) + 0.5) * (length / size) - 0.5
    return start + torch.minimum(centres.clamp_min(0), length - 1)


AUGMENTATIONS: dict[str, Augmentation | None] = {
    "none": None,
    "crop-flip": crop_flip,
    "resized-crop-flip": resized_crop_flip,
}
