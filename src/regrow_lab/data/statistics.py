"""Which channels the images of a set have, and the mean and the deviation of each, by counting the values of pixels."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from regrow_lab.data.folder import ImageFolder, check_same_size, decode_file, threads
from regrow_lab.data.source import is_grey

AT_A_TIME = 4096
"""Files that are handed to the threads at once: a task for each of a million would fill the memory by itself."""

Statistics = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and standard deviation of each channel, for pixels in [0, 1]."""


def statistics_of(counts: Tensor) -> Statistics:
    """Mean and deviation of each channel (counts: channels × 256); exact."""
    values = torch.arange(256, dtype=torch.float64) / 255
    counted = counts.double()
    means = [float((count * values).sum() / count.sum()) for count in counted]
    squares = [float((count * values**2).sum() / count.sum()) for count in counted]
    deviations = [max(square - mean**2, 1e-6) ** 0.5 for square, mean in zip(squares, means, strict=True)]
    return tuple(means), tuple(deviations)


def counts_of(images: Tensor) -> Tensor:
    """How often each value occurs in each channel of images (… × channels, uint8): channels × 256."""
    channels = range(images.shape[-1])
    return torch.stack([images[..., channel].flatten().bincount(minlength=256) for channel in channels])


def counts_of_files(listed: ImageFolder, image_size: int) -> Tensor:
    """The same of the training images of a folder, without ever holding them all; one channel where all of it is grey.

    Raises ValueError for a file of either part that is no image, and for images that differ in size.
    """
    first = listed.train.files[0]
    shape = decode_file(first, image_size).shape

    def look(path: Path) -> tuple[Tensor, bool]:
        image = decode_file(path, image_size)
        check_same_size(path, image.shape, first, shape)
        return counts_of(image), is_grey(image)

    total, all_grey = torch.zeros(3, 256, dtype=torch.int64), True
    for part, counted in ((listed.train, True), (listed.test, False)):
        for start in range(0, len(part.files), AT_A_TIME):
            with threads() as pool:
                for counts, grey in pool.map(look, part.files[start : start + AT_A_TIME]):
                    all_grey &= grey
                    if counted:
                        total += counts
    return total[:1] if all_grey else total
